"""Works of several code bases, timed in turns: `attention` and `step`; the ceilings of the machine in the same run."""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.our_blocks import CEILINGS, ceiling_amount
from benchmarks.served import Served
from benchmarks.timed import KINDS
from isaseg.console import counted
from isaseg.files import replace_file
from isaseg.models.attention import InterlacedSparseAttention, SelfAttention2d

_HERE = Path(__file__).parent
_OURS, _PEER = "isaseg", "mmsegmentation"
GROWN = (64, 128, 256, 512)  # sides of the maps over which growth is fitted


@dataclass
class Row:
    """A work of one pipeline.

    Attributes:
        work: E.g. `forward 128`.
        kind: float32, or another type under autocast.
        pipeline: Whose.
        bytes: By how much the memory rises while it runs.
        amount: Floating-point operations by the definition, or bytes copied; 0: not counted.
        done: The same as it really runs.
        seconds: Of each round.
    """

    work: str
    kind: str
    pipeline: str
    bytes: int | None
    amount: float = 0.0
    done: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """Median of the rounds."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """10⁹ operations, or bytes, that really run, a second."""
        return self.done / statistics.median(self.seconds) / 1e9


@dataclass(frozen=True)
class Plan:
    """What is asked for: sides of the maps, of how many channels, and how everything is run."""

    sides: Sequence[int]
    kinds: Sequence[str] = KINDS
    channels: int = 512
    threads: int = 1
    device: str = "cpu"
    rounds: int = 7
    peer: Path | None = None
    dense: bool = True


def attention(plan: Plan) -> tuple[dict[str, Any], list[Row]]:
    """Time the ISA block in evaluation and in training, beside mmsegmentation's, openseg's and dense attention.

    Returns:
        Facts on the machine, and the rows, the ceilings first.
    """
    labels = [_OURS, f"{_OURS}, recomputed", "openseg", *(["dense"] if plan.dense else [])]
    served = {label: _ours(plan, "attention", block=label) for label in labels}
    if plan.peer is not None:
        served[_PEER] = _peer(plan, "attention")
    served["ceiling"] = _ours(plan, "ceiling")
    modes = [f"{mode} {side}" for side in plan.sides for mode in ("forward", "training")]
    works = [(work, kind, label) for work in modes for kind in plan.kinds for label in served]
    wanted = [
        (work, kind, label)
        for work, kind, label in works
        if label != "ceiling"
        # recomputing is of training, and dense attention of two minutes and more in training not of a comparison
        and (work.startswith("training") or label != f"{_OURS}, recomputed")
        and (work.startswith("forward") or label != "dense")
    ]
    ceilings = [(work, kind, "ceiling") for kind in plan.kinds for work in _ceilings(plan)]
    return _taken(served, [*ceilings, *wanted], plan, "attention")


def step(plan: Plan, batch: int, side: int) -> tuple[dict[str, Any], list[Row]]:
    """Time a training step of ISANet R-50 on 150 classes, beside mmsegmentation's."""
    served = {_OURS: _ours(plan, "step", batch=batch, side=side)}
    if plan.peer is not None:
        served[_PEER] = _peer(plan, "step", batch=batch, side=side)
    served["ceiling"] = _ours(plan, "ceiling")
    ceilings = [(work, kind, "ceiling") for kind in plan.kinds for work in _ceilings(plan)]
    steps = [(f"step {batch}x{side}", kind, label) for kind in plan.kinds for label in list(served)[:-1]]
    return _taken(served, [*ceilings, *steps], plan, "step")


def growth(plan: Plan, sides: Sequence[int]) -> list[Row]:
    """Time the block in evaluation on growing maps."""
    served = {_OURS: _ours(plan, "attention", block=_OURS)}
    works = [(f"forward {side}", plan.kinds[0], _OURS) for side in sides]
    grown = _taken(served, works, plan, "growth", min(plan.rounds, 3))[1]
    for row in grown:
        row.work = row.work.replace("forward", "growing")  # its rounds are not those of the comparison
    return grown


def _ours(plan: Plan, what: str, **more: Any) -> Served:
    return Served([sys.executable, "-m", "benchmarks.our_blocks"], _task(plan, what, **more), plan.threads)


def _peer(plan: Plan, what: str, **more: Any) -> Served:
    return Served([str(plan.peer), str(_HERE / "mmseg_blocks.py")], _task(plan, what, **more), plan.threads)


def _task(plan: Plan, what: str, **more: Any) -> dict[str, Any]:
    task = {"what": what, "threads": plan.threads, "device": plan.device, "channels": plan.channels}
    return {**task, **more}


def _ceilings(plan: Plan) -> list[str]:
    return [work for work in CEILINGS if plan.device == "cpu" or "oneDNN" not in work]


def _taken(
    served: Mapping[str, Served],
    works: Sequence[tuple[str, str, str]],
    plan: Plan,
    title: str,
    rounds: int | None = None,
) -> tuple[dict[str, Any], list[Row]]:
    rounds = rounds or plan.rounds
    rows = {key: Row(*key, None, *_amounts(plan, *key)) for key in works}
    try:
        with counted(title, (rounds + 1) * len(works)) as advance:
            for number in range(rounds + 1):
                for key in works:
                    reply = served[key[2]].ask({"work": key[0], "kind": key[1]})
                    if number == 0:
                        rows[key].bytes = reply["bytes"]
                    else:
                        rows[key].seconds.append(reply["seconds"])
                    advance()
    finally:
        for process in served.values():
            process.end()
    facts = dict(served[_OURS].facts)
    if _PEER in served:
        facts[_PEER] = served[_PEER].facts
    return facts, list(rows.values())


