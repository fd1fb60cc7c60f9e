"""Weights & Biases beside metrics.csv, never at its cost: whatever W&B does, a run keeps its results."""

import logging
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from isaseg.files import replace_file

log = logging.getLogger(__name__)

_STEP_AXIS = "trainer/global_step"
_FINISH_SECONDS = (
    60.0  # for the upload when a run ends; by W&B's default it may take for ever, with the GPU held
)

# W&B shows the last value of a metric, and of these the best one too.
_SUMMARIES = {
    "val/mIoU": "max,last",
    "val/mAcc": "max,last",
    "val/aAcc": "max,last",
    "val/group_acc": "max,last",
    "val/loss": "min,last",
    "train/loss": "min,last",
    "train/loss_aux": "min,last",
}


class NeverFatalWandbLogger(Logger):
    """Logs to Weights & Biases without a prompt, without uploading code or models, and without ending a run.

    Online without a key or a network, the run is kept offline instead, for `wandb sync`. Any other failure costs one
    warning and switches W&B off for the rest of the run. The id of the W&B run is kept in wandb_id.txt, so that a
    resumed run is the same run.

    Args:
        run_dir: Run folder; gets wandb_id.txt and wandb/.
        mode: "online" or "offline".
        init: Goes to `wandb.init`.
    """

    def __init__(self, run_dir: Path, *, mode: str, **init: Any) -> None:
        super().__init__()
        self._folder, self._mode, self._init = run_dir, mode, init
        self._run: Any = None
        self._off = self._fitted = False

    @property
    def name(self) -> str | None:
        """None."""
        return None

    @property
    def version(self) -> str | None:
        """None."""
        return None

    @property
    @rank_zero_only
    def experiment(self) -> Any:
        """The W&B run, begun at first use; None if W&B is off, and in every process but the first."""
        self._do(lambda run: None)
        return None if self._off else self._run

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them: W&B has the configuration of the run."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; after `fit` to the summary, those of the validation split as best/... instead of val/..."""
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if self._fitted:
            best = {key.replace("val/", "best/"): value for key, value in values.items()}
            self._do(lambda run: run.summary.update(best))
        elif values:
            self.log_payload(values, None if step is None else step + 1)

    @rank_zero_only
    def log_payload(self, payload: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, images or tables after `step` finished steps."""
        axis = {} if step is None else {_STEP_AXIS: step}
        self._do(lambda run: run.log({**payload, **axis}))

    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`."""
        self._fitted = True

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """End the run; what is logged later goes nowhere."""
        run, self._run, self._off = self._run, None, True
        try:
            if run is not None:
                run.finish(exit_code=exit_code)
        except Exception as error:
            log.warning("W&B could not finish its run (%s)", _sentence(error))

    def _do(self, action: Callable[[Any], Any]) -> None:
        """Do something with the run, unless W&B has failed."""
        if self._off:
            return
        try:
            if self._run is None:
                self._run = self._begin()
            action(self._run)
        except Exception as error:
            self._off = True
            log.warning("W&B is off for the rest of this run (%s); metrics.csv goes on", _sentence(error))

    def _begin(self) -> Any:
        mode = self._mode
        if mode == "online":
            try:
                if not wandb.login(prompt=False):
                    raise RuntimeError("no API key; run `wandb login` once")
            except Exception as error:
                log.warning("W&B cannot go online (%s); the run is kept offline", _sentence(error))
                mode = "offline"
        self._folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            dir=str(self._folder),
            id=_run_id(self._folder / "wandb_id.txt"),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,  # offline there is nothing to ask
            reinit="create_new",  # several runs of one process stay apart
            settings=wandb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_code=True,
                init_timeout=10,
                finish_timeout=_FINISH_SECONDS,
            ),
            **self._init,
        )
        run.define_metric(_STEP_AXIS)
        run.define_metric("*", step_metric=_STEP_AXIS, step_sync=True)
        for name, summary in _SUMMARIES.items():  # an exact definition does not inherit from "*"
            run.define_metric(name, step_metric=_STEP_AXIS, summary=summary)
        folder = Path(run.dir).parent
        if mode == "online":
            log.info("W&B: online, %s", run.url)
        else:
            log.info("W&B: offline; look with `wandb leet %s`, upload with `wandb sync %s`", folder, folder)
        return run


def _sentence(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _run_id(path: Path) -> str:
    """Return the id in the file, or put a new one there."""
    if path.is_file() and (kept := path.read_text().strip()):
        return kept
    new = secrets.token_hex(4)
    with replace_file(path) as file:
        file.write(f"{new}\n".encode())
    return new
