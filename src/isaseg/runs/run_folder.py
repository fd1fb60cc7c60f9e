"""What a run folder says of its run: finished, failed, how far. No torch: it is asked before anything starts."""

import csv
import json
import logging
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg import config

log = logging.getLogger(__name__)


def finished_metrics(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """Return what metrics.json holds if the run that `cfg` describes is complete in `folder`, else None.

    A run that was not scored on the test split is not complete for a configuration that asks for it.
    """
    if cfg.resume not in ("auto", "must") or not (folder / "metrics.json").is_file():
        return None
    if not config.same_run(cfg, folder):
        return None
    if cfg.score_test and not OmegaConf.load(folder / "config.yaml").score_test:
        return None
    return read_metrics(folder)


def told_complete(cfg: DictConfig) -> dict[str, Any] | None:
    """Return what metrics.json holds if the run is complete, and say so; None too where `cfg` is faulty."""
    try:
        folder = config.run_dir(cfg)
        metrics = finished_metrics(cfg, folder)
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError):  # `config.check` tells
        return None
    if metrics is not None:
        log.info(
            "%s is complete (mIoU %s at step %s); resume=never trains it again",
            folder,
            metrics["val/mIoU"],
            metrics["step"],
        )
    return metrics


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return what metrics.json holds, None if there is none that is whole."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) else None


def last_step(folder: Path) -> int:
    """Return the last step in metrics.csv, 0 if there is none."""
    path = folder / "metrics.csv"
    try:
        with path.open(newline="", errors="replace") as file:
            steps = [row["step"] for row in csv.DictReader(file) if row.get("step")]
    except (OSError, csv.Error):
        return 0
    return int(steps[-1]) if steps and steps[-1].isdigit() else 0


def record_failure(cfg: DictConfig, error: Exception) -> None:
    """Write failed.txt where a run, or the sweep that started it, has made a folder; a typo makes none."""
    with suppress(Exception):  # of a configuration that does not even give a name
        folder = config.run_dir(cfg)
        if folder.is_dir():
            write_failure(folder, error)


def write_failure(folder: Path, error: BaseException | str) -> None:
    """Write failed.txt, one sentence and then the traceback, unless another process of the run was first.

    The first is the cause: what the other processes of a run say after that is that they have lost a partner.
    """
    if isinstance(error, str):
        text = error
    else:
        sentence = " ".join(str(error).split()) or type(error).__name__
        text = f"{sentence}\n\n{''.join(traceback.format_exception(error))}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / "failed.txt").open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return


def failure(folder: Path) -> str | None:
    """Return the first line of failed.txt, None if the run has not failed."""
    path = folder / "failed.txt"
    if not path.is_file():
        return None
    return (path.read_text(errors="replace").splitlines() or [""])[0]