def _amounts(plan: Plan, work: str, kind: str, label: str) -> tuple[float, float]:
    """Return the operations of a work by the definition, and those that really run."""
    if label == "ceiling":
        return ceiling_amount(work, kind), ceiling_amount(work, kind)
    mode, _, side = work.partition(" ")
    if mode == "step":
        return 0.0, 0.0
    times = 2.0 if mode == "forward" else 6.0  # two a multiply-add; backward twice what forward takes
    size = int(side)
    with torch.device("meta"):
        module = (SelfAttention2d if label.startswith("dense") else InterlacedSparseAttention)(plan.channels)
    cost = module.cost(size, size).mult_adds
    stages, padded = (1, size) if label.startswith("dense") else (2, size + -size % 8)
    # the output projection is applied to the values: one product of C x C at each position less
    saves = label.startswith((_OURS, "dense")) and (mode == "forward" or padded**2 > plan.channels)
    saved = stages * padded**2 * plan.channels**2 if saves else 0
    more = 4 / 3 if label.endswith("recomputed") else 1.0
    return times * cost, times * (cost - saved) * more


def ratio(rows: Sequence[Row], row: Row, pipeline: str = _PEER, kind: str | None = None) -> list[float]:
    """Return, of each round, the time of another pipeline at the same work by the row's; empty if there is none."""
    key = (row.work, kind or row.kind, pipeline)
    found = [r for r in rows if (r.work, r.kind, r.pipeline) == key]
    return [a / b for a, b in zip(found[0].seconds, row.seconds, strict=True)] if found else []


def ceiling(rows: Sequence[Row], kind: str) -> Row | None:
    """Return the fastest product of the machine in a type: what a block of products could reach at best."""
    found = [r for r in rows if r.pipeline == "ceiling" and r.kind == kind and r.work.startswith("linear")]
    return max(found, key=lambda row: row.rate) if found else None


def across(rows: Sequence[Row]) -> list[str]:
    """Return a line for each of our types: how many times as fast as the peer's float32, which is its default."""
    lines = []
    for row in rows:
        found = ratio(rows, row, kind="float32") if row.pipeline == _OURS else []
        if found:
            spread = f"{min(found):.2f} to {max(found):.2f}"
            lines.append(
                f"{row.work}: ours in {row.kind} is {statistics.median(found):.2f} ({spread}) times as fast as "
                f"{_PEER}'s in float32"
            )
    return lines


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """Return b of the least-squares fit a N^b, N pixels, of the time and of the memory of growing maps."""
    sides = [int(row.work.split()[1]) for row in rows]
    curves = {"time": [row.milliseconds for row in rows], "memory": [float(row.bytes or 0) for row in rows]}
    logs = [2 * math.log(side) for side in sides]
    return {
        name: statistics.linear_regression(logs, [math.log(v) for v in values]).slope
        for name, values in curves.items()
        if min(values) > 0
    }


def _cells(rows: Sequence[Row], row: Row) -> list[str]:
    peers = ratio(rows, row)
    most = ceiling(rows, row.kind)
    is_copy = row.work == "copy"
    rate = f"{row.rate:.1f} GB/s" if is_copy else f"{row.rate:.0f}" if row.done else ""
    return [
        row.work,
        row.kind,
        row.pipeline,
        f"{row.milliseconds:.1f}",
        f"{1e3 * min(row.seconds):.1f} to {1e3 * max(row.seconds):.1f}",
        f"{statistics.median(peers):.2f} ({min(peers):.2f} to {max(peers):.2f})" if peers else "",
        rate,
        f"{100 * row.rate / most.rate:.0f} %" if most and row.done and not is_copy else "",
        "" if row.bytes is None or row.pipeline == "ceiling" else f"{row.bytes / 2**20:.0f}",
    ]


_COLUMNS = ("work", "type", "of", "ms", "spread", "x mmseg", "GFLOP/s", "of linear", "peak MiB")


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table."""
    made = Table(title=title)
    for number, name in enumerate(_COLUMNS):
        made.add_column(name, justify="left" if number < 3 else "right")
    for row in rows:
        made.add_row(*_cells(rows, row))
    Console(width=150).print(made)


def markdown(title: str, facts: Mapping[str, Any], rows: Sequence[Row], lines: Sequence[str]) -> str:
    """Return everything as Markdown."""
    head = ["| " + " | ".join(_COLUMNS) + " |", "| --- | --- | --- | " + " | ".join(["---:"] * 6) + " |"]
    body = ["| " + " | ".join(_cells(rows, row)) + " |" for row in rows]
    machine = ", ".join(f"{key} {value}" for key, value in facts.items() if value and key != _PEER)
    return "\n".join(
        [f"# {title}", "", machine + ".", "", *head, *body, "", *(f"- {line}" for line in lines), ""]
    )


def save(
    title: str,
    facts: Mapping[str, Any],
    rows: Sequence[Row],
    lines: Sequence[str],
    folder: Path,
    name: str,
) -> None:
    """Write NAME.json and NAME.md."""
    content = {
        "title": title,
        "facts": facts,
        "rows": [
            {
                "work": row.work,
                "type": row.kind,
                "pipeline": row.pipeline,
                "milliseconds": row.milliseconds,
                "rounds": [1e3 * s for s in row.seconds],
                "times_mmseg": statistics.median(ratio(rows, row)) if ratio(rows, row) else None,
                "operations": row.amount,
                "operations_run": row.done,
                "peak_bytes": row.bytes,
            }
            for row in rows
        ],
        "said": list(lines),
    }
    with replace_file(folder / f"{name}.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    with replace_file(folder / f"{name}.md") as file:
        file.write(markdown(title, facts, rows, lines).encode())
