"""Which run folders there are and what each of them holds; a file that is broken costs one line of warning."""

import csv
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from omegaconf import DictConfig, OmegaConf

from isaseg.console import counted
from isaseg.errors import DataError
from isaseg.report.labels import identity, printable
from isaseg.runs.run_folder import failure

log = logging.getLogger(__name__)

_LARGEST = 1e100

At = Literal["last", "best"]
Curve = dict[int, float]


class Run(NamedTuple):
    """One run folder.

    Attributes:
        folder: As it was found.
        config: Of config.yaml; None if there is none that can be read.
        seed: Seed, 0 if it is not known.
        state: "finished", "failed" or "unfinished".
        metrics: Of metrics.json, empty unless finished.
        facts: Of facts.json, empty for a run of an older version.
        history: Of metrics.csv, for each metric its values by step; of repeated steps the later row.
        error: First line of failed.txt, "" unless failed.
    """

    folder: Path
    config: DictConfig | None
    seed: int
    state: Literal["finished", "failed", "unfinished"]
    metrics: dict[str, Any]
    facts: dict[str, Any]
    history: dict[str, Curve]
    error: str

    @property
    def last_step(self) -> int:
        """The last step of metrics.csv, 0 if it has none."""
        return max((max(curve) for curve in self.history.values()), default=0)

    @property
    def max_steps(self) -> int | None:
        """Steps that it is to take, None if that is not known."""
        steps = (
            number(OmegaConf.select(self.config, "trainer.max_steps")) if self.config is not None else None
        )
        return None if steps is None else int(steps)

    def score(self, metric: str, at: At) -> float | None:
        """Return a score of a finished run, None if it has none.

        Args:
            metric: Such as val/mIoU.
            at: "last": at the last step that has it, of metrics.csv. "best": of the best checkpoint, of metrics.json.
        """
        if self.state != "finished":
            return None
        curve = self.history.get(metric, {})
        value = self.metrics.get(metric) if at == "best" else curve[max(curve)] if curve else None
        return number(value)


def number(value: object) -> float | None:
    """Return a number of at most 1e100 as it is, None for anything else: sums and squares of such stay finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
        return None
    return value


def read_runs(places: Sequence[Path]) -> list[Run]:
    """Read every run in `places`: run folders, folders that hold some, and `.sweep` files; each folder once.

    Raises:
        DataError: If a place is not there, leads out of its folder, or holds no run.
    """
    folders: dict[Path, Path] = {}
    for place in places:
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
    if not place.is_dir():
        raise DataError(f"expected a folder or a .sweep file, got {place}, which is not there")
    for parent, below, files in os.walk(place):
        if "config.yaml" in files or "failed.txt" in files:
            below.clear()  # what lies inside a run, W&B's config.yaml for one, is no other run
            yield Path(parent)
        below[:] = sorted(name for name in below if not name.startswith("."))


def _members(path: Path) -> Iterator[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected {path} to be a text file with a run folder in each line: {error}"
        ) from error
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        folder = path.parent / line
        if not folder.resolve().is_relative_to(path.parent.resolve()):
            raise DataError(
                f"expected the runs of {path} below its own folder, got {line!r}; give such run folders by themselves"
            )
        yield folder


def read_run(folder: Path) -> Run:
    """Read a run folder, whatever state it is in, even if it is not there yet."""
    config = _read_config(folder / "config.yaml")
    metrics = _read_json(folder / "metrics.json")
    facts = _read_json(folder / "facts.json") or {}
    history, whole = _read_history(folder / "metrics.csv")
    error = _failure(folder)
    if metrics and whole:
        state: Literal["finished", "failed", "unfinished"] = "finished"
    else:
        state = "unfinished" if error is None else "failed"
    seed = number(OmegaConf.select(config, "seed") if config is not None else facts.get("seed"))
    return Run(
        folder,
        config,
        int(seed or 0),
        state,
        metrics or {} if state == "finished" else {},
        facts,
        history,
        (error or "no message") if state == "failed" else "",
    )


def is_own(path: Path, folder: Path | None = None) -> bool:
    """Tell whether a file is there and inside its run folder: a link may lead to what its owner would not show."""
    try:
        return path.is_file() and path.resolve().is_relative_to((folder or path.parent).resolve())
    except (OSError, RuntimeError):  # a loop of links
        return False


def _failure(folder: Path) -> str | None:
    path = folder / "failed.txt"
    try:
        return printable(failure(folder) or "no message") if is_own(path) else None
    except OSError as error:
        _warn(path, error)
        return "no message"


def _read_config(path: Path) -> DictConfig | None:
    if not is_own(path):
        return None
    try:
        config = OmegaConf.load(path)
        # resolved when it was written: what looks like an interpolation now came from elsewhere and is not followed
        if not isinstance(config, DictConfig) or "${" in json.dumps(
            OmegaConf.to_container(config, resolve=False), default=str
        ):
            raise ValueError("not a resolved configuration")
        identity(config)  # has what a run's configuration has
    except Exception as error:  # YAML has many words for a file that is cut short
        _warn(path, error)
        return None
    return config


def _read_json(path: Path) -> dict[str, Any] | None:
    if not is_own(path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        _warn(path, error)
        return None
    return {key: printable(value) if isinstance(value, str) else value for key, value in content.items()}


def _read_history(path: Path) -> tuple[dict[str, Curve], bool]:
    """Return the curves and whether every line was whole; a line that is not is left out."""
    history: dict[str, Curve] = {}
    if not is_own(path):
        return history, True
    broken: object = None
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        end = text.rfind("\n") + 1
        if end < len(text):
            broken = "the last line is cut short"
        reader = csv.DictReader(text[:end].splitlines(), restkey="", restval="x")
        for cells in reader:
            try:
                step = int(cells.pop("step"))
                values = {key: float(cell) for key, cell in cells.items() if cell}
            except (KeyError, TypeError, ValueError):
                broken = f"line {reader.line_num} cannot be read"
                continue
            for key, value in values.items():
                history.setdefault(key, {})[step] = value
    except (OSError, csv.Error) as error:
        broken = error
    if broken is not None:
        _warn(path, broken)
    return history, broken is None


def _warn(path: Path, reason: object) -> None:
    sentence = " ".join(str(reason).split())[:200]
    counts = "" if path.name == "facts.json" else "; the run belongs to no row"
    counts = "; the run counts as unfinished" if path.name.startswith("metrics") else counts
    log.warning("warning: %s is broken (%s)%s", path, sentence, counts)
