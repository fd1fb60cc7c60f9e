"""Runs of a W&B project as run folders, so that whatever reads run folders reads them too."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import wandb
from omegaconf import OmegaConf

from isaseg import config
from isaseg.config import compose_from
from isaseg.console import counted
from isaseg.errors import ConfigError
from isaseg.files import replace_file
from isaseg.runs.history import Curve, write_history

_STEP = "trainer/global_step"
_OF_A_RUN = ("seconds_per_step", "peak_memory_mib")


def fetch_runs(project: str, folder: Path, group: str | None = None) -> Path:
    """Write config.yaml, facts.json, metrics.csv and metrics.json of every training run of a W&B project.

    What only the run folder itself has is not fetched: checkpoints, pictures, confusion matrix, IoU of each class. A run
    that W&B calls failed, crashed or killed gets failed.txt instead of metrics.json; a running one gets neither.

    Args:
        project: ENTITY/PROJECT, or PROJECT of the key's own entity.
        folder: Gets one folder for each run; those that are there already are overwritten.
        group: Only runs of this experiment or sweep; None: all.

    Returns:
        `folder`.

    Raises:
        ConfigError: If there is no key, no way to W&B, no such project, or no run in it.
    """
    if not wandb.login(prompt=False):
        raise ConfigError(
            "expected a W&B key, got none; run `wandb login` once, set WANDB_API_KEY, or read run folders instead"
        )
    known = set(compose_from("train", []))
    filters = {"jobType": "train"} | ({} if group is None else {"group": group})
    try:
        runs = list(wandb.Api().runs(project, filters=filters, lazy=False))
        with counted("fetch", len(runs), "runs") as advance:
            for run in runs:
                _write(run, folder / config.safe_name(f"{run.name}-{run.id}"), known)
                advance()
    except Exception as error:  # W&B raises many kinds for a project that does not exist
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"cannot fetch the runs of W&B's project {project!r} ({reason})") from error
    if not runs:
        of_group = "" if group is None else f" of group {group!r}"
        raise ConfigError(f"expected training runs{of_group} in W&B's project {project!r}, got none")
    return folder


def _write(run: Any, folder: Path, known: Collection[str]) -> None:
    """Write the folder of a run; the keys of its configuration that conf/train.yaml does not know are facts."""
    given = {key: value for key, value in run.config.items() if not key.startswith("_")}
    settings = {key: value for key, value in given.items() if key in known}
    summary = dict(run.summary_metrics)
    files = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(settings)),
        "facts.json": json.dumps({key: value for key, value in given.items() if key not in known}),
    }
    if run.state == "finished":
        files["metrics.json"] = json.dumps(_metrics(summary))
    elif run.state != "running":
        files["failed.txt"] = f"W&B says: {run.state}\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "failed.txt"):
        (folder / name).unlink(missing_ok=True)
    write_history(folder, _curves(run.scan_history(use_cache=False)))
    for name, text in files.items():
        with replace_file(folder / name) as file:
            file.write(text.encode())


def _metrics(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of metrics.json; W&B has the scores of the best checkpoint as best/..."""
    best = {key.replace("best/", "val/"): value for key, value in summary.items() if key.startswith("best/")}
    step = {"step": best.pop("val/step")} if "val/step" in best else {}
    others = {k: v for k, v in summary.items() if k.startswith("test/") or k in _OF_A_RUN}
    return {key: value for key, value in {**best, **others, **step}.items() if _is_number(value)}


def _curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the numbers of training and validation by step."""
    curves: dict[str, Curve] = {}
    for row in rows:
        if _is_number(row.get(_STEP)):
            for key, value in row.items():
                if key.startswith(("train/", "val/")) and _is_number(value):
                    curves.setdefault(key, {})[int(row[_STEP])] = value
    return curves


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
