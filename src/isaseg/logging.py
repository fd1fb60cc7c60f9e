"""Where numbers go: metrics.csv in the run folder always, Weights & Biases beside it, never at its cost.

Both count finished optimizer steps (Lightning numbers them from 0) and hold the history of training alone: what is
evaluated after `fit`, with whatever weights, is no point of a curve.
"""

import csv
import io
import logging
import os
import secrets
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from isaseg.errors import ConfigError
from isaseg.files import replace_file

log = logging.getLogger(__name__)

_MODES = ("online", "offline", "disabled")
_STEP_AXIS = "trainer/global_step"


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
        project, group, name, tags: How W&B files the run; the group is the experiment.
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


class AppendingCsvLogger(Logger):
    """One row per step, `step,<metric>,...`, complete on disk as soon as it is logged.

    A resumed run appends and never drops a row; what it repeats stands twice, the later row holds. A new metric is
    a new column. What is new of the last row's step joins that row.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._row: dict[str, str] = {}
        self._start = 0  # where the last row begins
        self._fitted = False

    @property
    def name(self) -> str | None:
        """None."""
        return None  # Lightning makes folders of name and version; the run folder is the folder

    @property
    def version(self) -> str | None:
        """None."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The run folder."""
        return str(self.path.parent)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values, `step` as Lightning counts it."""
        values = {k: f"{float(v):.8g}" for k, v in metrics.items() if k != "epoch"}
        if not values or step is None or self._fitted:
            return
        key = str(step + 1)
        self._fit_columns(values)
        joins = self._row.get("step") == key and not any(self._row.get(k) for k in values)
        row = {**self._row, **values} if joins else {"step": key, **values}
        line = _csv([[row.get(c, "") for c in self._columns]])
        with self.path.open("r+b") as file:
            # A joined row is longer than what it overwrites, so one write does it and nothing is cut first.
            self._start = file.seek(self._start) if joins else file.seek(0, os.SEEK_END)
            file.write(line)
        self._row = row

    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`."""
        self._fitted = True

    def _fit_columns(self, values: Mapping[str, str]) -> None:
        """Make the file and its columns fit; the file is rewritten only for a new column."""
        if not self._columns:
            _drop_partial_line(self.path)
        elif all(k in self._columns for k in values):
            return
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                reader = csv.DictReader(file)
                self._columns = list(reader.fieldnames or [])
                rows = list(reader)
        new = [c for c in ("step", *values) if c not in self._columns]
        if not new:
            return
        self._columns += new
        with replace_file(self.path) as out:
            out.write(_csv([self._columns, *([r.get(c) or "" for c in self._columns] for r in rows[:-1])]))
            self._start = out.tell()
            out.write(_csv([[r.get(c) or "" for c in self._columns] for r in rows[-1:]]))


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
            silent=True, console="off", save_code=False, disable_code=True, init_timeout=20, finish_timeout=60
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
        if self._fitted:
            values = {k.replace("val/", "best/"): float(v) for k, v in metrics.items() if k != "epoch"}
            self._guard(lambda: self.experiment.summary.update(values))
        else:
            self.log_payload(metrics, None if step is None else step + 1)

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
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            log.warning("W&B could not finish its run (%s: %s)", type(error).__name__, error)

    def _begin(self) -> None:
        self._wandb_init["id"] = self._id = _run_id(self.run_dir / "wandb_id.txt")
        try:
            if self._wandb_init["mode"] == "online":
                self._begin_online()
            else:
                self._init()
        except Exception as error:
            self._give_up(error)
            return
        run = self._experiment
        assert run is not None
        folder = Path(run.dir).parent
        if self._wandb_init["mode"] == "online":
            log.info("W&B: online, %s", run.url)
        else:
            log.info("W&B: offline; look with `wandb leet %s`, upload with `wandb sync %s`", folder, folder)

    def _begin_online(self) -> None:
        try:
            if not wandb.login(prompt=False):
                raise RuntimeError("no API key; run `wandb login` once")
            self._init()
        except Exception as error:
            log.warning("W&B cannot go online (%s: %s); goes on offline", type(error).__name__, error)
            self._wandb_init["mode"] = "offline"
            self._init()

    def _init(self) -> None:
        arguments = {k: v for k, v in self._wandb_init.items() if k not in ("resume", "anonymous")}
        if self._wandb_init["mode"] == "online":
            arguments["resume"] = "allow"  # offline there is nothing to ask
        run = wandb.init(**arguments, reinit="create_new")
        run.define_metric(_STEP_AXIS)
        run.define_metric("*", step_metric=_STEP_AXIS, step_sync=True)
        # an exact definition does not inherit from "*"
        run.define_metric("val/mIoU", step_metric=_STEP_AXIS, summary="max,last")
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


def _run_id(path: Path) -> str:
    """Return the id in the file, or put a new one there."""
    if path.is_file() and (kept := path.read_text().strip()):
        return kept
    new = secrets.token_hex(4)
    with replace_file(path) as file:
        file.write(f"{new}\n".encode())
    return new


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _drop_partial_line(path: Path) -> None:
    """Cut off what a crash left of a line; it was never a row."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
