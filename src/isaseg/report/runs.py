"""Finds run folders and reads them; a broken file costs one line of warning."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from omegaconf import DictConfig, OmegaConf

from isaseg.console import counted
from isaseg.errors import DataError
from isaseg.report.labels import identity_as_text
from isaseg.runs.history import Curve, History, read_history
from isaseg.runs.run_folder import failure

log = logging.getLogger(__name__)

_LARGEST = 1e100

At = Literal["last", "best"]
State = Literal["finished", "failed", "unfinished"]
Read = TypeVar("Read")


class Run(NamedTuple):
    """One run folder.

    Attributes:
        folder: Its path, as it was found.
        config: Contents of config.yaml; None if it is missing or cannot be read.
        seed: Seed, 0 if it is not known.
        state: Whether the run is finished, failed or unfinished.
        metrics: Contents of metrics.json, empty unless finished.
        facts: Contents of facts.json, empty for a run of an older version.
        history: What metrics.csv holds.
        error: First line of failed.txt, "" unless failed.
    """

    folder: Path
    config: DictConfig | None
    seed: int
    state: State
    metrics: dict[str, Any]
    facts: dict[str, Any]
    history: History
    error: str

    @property
    def max_steps(self) -> int | None:
        """The number of steps the run is to take, None if it is not known."""
        steps = None if self.config is None else number(OmegaConf.select(self.config, "trainer.max_steps"))
        return None if steps is None else int(steps)

    @property
    def scored(self) -> At:
        """The checkpoint that metrics.json is of; runs of older versions do not say, and theirs is the best one."""
        return "last" if self.metrics.get("checkpoint") == "last" else "best"

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, None if it is not known."""
        if self.scored == "best":
            step = number(self.metrics.get("step"))
            return None if step is None else int(step)
        curve = finite(self.history.curves.get("val/mIoU", {}))
        return max(curve, key=lambda step: curve[step], default=None)

    def score(self, metric: str, at: At) -> float | None:
        """Return a score of a finished run, None if it has none.

        It is of metrics.csv, and of metrics.json what that lacks or rounds, if this is of the same checkpoint.

        Args:
            metric: Such as val/mIoU.
            at: "last": at the last step that has it. "best": at the best checkpoint, that of the highest val/mIoU.
        """
        if self.state != "finished":
            return None
        curve = self.history.curves.get(metric, {})
        if self.scored == at and (at == "best" or not curve):
            return number(self.metrics.get(metric))
        step = max(curve, default=None) if at == "last" else self.best_step
        return None if step is None else number(curve.get(step))


def finite(curve: Curve) -> Curve:
    """Return a curve without NaN and infinity, in the order of its steps."""
    return {step: curve[step] for step in sorted(curve) if math.isfinite(curve[step])}


def number(value: object) -> float | None:
    """Return a number of at most 1e100, whose squares stay finite, as it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        return None
    return value


def read_runs(places: Sequence[Path]) -> list[Run]:
    """Read every run in `places`: run folders, folders above some, and `.sweep` files; each folder once.

    Raises:
        DataError: If a place does not exist or holds no run.
    """
    folders: dict[Path, Path] = {}
    for place in places:
        if not place.exists():
            raise DataError(f"expected a folder or a .sweep file, got {place}, which is not there")
        below = list(_members(place) if place.suffix == ".sweep" else _search(place))
        if not below:
            raise DataError(
                f"expected run folders (with config.yaml) in {place} or below, got none; give a run folder, a "
                "folder above some such as outputs/lamps_isa, or the .sweep file of a sweep"
            )
        for folder in below:
            folders.setdefault(folder.resolve(), folder)
    found = []
    with counted("reading runs", len(folders)) as advance:
        for folder in folders.values():
            found.append(read_run(folder))
            advance()
    return found


def _search(place: Path) -> Iterator[Path]:
    for parent, below, files in os.walk(place):
        if "config.yaml" in files or "failed.txt" in files:
            below.clear()  # a config.yaml inside a run, such as W&B's, is not another run
            yield Path(parent)
        below[:] = sorted(name for name in below if not name.startswith("."))


def _members(path: Path) -> Iterable[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"expected {path} to be a text file with one run folder per line: {error}") from error
    return (path.parent / line for line in map(str.strip, lines) if line and not line.startswith("#"))


def read_run(folder: Path) -> Run:
    """Read a run folder in whatever state it is, even one that does not exist yet."""
    config = _read(folder / "config.yaml", _config, "; the run belongs to no row")
    metrics = _read(folder / "metrics.json", _object, "; the run counts as unfinished") or {}
    facts = _read(folder / "facts.json", _object) or {}
    error, history = failure(folder), read_history(folder)
    if history.fault is not None:
        _warn(folder / "metrics.csv", history.fault, "; the run counts as unfinished")
        metrics = {}
    seed = number(OmegaConf.select(config, "seed") if config is not None else facts.get("seed"))
    return Run(
        folder,
        config,
        int(seed or 0),
        "finished" if metrics else "unfinished" if error is None else "failed",
        metrics,
        facts,
        history,
        "" if metrics or error is None else error or "no message",
    )


def _read(path: Path, read: Callable[[Path], Read], effect: str = "") -> Read | None:
    """Return what `read` makes of a file; None if there is none, or it is broken, which is one warning."""
    if not path.is_file():
        return None
    try:
        return read(path)
    except Exception as error:  # a YAML file that is cut short raises many types
        _warn(path, error, effect)
        return None


def _config(path: Path) -> DictConfig:
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ValueError("not a configuration")
    identity_as_text(config)  # raises if it is not that of a run
    return config


def _object(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _warn(path: Path, reason: object, effect: str) -> None:
    log.warning("warning: %s is broken (%s)%s", path, " ".join(str(reason).split())[:200], effect)
