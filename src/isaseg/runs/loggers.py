"""Where numbers go: metrics.csv in the run folder always, Weights & Biases beside it, never at its cost.

Both count finished optimizer steps (Lightning numbers them from 0) and hold the history of training alone: what is
evaluated after `fit`, with whatever weights, is no point of a curve.
"""

import logging
import os
import secrets
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from isaseg.errors import ConfigError
from isaseg.files import replace_file
from isaseg.runs.history import AppendingCsvLogger

log = logging.getLogger(__name__)

_MODES = ("online", "offline", "disabled")
_STEP_AXIS = "trainer/global_step"

# How W&B's summary shows the curves whose last value is not all one asks for; the others keep their last value.
_SUMMARIES = {
    "val/mIoU": "max,last",
    "val/mAcc": "max,last",
    "val/aAcc": "max,last",
    "val/group_acc": "max,last",
    "val/loss": "min,last",
    "train/loss": "min,last",
    "train/loss_aux": "min,last",
}

# A run begins after this many seconds, online or not. Of these, W&B itself takes up to ten to try the key.
_ONLINE_SECONDS = 13.0
# It may take so long to send the rest when it ends: for ever by W&B's default, with the GPU held.
_FINISH_SECONDS = 60.0


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
        run_dir: Run folder; takes metrics.csv, wandb_id.txt and wandb/.
        wandb: Whether to log to W&B too.
        project, group, name, tags: How W&B files the run; the group is the experiment or the sweep.
        mode: online, offline or disabled; None takes WANDB_MODE, or else offline.
        config: What W&B keeps as the run's configuration, plain data.

    Raises:
        ConfigError: If the mode is none of these.
    """
    loggers: list[Logger] = [AppendingCsvLogger(run_dir / "metrics.csv")]
    mode = mode or os.environ.get("WANDB_MODE") or "offline"
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode not in _MODES:
        raise ConfigError(
            f"expected logger.mode (or WANDB_MODE) to be one of {', '.join(_MODES)}, got {mode=}"
        )
    if wandb and mode != "disabled":
        loggers.append(
            NeverFatalWandbLogger(
                run_dir,
                project=project,
                group=group,
                name=name,
                job_type="train",
                tags=list(tags),
                mode=mode,
                config=dict(config or {}),
            )
        )
    return loggers


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Close every logger; call it in `finally`, or the next run of this process continues this one's W&B run."""
    failed = sys.exc_info()[0] is not None
    for logger in loggers:
        if isinstance(logger, NeverFatalWandbLogger):
            logger.finish(1 if failed else 0)
        else:
            logger.finalize("failed" if failed else "success")


