"""The efficiency comparison as a table, Markdown and JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.modules import Entry, Growth, Part, Plan
from isaseg.files import replace_file

_GIGA, _MIB = 1e9, 2**20
_COLUMNS = (
    "module",
    "parameters, M",
    "with 3×3",
    "attention, G",
    "block, G",
    "with 3×3, G",
    "scores, MiB",
    "block, MiB",
    "computed",
    "with 3×3, MiB",
    "computed",
    "block, ms",
)
_NOTES = """G: 10⁹ multiply-adds of one map, forward, as torch's flop counter counts them; attention: scores and
contexts alone. Scores: all attention maps by the definition; fused kernels (dense and ISA unless
the row says so) hold none of them. MiB: peak beyond weights and input, measured, and computed from the live
tensors. Block: the context module; with 3×3: after a 3×3 convolution with batch norm and ReLU that reduces the
input's channels. ms: medians of rounds in which the blocks took turns; the times of the growth curves are of one
run each, on a CPU with memory that is taken anew."""


def cells(entry: Entry) -> list[str]:
    """Return the row of the table."""
    block, head = entry.parts["block"], entry.parts["head"]
    return [
        entry.label,
        *(f"{part.parameters / 1e6:.2f}" for part in (block, head)),
        *(
            f"{g / _GIGA:.2f}"
            for g in (entry.attention_mult_adds, block.computed.mult_adds, head.computed.mult_adds)
        ),
        f"{entry.score_bytes / _MIB:.1f}",
        *(
            text
            for part in (block, head)
            for text in (_measured(part), f"{part.computed.peak_bytes / _MIB:.1f}")
        ),
        f"{1e3 * statistics.median(block.seconds):.1f}" if block.seconds else "",
    ]


def _measured(part: Part) -> str:
    if part.error:
        return part.error
    return "" if part.measured_bytes is None else f"{part.measured_bytes / _MIB:.1f}"


def compare(entries: Sequence[Entry]) -> dict[int, dict[str, float]]:
    """Return, by side, what ISA takes of what dense attention takes, both with their scores held.

    Of scores and contexts alone, measured: mult_adds, memory. Of the attention maps by their definition: scores. Of the
    whole block, projections too: block_mult_adds, and block_memory where it was measured.
    """
    found = {}
    for isa in entries:
        dense = [e for e in entries if (e.name, e.side) == ("dense-held", isa.side)]
        if isa.name != "isa-held" or not dense or len(isa.scores) < 2 or len(dense[0].scores) < 2:
            continue
        (other,) = dense
        mine, theirs = isa.parts["block"], other.parts["block"]
        found[isa.side] = {
            "mult_adds": isa.scores["mult_adds"] / other.scores["mult_adds"],
            "memory": isa.scores["bytes"] / max(other.scores["bytes"], 1),
            "scores": isa.score_bytes / other.score_bytes,
            "block_mult_adds": mine.computed.mult_adds / theirs.computed.mult_adds,
        }
        if mine.measured_bytes is not None and theirs.measured_bytes:
            found[isa.side]["block_memory"] = mine.measured_bytes / theirs.measured_bytes
    return found


def sentences(ratios: Mapping[int, Mapping[str, float]]) -> list[str]:
    """Return a line for each side of `compare`."""
    lines = []
    for side, ratio in ratios.items():
        percent = {key: f"{100 * value:.2f} %" for key, value in ratio.items()}
        block = f", {percent['block_memory']} of the memory" if "block_memory" in percent else ""
        lines.append(
            f"ISA of dense attention at {side}×{side}, scores held, measured: scores and contexts alone "
            f"{percent['mult_adds']} of the multiply-adds, {percent['memory']} of the memory (the scores "
            f"themselves {percent['scores']}); whole block {percent['block_mult_adds']} of the multiply-adds{block}"
        )
    return lines


def _reduction_lines(facts: Mapping[str, Any]) -> list[str]:
    return [
        f"the 3×3 convolution at {side}×{side}, the same before every block: {1e3 * statistics.median(seconds):.1f} ms"
        for side, seconds in facts["reduction_seconds"].items()
        if seconds
    ]


def show(plan: Plan, facts: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    """Print the tables and what follows from them."""
    console = Console(width=190)
    for side in plan.sides:
        made = Table(title=_title(plan, side))
        for number, name in enumerate(_COLUMNS):
            made.add_column(name, justify="right" if number else "left")
        for entry in entries:
            if entry.side == side:
                made.add_row(*cells(entry))
        console.print(made)
    for line in (*_reduction_lines(facts), *sentences(compare(entries))):
        print(line)


def show_growth(plan: Plan, curves: Sequence[Growth]) -> None:
    """Print a line for each curve."""
    for line in _growth_lines(plan, curves):
        print(line)


def markdown(plan: Plan, facts: Mapping[str, Any], entries: Sequence[Entry], curves: Sequence[Growth]) -> str:
    """Return everything as Markdown."""
    lines = ["# Efficiency of context modules", "", _machine(plan, facts), ""]
    for side in plan.sides:
        lines += [
            f"## {_title(plan, side)}",
            "",
            _line(_COLUMNS),
            _line(["---"] + ["---:"] * (len(_COLUMNS) - 1)),
        ]
        lines += [_line(cells(entry)) for entry in entries if entry.side == side]
        lines.append("")
    told = [*_reduction_lines(facts), *sentences(compare(entries))]
    lines += [_NOTES, ""] + [f"{line[0].upper()}{line[1:]}.\n" for line in told]
    if curves:
        lines += ["## Growth", "", *(f"- {line}" for line in _growth_lines(plan, curves)), ""]
        lines += ["![multiply-adds, memory and time against the side of the map](modules.png)", ""]
    return "\n".join(lines)


def save(
    plan: Plan, facts: Mapping[str, Any], entries: Sequence[Entry], curves: Sequence[Growth], folder: Path
) -> None:
    """Write modules.json and modules.md."""
    content = {
        "facts": facts,
        "setting": plan.setting._asdict(),
        "rounds": plan.rounds,
        "memory_limit": plan.memory,
        "modules": [_plain(asdict(entry)) for entry in entries],
        "isa_of_dense": {str(side): ratio for side, ratio in compare(entries).items()},
        "growth": [_plain(asdict(curve)) for curve in curves],
    }
    with replace_file(folder / "modules.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    with replace_file(folder / "modules.md") as file:
        file.write(markdown(plan, facts, entries, curves).encode())


def _plain(value: Any) -> Any:
    """Return named tuples as mappings, so that JSON keeps their names."""
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _title(plan: Plan, side: int) -> str:
    first, width = plan.setting.channels
    what = "forward and backward" if plan.setting.train else "inference"
    return f"{plan.setting.batch}×{first}×{side}×{side}, context of {width} channels, {what}, {plan.setting.dtype}"


def _machine(plan: Plan, facts: Mapping[str, Any]) -> str:
    cuda = f", CUDA {facts['cuda']}" if facts["cuda"] else ""
    return (
        f"{facts['device']}, {facts['threads']} thread(s), torch {facts['torch']}{cuda}, Python {facts['python']}; "
        f"{plan.rounds} rounds."
    )


def _growth_lines(plan: Plan, curves: Sequence[Growth]) -> list[str]:
    lines = []
    for curve in curves:
        done = [point for point in curve.points if point.seconds is not None]
        fits = "beyond 4096" if curve.largest is None else f"{curve.largest}"
        measured = f"measured up to {done[-1].side} ({done[-1].seconds:.2f} s)" if done else "not measured"
        why = next((point.stopped for point in curve.points if point.stopped), None)
        lines.append(
            f"{curve.label}: fits into {plan.memory / 2**30:.1f} GiB up to a side of {fits} (computed); {measured}"
            + (f", then {why}" if why else "")
        )
    return lines


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"
