"""metrics.csv, the history of a run: its only reader and its only writer. Imports neither torch nor Lightning."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from isaseg.files import replace_file, write_text

log = logging.getLogger(__name__)

Curve = dict[int, float]

_NAME = "metrics.csv"


class History(NamedTuple):
    """What a metrics.csv holds.

    Attributes:
        curves: For each metric its values by step. Where a step was repeated, the later row counts.
        fault: Why not every line could be read, None if all could.
    """

    curves: dict[str, Curve]
    fault: str | None = None

    @property
    def last_step(self) -> int:
        """The last step, 0 if there is none."""
        return max((max(curve) for curve in self.curves.values()), default=0)


def read_history(folder: Path) -> History:
    """Read the metrics.csv of a run folder; a run without one has no curves.

    A line that cannot be read, such as one that a crash or a full disk cut short, is left out.
    """
    path, curves, fault = folder / _NAME, dict[str, Curve](), None
    if not path.is_file():
        return History({})
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        whole, _, rest = text.rpartition("\n")
        if rest:
            fault = "the last line is cut short"
        reader = csv.DictReader(whole.splitlines(), restkey="", restval="x")
        for cells in reader:
            try:
                step = int(cells.pop("step"))
                values = {key: float(cell) for key, cell in cells.items() if cell}
            except (KeyError, TypeError, ValueError):
                fault = f"line {reader.line_num} cannot be read"
                continue
            for key, value in values.items():
                curves.setdefault(key, {})[step] = value
    except (OSError, csv.Error) as error:
        fault = str(error)
    return History(curves, fault)


def begin_history(folder: Path, before: Path, last: int) -> None:
    """Let a run without a metrics.csv begin with the rows of the run in `before`, up to the step `last`."""
    old, new = before / _NAME, folder / _NAME
    if new.exists() or not old.is_file():
        return
    head, *rows = old.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()
    steps = [row.partition(",")[0] for row in rows]
    kept = [row for step, row in zip(steps, rows, strict=True) if step.isdigit() and int(step) <= last]
    write_text(new, "".join(f"{line}\n" for line in (head, *kept)))


class HistoryWriter:
    """Adds rows to the metrics.csv of a run; each is in the file as soon as it is added.

    A resumed run appends and drops no row. Only for a new metric, which is a new column, is the file rewritten. A row
    that cannot be written, for example on a full disk, costs one warning and is written with the next one that can be.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._columns: list[str] = []
        self._rows: list[dict[str, str]] = []
        self._stale = False  # whether the file lacks a column or a row, or ends in a part of one
        self._warned = False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step."""
        if not self._columns:
            self._read()
        self._rows.append({"step": str(step), **{key: f"{float(x):.8g}" for key, x in values.items()}})
        new = [key for key in values if key not in self._columns]
        self._columns += new
        self._stale = self._stale or bool(new)
        self._write()

    def close(self) -> None:
        """Write what is still waiting, or warn that it is lost."""
        if self._stale:
            self._write()
        if self._stale:
            log.warning("rows of %s are lost: the disk never had room for them", self._path)

    def _read(self) -> None:
        """Take over the rows of a run that is resumed, without what a crash left of a line."""
        text = self._path.read_text(encoding="utf-8", errors="replace") if self._path.is_file() else ""
        reader = csv.DictReader(text[: text.rfind("\n") + 1].splitlines(), restkey="", restval="")
        self._columns = list(reader.fieldnames or ["step"])
        self._rows = list(reader)
        self._stale = not text.endswith("\n")

    def _write(self) -> None:
        try:
            if self._stale:
                with replace_file(self._path) as file:
                    file.write(_csv(self._columns, self._rows))
            else:
                with self._path.open("ab") as file:
                    file.write(_csv(self._columns, self._rows[-1:], header=False))
            self._stale = self._warned = False
        except OSError as error:
            if not self._warned:
                log.warning("cannot write %s (%s); make room, its rows are kept", self._path, error)
            self._stale = self._warned = True


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, str]], header: bool = True) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
