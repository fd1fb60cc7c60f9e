"""Time and memory of evaluation, beside mmsegmentation's: from logits to scores, and the whole network."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.served import Served
from benchmarks.work import KINDS, SETS
from isaseg.console import counted
from isaseg.errors import ConfigError
from isaseg.files import replace_file

_HERE = Path(__file__).parent


@dataclass
class Row:
    """One pipeline at one work: seconds of each round, and by how many bytes the memory rises."""

    work: str
    kind: str
    pipeline: str
    bytes: int | None
    areas: list[list[float]]
    seconds: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Median of the rounds."""
        return 1e3 * statistics.median(self.seconds)


def measure(peer: Path | None, size: Sequence[int], rounds: int) -> list[Row]:
    """Time the pipelines in turns, on one core each: a round asks each once for each work.

    Works: from coarse logits to the areas of intersection and union, at the sizes of Cityscapes and ADE20K, for logits
    as a trained network's and for noise; and from a picture to these areas, through ISANet R-50 with random weights.

    Args:
        peer: Python that has mmsegmentation; None: ours alone.
        size: (H, W) of the picture.
        rounds: Rounds.

    Raises:
        ConfigError: If a pipeline counts other areas than the other.
    """
    task = {"size": list(size)}
    served = {"isaseg": Served([sys.executable, "-m", "benchmarks.our_evaluation"], task)}
    if peer is not None:
        served["mmsegmentation"] = Served([str(peer), str(_HERE / "mmseg_evaluation.py")], task)
    works = [*((name, kind) for name in SETS for kind in KINDS), ("network", "random weights")]
    rows: dict[tuple[str, str, str], Row] = {}
    try:
        with counted("evaluate", (rounds + 1) * len(works) * len(served)) as advance:
            for number in range(rounds + 1):
                for work, kind in works:
                    for label, process in served.items():
                        reply = process.ask({"work": work, "kind": kind})
                        if number == 0:
                            rows[work, kind, label] = Row(work, kind, label, reply["bytes"], reply["areas"])
                        else:
                            rows[work, kind, label].seconds.append(reply["seconds"])
                        advance()
    finally:
        for process in served.values():
            process.end()
    found = list(rows.values())
    for row in found:
        other = _peer(found, row)
        if other is not None and row.work != "network" and _difference(row, other) > 1e-5:
            raise ConfigError(f"{row.work}, {row.kind}: the pipelines count different areas")
    return found


def table(rows: Sequence[Row]) -> Table:
    """Return milliseconds and memory, and how many times as fast as mmsegmentation."""
    made = Table(title="evaluation of one picture on one core, medians of rounds taken in turns")
    for name in ("work", "logits", "pipeline"):
        made.add_column(name)
    for name in ("ms", "x mmseg", "peak MB", "of mmseg's"):
        made.add_column(name, justify="right")
    for row in rows:
        ratio, share = _ratio(rows, row), _share(rows, row)
        made.add_row(
            row.work,
            row.kind,
            row.pipeline,
            f"{row.milliseconds:.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
            "" if share is None else f"{100 * share:.1f} %",
        )
    return made


def save(rows: Sequence[Row], path: Path) -> None:
    """Write everything that was measured as JSON."""
    content: list[dict[str, Any]] = [
        {
            "work": row.work,
            "logits": row.kind,
            "pipeline": row.pipeline,
            "milliseconds": row.milliseconds,
            "times_mmseg": _ratio(rows, row),
            "peak_bytes": row.bytes,
            "rounds": [1e3 * s for s in row.seconds],
        }
        for row in rows
    ]
    with replace_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _peer(rows: Sequence[Row], row: Row) -> Row | None:
    theirs = [r for r in rows if (r.work, r.kind, r.pipeline) == (row.work, row.kind, "mmsegmentation")]
    return theirs[0] if theirs else None


def _difference(one: Row, other: Row) -> float:
    """Return the share of the pixels in which the areas differ."""
    pairs = [(a, b) for x, y in zip(one.areas, other.areas, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / max(sum(b for _, b in pairs), 1)


def _ratio(rows: Sequence[Row], row: Row) -> float | None:
    """Return the median over the rounds of mmsegmentation's time divided by the row's; None if it was not measured."""
    peer = _peer(rows, row)
    if peer is None:
        return None
    return statistics.median(a / b for a, b in zip(peer.seconds, row.seconds, strict=True))


def _share(rows: Sequence[Row], row: Row) -> float | None:
    peer = _peer(rows, row)
    return None if peer is None or not peer.bytes or row.bytes is None else row.bytes / peer.bytes


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    Console(width=140).print(table(rows))
