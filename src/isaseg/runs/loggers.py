"""Where the numbers of a run go: always to metrics.csv, and to Weights & Biases if wanted, whose failures end no run.

Lightning numbers steps from 0; the loggers count finished optimizer steps. Both hold the history of training alone:
what is evaluated after `fit` is no point of a curve.
"""

import logging
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb as wb
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from isaseg.errors import ConfigError
from isaseg.files import replace_file
from isaseg.runs.history import HistoryWriter

log = logging.getLogger(__name__)

_MODES = ("online", "offline", "disabled")
_STEP_AXIS = "trainer/global_step"
_FINISH_SECONDS = 60.0  # for the upload when a run ends; by default W&B waits for ever, with the GPU held


def make_loggers(
    run_dir: Path,
    *,
    wandb: bool = False,
    project: str = "isaseg",
    group: str | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    mode: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> list[Logger]:
    """Return the loggers of a run: metrics.csv and, if wanted, W&B. Nothing is written or contacted yet.

    Args:
        run_dir: Run folder; gets metrics.csv, wandb_id.txt and wandb/.
        wandb: Whether to log to W&B too.
        project, group, name, tags: How W&B files the run; the group is the experiment or the sweep.
        mode: "online", "offline" or "disabled"; None takes WANDB_MODE, and offline if that is not set.
        config: What W&B keeps as the configuration of the run, plain data.

    Raises:
        ConfigError: If the mode is none of these.
    """
    mode = mode or os.environ.get("WANDB_MODE") or "offline"
    if mode not in _MODES:
        raise ConfigError(
            f"expected logger.mode (or WANDB_MODE) to be one of {', '.join(_MODES)}, got {mode=}"
        )
    loggers: list[Logger] = [HistoryLogger(run_dir)]
    if wandb and mode != "disabled":
        of_run = {"project": project, "group": group, "name": name, "tags": list(tags)}
        loggers.append(NeverFatalWandbLogger(run_dir, mode, config=dict(config or {}), **of_run))
    return loggers


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the W&B runs. Call it in `finally`: if an error is being raised, W&B marks the run as failed."""
    for logger in loggers:
        if isinstance(logger, NeverFatalWandbLogger):
            logger.finish(int(sys.exc_info()[0] is not None))


class _RunLogger(Logger):
    """What both loggers share: no folder of Lightning's, and no hyperparameters, which are in config.yaml."""

    name = version = None
    _fitted = False

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""

    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`, and after an error in it."""
        self._fitted = True


class HistoryLogger(_RunLogger):
    """Writes what Lightning logs during `fit` to the metrics.csv of a run folder."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._writer = HistoryWriter(run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values; `step` is as Lightning counts it."""
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        if values and step is not None and not self._fitted:
            self._writer.add(step + 1, values)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the history, with the rows for which there was no room before."""
        super().finalize(status)
        self._writer.close()


class NeverFatalWandbLogger(_RunLogger):
    """Logs to Weights & Biases without a prompt, without uploading code or models, and without ending a run.

    Online without a key or a network, the run is kept offline instead, for `wandb sync`. Any other failure costs one
    warning and switches W&B off for the rest of the run. The id of the W&B run is kept in wandb_id.txt, so that a
    resumed run is the same run.

    Args:
        run_dir: Run folder; gets wandb_id.txt and wandb/.
        mode: "online" or "offline".
        init: Goes to `wandb.init`.

    Attributes:
        run: The W&B run; None before something is logged, and in every process but the first.
    """

    def __init__(self, run_dir: Path, mode: str, **init: Any) -> None:
        super().__init__()
        self.run: Any = None
        self._folder, self._mode, self._init = run_dir, mode, init
        self._off = False

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

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run; what is logged later goes nowhere."""
        self._off = True
        try:
            if self.run is not None:
                self.run.finish(exit_code=exit_code)
        except Exception as error:
            log.warning("W&B could not finish its run (%s)", _sentence(error))

    def _do(self, action: Callable[[Any], Any]) -> None:
        """Do something with the run, unless W&B has failed."""
        if self._off:
            return
        try:
            if self.run is None:
                self.run = self._begin()
            action(self.run)
        except Exception as error:
            self._off = True
            log.warning("W&B is off for the rest of this run (%s); metrics.csv goes on", _sentence(error))

    def _begin(self) -> Any:
        mode = self._mode
        if mode == "online":
            try:
                if not wb.login(prompt=False):
                    raise RuntimeError("no API key; run `wandb login` once")
            except Exception as error:
                log.warning("W&B cannot go online (%s); the run is kept offline", _sentence(error))
                mode = "offline"
        run = wb.init(
            dir=str(self._folder),
            id=_run_id(self._folder / "wandb_id.txt"),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,  # offline there is nothing to ask
            reinit="create_new",  # several runs of one process stay apart
            job_type="train",
            settings=wb.Settings(
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
        if mode == "online":
            log.info("W&B: online, %s", run.url)
        else:
            log.info("W&B: offline; upload with `wandb sync %s`", Path(run.dir).parent)
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
