"""Whether a run is finished or has failed, by its folder. Without torch, because it is asked before anything starts."""

import json
import logging
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.console import percent
from isaseg.files import replace_file

log = logging.getLogger(__name__)


def finished_metrics(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """Return what metrics.json holds if the run that `cfg` describes is complete in `folder`, else None.

    A run that was not scored on the test split is not complete for a configuration that asks for that score.
    """
    if cfg.resume not in ("auto", "must") or not (folder / "metrics.json").is_file():
        return None
    if not config.same_run(cfg, folder):
        return None
    if cfg.score_test and not OmegaConf.load(folder / "config.yaml").score_test:
        return None
    return read_metrics(folder)


def report_if_complete(cfg: DictConfig) -> dict[str, Any] | None:
    """Log that the run is complete and return what metrics.json holds; None if it is not, or if `cfg` is faulty."""
    try:
        folder = config.run_dir(cfg)
        metrics = finished_metrics(cfg, folder)
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError):  # `config.checks` will say why
        return None
    if metrics is not None:
        score, step = percent(metrics["val/mIoU"]), metrics["step"]
        log.info("%s is complete (mIoU %s %% at step %s); resume=never trains it again", folder, score, step)
    return metrics


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return what metrics.json holds, None if there is none or it is not whole."""
    return read_json(folder / "metrics.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a file of JSON, None if there is none or it is not whole."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write strict JSON, whole or not at all."""
    with replace_file(path) as file:
        file.write((json.dumps(content, indent=indent, allow_nan=False) + "\n").encode())


def record_failure(cfg: DictConfig, error: Exception) -> None:
    """Write failed.txt if the run, or the sweep that started it, has made a folder; a typo makes none."""
    with suppress(Exception):  # a faulty configuration may not even give a name
        folder = config.run_dir(cfg)
        if folder.is_dir():
            write_failure(folder, error)


def write_failure(folder: Path, error: BaseException | str) -> None:
    """Write failed.txt, one sentence and then the traceback, unless another process of the run was first.

    The first error is the cause; those of the other processes only say that they have lost a partner.
    """
    if isinstance(error, str):
        text = error
    else:
        sentence = " ".join(str(error).split()) or type(error).__name__
        text = f"{sentence}\n\n{''.join(traceback.format_exception(error))}"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), (folder / "failed.txt").open("x", encoding="utf-8") as file:
        file.write(text)


def failure(folder: Path) -> str | None:
    """Return the first line of failed.txt, None if the run has not failed."""
    path = folder / "failed.txt"
    if not path.is_file():
        return None
    return (path.read_text(errors="replace").splitlines() or [""])[0]
