"""metrics.csv: one row a step, which survives a crash and which a resumed run continues."""

import csv
import io
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from isaseg.files import replace_file

log = logging.getLogger(__name__)


class AppendingCsvLogger(Logger):
    """One row per step, `step,<metric>,...`, complete on disk as soon as it is logged.

    A resumed run appends and never drops a row; what it repeats stands twice, the later row holds. A new metric is
    a new column. What is new of the last row's step joins that row. What cannot be written, on a full disk, costs a
    warning and is written with the next row that can.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] = []
        self._row: dict[str, str] = {}
        self._start = 0  # where the last row begins
        self._fitted = False
        self._waiting: list[tuple[str, dict[str, str]]] = []

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
        self._waiting.append((str(step + 1), values))
        self._flush()

    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`."""
        self._fitted = True
        self._flush()
        if self._waiting:
            log.warning("lost %d rows, for which there never was room in %s", len(self._waiting), self.path)
            self._waiting = []

    def _flush(self) -> None:
        try:
            while self._waiting:
                self._write(*self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            self._columns, self._row = [], {}  # a part of a line may be there: look again
            if len(self._waiting) == 1:
                log.warning(
                    "cannot write %s (%s); its rows wait until it can be: make room", self.path, error
                )

    def _write(self, key: str, values: dict[str, str]) -> None:
        self._fit_columns(values)
        joins = self._row.get("step") == key and not any(self._row.get(k) for k in values)
        if joins:
            values = {k: v for k, v in self._row.items() if k != "step"} | values
            self._waiting[0] = (key, values)  # what it joins is lost with it
        row = {"step": key, **values}
        line = _csv([[row.get(c, "") for c in self._columns]])
        with self.path.open("r+b") as file:
            # A joined row is longer than what it overwrites, so one write does it and nothing is cut first.
            self._start = file.seek(self._start) if joins else file.seek(0, os.SEEK_END)
            file.write(line)
        self._row = row

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


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _drop_partial_line(path: Path) -> None:
    """Cut off what a crash left of a line; it was never a row."""
    if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