class NeverFatalWandbLogger(WandbLogger):
    """Weights & Biases that asks nothing, uploads no code or models, and whose failure costs a warning.

    A run that cannot go online goes offline. The first failure later switches W&B off for the rest of the run. The
    run's id is kept in wandb_id.txt, so that a resumed run is the same run. `init` goes to `wandb.init`.
    """

    def __init__(self, run_dir: Path, *, mode: str, **init: Any) -> None:
        self.run_dir = run_dir
        self._off = self._fitted = False
        # `offline=True` of the parent would set WANDB_MODE for the whole process: the mode goes to wandb.init.
        settings = wandb.Settings(
            silent=True,
            console="off",
            save_code=False,
            disable_code=True,
            init_timeout=10,
            finish_timeout=_FINISH_SECONDS,
        )
        super().__init__(save_dir=str(run_dir), log_model=False, mode=mode, settings=settings, **init)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Return the W&B run, begun at first use, or a stand-in that does nothing."""
        if self._experiment is None and not self._off:
            self._begin()
        return DummyLogger().experiment if self._off else self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; after `fit` to the summary, those of the validation split as best/..., not val/..."""
        values = {k: float(v) for k, v in metrics.items() if k != "epoch"}  # of which there is one, mostly
        if self._fitted:
            best = {k.replace("val/", "best/"): v for k, v in values.items()}
            self._guard(lambda: self.experiment.summary.update(best))
        elif values:
            self.log_payload(values, None if step is None else step + 1)

    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`."""
        self._fitted = True

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Add to the run's configuration."""
        self._guard(lambda: WandbLogger.log_hyperparams(self, params))

    @rank_zero_only
    def log_payload(self, payload: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, images or tables after `step` finished steps."""
        axis = {} if step is None else {_STEP_AXIS: step}
        self._guard(lambda: self.experiment.log({**payload, **axis}))

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """End the run; what is logged later goes nowhere."""
        run, self._experiment, self._off = self._experiment, None, True
        if run is None:
            return
        # W&B's own limit is in its settings; what its service does not answer to at all is left behind
        faults: list[Exception] = []
        ending = threading.Thread(target=_finish, args=(run, exit_code, faults), daemon=True)
        ending.start()
        ending.join(_FINISH_SECONDS + 15)
        if ending.is_alive():
            log.warning("W&B does not finish its run; it is left, upload it with `wandb sync`")
        for error in faults:
            log.warning("W&B could not finish its run (%s: %s)", type(error).__name__, error)
        if ending.is_alive() or faults:
            _end_service(hangs=ending.is_alive())

    def _begin(self) -> None:
        self._wandb_init["id"] = self._id = _run_id(self.run_dir / "wandb_id.txt")
        try:
            if self._wandb_init["mode"] == "online":
                self._begin_online()
            else:
                self._init()
        except Exception as error:
            self._give_up(error)
            _end_service(hangs=False)
            return
        run = self._experiment
        assert run is not None
        folder = Path(run.dir).parent
        if self._wandb_init["mode"] == "online":
            log.info("W&B: online, %s", run.url)
        else:
            log.info("W&B: offline; look with `wandb leet %s`, upload with `wandb sync %s`", folder, folder)

    def _begin_online(self) -> None:
        end = time.monotonic() + _ONLINE_SECONDS
        try:
            if not wandb.login(prompt=False):
                raise RuntimeError("no API key; run `wandb login` once")
        except Exception as error:
            self._go_offline(error)
            return
        try:
            self._wandb_init["settings"].init_timeout = max(end - time.monotonic(), 2.0)
            self._init()
        except Exception as error:
            # W&B's service holds the id of a run that it could not begin, and refuses or waits for ever if it is
            # used again: this part of the run gets another.
            kept, self._id = self._id, secrets.token_hex(4)
            self._wandb_init["id"] = self._id
            self._go_offline(error)
            log.warning("W&B: add `--id %s` to `wandb sync`, and it is the same run", kept)

    def _go_offline(self, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("W&B cannot go online (%s); goes on offline", reason)
        self._wandb_init["mode"] = "offline"
        self._init()

    def _init(self) -> None:
        arguments = {k: v for k, v in self._wandb_init.items() if k not in ("resume", "anonymous")}
        if self._wandb_init["mode"] == "online":
            arguments["resume"] = "allow"  # offline there is nothing to ask
        run = wandb.init(**arguments, reinit="create_new")
        run.define_metric(_STEP_AXIS)
        run.define_metric("*", step_metric=_STEP_AXIS, step_sync=True)
        for name, summary in _SUMMARIES.items():  # an exact definition does not inherit from "*"
            run.define_metric(name, step_metric=_STEP_AXIS, summary=summary)
        self._experiment = run

    def _guard(self, action: Callable[[], Any]) -> None:
        if self._off:
            return
        try:
            action()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._off = True
        log.warning(
            "W&B is off for the rest of this run (%s: %s); metrics.csv goes on", type(error).__name__, error
        )


def _finish(run: Any, exit_code: int, faults: list[Exception]) -> None:
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:
        faults.append(error)


def _end_service(*, hangs: bool) -> None:
    """Give up W&B's service if it `hangs` or is dead: W&B would wait for it, for ever, when this process ends.

    A later run of this process then gets a new one.
    """
    with suppress(Exception, SystemExit):  # the latter of the exit code of what was killed
        process = wandb.setup()._connection._proc._process
        if hangs:
            process.kill()
        process.wait(1)  # raises if it lives
        wandb.teardown(1)


def _run_id(path: Path) -> str:
    """Return the id in the file, or put a new one there."""
    if path.is_file() and (kept := path.read_text().strip()):
        return kept
    new = secrets.token_hex(4)
    with replace_file(path) as file:
        file.write(f"{new}\n".encode())
    return new
