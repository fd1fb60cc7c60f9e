"""Whether a run is finished or has failed, by its folder. Without torch, because it is asked before anything starts."""

import json
import logging
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.console import percent
from isaseg.errors import ConfigError, DataError, one_line
from isaseg.files import write_text
from isaseg.runs.stale import Staleness, staleness

log = logging.getLogger(__name__)


class Finished(NamedTuple):
    """A run that is complete.

    Attributes:
        metrics: What metrics.json holds.
        stale: How the code and the files that are here differ from those of the run.
        kept: Whether it counts as complete all the same: its files are there, and with `stale=warn` they may differ.
    """

    metrics: dict[str, Any]
    stale: Staleness
    kept: bool


def finished_run(cfg: DictConfig, folder: Path) -> Finished | None:
    """Return the run that `cfg` describes if it is complete in `folder`, else None.

    A run that was not scored on the test split is not complete for a configuration that asks for that score.
    """
    if cfg.resume not in ("auto", "must", "extend") or not (folder / "metrics.json").is_file():
        return None
    if not config.same_run(cfg, folder):
        return None
    if cfg.score_test and not OmegaConf.load(folder / "config.yaml").score_test:
        return None
    metrics = read_metrics(folder)
    if metrics is None:
        return None
    found = staleness(cfg, read_facts(folder))
    return Finished(metrics, found, not found.gone and (not found.changed or cfg.stale == "warn"))


def report_if_complete(cfg: DictConfig) -> dict[str, Any] | None:
    """Log that the run is complete and return what metrics.json holds; None if it is not, or if `cfg` is faulty.

    Raises:
        DataError: If files of the run are gone, unless `stale=retrain`.
        ConfigError: If it is of other code or files and `stale=refuse`.
    """
    try:
        folder = config.run_dir(cfg)
        found = finished_run(cfg, folder)
    except (OmegaConfBaseException, AttributeError, KeyError, TypeError):  # `config.checks` will say why
        return None
    if found is None or (not found.kept and cfg.stale == "retrain"):
        return None
    if found.stale.gone:
        raise DataError(
            f"expected the files that {folder} was trained on, got fewer: {found.stale.gone}; restore them, give "
            "data.root, train on what is left with stale=retrain, or read the old scores in "
            f"{folder}/metrics.json"
        )
    if not found.kept:
        raise ConfigError(
            f"expected {folder} to match the current code and files, got {found.stale.changed}; "
            "stale=retrain trains it again, stale=warn returns its old result"
        )
    score, step = percent(found.metrics["val/mIoU"]), found.metrics["step"]
    log.info("%s is complete (mIoU %s %% at step %s); resume=never trains it again", folder, score, step)
    if extends := read_facts(folder).get("extends"):
        message = "it extends %s: up to step %s, its learning rates were those of that shorter run"
        log.warning(message, extends["run"], extends["step"])
    if found.stale.changed:
        log.warning(
            "this result is stale: it was computed with %s; stale=retrain trains it again",
            found.stale.changed,
        )
    return found.metrics


def with_fresh_start(cfg: DictConfig, folder: Path) -> DictConfig:
    """Return the configuration, with resume=never where stale=retrain has to train a complete run again; logs why."""
    found = finished_run(cfg, folder) if cfg.stale == "retrain" else None
    if found is None or found.kept:
        return cfg
    log.info("%s is trained again, for it is stale: %s", folder, found.stale.gone or found.stale.changed)
    fresh = OmegaConf.merge(cfg, {"resume": "never"})
    assert isinstance(fresh, DictConfig)
    return fresh


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return what metrics.json holds, None if there is none or it is not whole."""
    return read_json(folder / "metrics.json")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what facts.json holds, nothing if there is none or it is not whole."""
    return read_json(folder / "facts.json") or {}


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a file of JSON, None if there is none or it is not whole."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write strict JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def record_failure(cfg: DictConfig, error: Exception) -> None:
    """Write failed.txt if the run, or the sweep that started it, has made a folder; a typo makes none.

    A complete run that is refused, as with `stale=refuse`, has not failed: training again removes metrics.json first.
    """
    with suppress(Exception):  # a faulty configuration may not even give a name
        folder = config.run_dir(cfg)
        if folder.is_dir() and not (folder / "metrics.json").is_file():
            write_failure(folder, error)


def write_failure(folder: Path, error: BaseException | str) -> None:
    """Write failed.txt, one sentence and then the traceback, unless another process of the run was first.

    The first error is the cause; those of the other processes only say that they have lost a partner.
    """
    if isinstance(error, BaseException):
        error = f"{one_line(error)}\n\n{''.join(traceback.format_exception(error))}"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), (folder / "failed.txt").open("x", encoding="utf-8") as file:
        file.write(error)


def failure(folder: Path) -> str | None:
    """Return the first line of failed.txt, None if the run has not failed."""
    path = folder / "failed.txt"
    if not path.is_file():
        return None
    return (path.read_text(errors="replace").splitlines() or [""])[0]
