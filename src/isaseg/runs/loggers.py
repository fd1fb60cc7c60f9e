"""Where the numbers of a run go: to metrics.csv always, and to Weights & Biases beside it.

Lightning numbers steps from 0; the loggers count finished optimizer steps. Both hold the history of training alone:
what is evaluated after `fit`, with whatever weights, is no point of a curve.
"""

import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from isaseg.errors import ConfigError
from isaseg.runs.history import HistoryWriter
from isaseg.runs.wandb_logger import NeverFatalWandbLogger

_MODES = ("online", "offline", "disabled")


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
        of_run = {
            "project": project,
            "group": group,
            "name": name,
            "tags": list(tags),
            "config": dict(config or {}),
        }
        loggers.append(NeverFatalWandbLogger(run_dir, mode=mode, job_type="train", **of_run))
    return loggers


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Close all loggers. To be called in `finally`: while an error is raised, W&B marks its run as failed."""
    failed = sys.exc_info()[0] is not None
    for logger in loggers:
        if isinstance(logger, NeverFatalWandbLogger):
            logger.finish(1 if failed else 0)
        else:
            logger.finalize("failed" if failed else "success")


class HistoryLogger(Logger):
    """Writes what Lightning logs during `fit` to the metrics.csv of a run folder."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._folder = run_dir
        self._writer = HistoryWriter(run_dir)
        self._fitted = False

    @property
    def name(self) -> str | None:
        """None: Lightning would make folders of name and version, but the run folder is the folder."""
        return None

    @property
    def version(self) -> str | None:
        """None."""
        return None

    @property
    def save_dir(self) -> str | None:
        """The run folder."""
        return str(self._folder)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values; `step` is as Lightning counts it."""
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        if values and step is not None and not self._fitted:
            self._writer.add(step + 1, values)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`."""
        self._fitted = True
        self._writer.close()
