"""`modules`: parameters, multiply-adds, memory and time of every context module, and how they grow with the map."""

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.context_parts import MODULES, Setting, context_module, prepare, rules
from benchmarks.counting import Counter
from benchmarks.growth_figure import plot_growth
from benchmarks.harness import MIB, Report, Row, Served, counterpart, ours, started, take_turns
from benchmarks.serve import Answer, Timer, Work, serve
from isaseg.errors import ConfigError
from isaseg.training.memory import map_every_tensor

REDUCTION = "3x3 convolution"  # the pipeline of what comes before every module
SIDES = (32, 48, 64, 96, 128, 192, 256, 384, 512)  # of the growth curves


def benchmark(options: Namespace) -> None:
    """Measure memory in one process after the other, then time in turns; then, if asked, growth."""
    names = options.modules or list(MODULES)
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        raise ConfigError(f"expected --modules among {', '.join(MODULES)}, got '{unknown[0]}'")
    setting = Setting((options.channels[0], options.channels[1]), options.device, options.dtype)
    limit = int(1e9 * options.memory) if options.memory else free_memory(options.device)
    task = {"setting": setting, "threads": options.threads, "device": options.device}
    untimed = {name: ours("modules", module=name, timed=False, **task) for name in names}
    timed = {name: ours("modules", module=name, timed=True, **task) for name in [*names, REDUCTION]}
    title = "context modules of {1} channels after {0}, inference".format(*setting.channels)
    report = Report("modules", title, columns=_COLUMNS)
    for name in names:
        parts = ("block", "head", "scores") if name.endswith("-held") else ("block", "head")
        works = [f"{part} {side}" for side in options.sizes for part in parts]
        report.measure({name: untimed[name]}, computed_rows(name, setting, works, limit), rounds=0)
    rows = [row for row in report.rows if row.work.startswith("block")]
    rows += [Row(f"reduction {side}", setting.dtype, REDUCTION) for side in options.sizes]
    report.measure(timed, sorted(rows, key=lambda row: row.side), options.rounds, memory=False)
    report.rows = sorted(dict.fromkeys(report.rows), key=lambda row: (row.side, row.work))
    report.facts["memory_limit"] = limit
    report.lines = isa_of_dense(report.rows)
    report.publish(options.folder)  # growth takes longer, and may be interrupted
    if options.growth is not None:
        sides = sorted(set(options.growth)) or SIDES
        grown = []
        for name in names:
            rows = computed_rows(name, setting, [f"growing {side}" for side in sides], limit)
            with started({name: untimed[name]}) as served:
                measure_growth(served[name], rows, options.seconds)
            largest = Counter(name, setting).largest_side(limit)
            report.lines.append(growth_line(rows, limit, largest))
            grown += rows
        plot_growth(grown, limit, options.folder / "modules.png")
        report.rows += grown
        report.lines.append("\n![growth with the side of the map](modules.png)")
        report.publish(options.folder)


_COLUMNS = {
    head: lambda rows, row, key=key, unit=unit: f"{row.counts[key] / unit:.2f}" if key in row.counts else ""
    for head, key, unit in (
        ("computed MiB", "computed_bytes", MIB),
        ("parameters, M", "parameters", 1e6),
        ("multiply-adds, G", "mult_adds", 1e9),
        ("of attention, G", "attention_mult_adds", 1e9),
        ("scores, MiB", "score_bytes", MIB),
    )
}


def computed_rows(name: str, setting: Setting, works: Sequence[str], limit: int) -> list[Row]:
    """Return rows with what is computed of a module: parameters, multiply-adds and memory.

    Rows that need more than `limit` bytes have an error, so that they are not measured.
    """
    counter = Counter(name, setting)
    first, width = setting.channels
    parameters = sum(p.numel() for p in counter.module.parameters())
    rows = []
    for work in works:
        part, side = work.split()[0].replace("growing", "block"), int(work.split()[1])
        computed = counter(part, side)
        counts: dict[str, float] = {
            "mult_adds": computed.mult_adds,
            "held_bytes": computed.held_bytes,
            "computed_bytes": computed.peak_bytes,
        }
        if part == "head":
            counts["parameters"] = parameters + 9 * first * width + 2 * width
        elif part == "block":
            cost = counter.module.cost(side, side)  # type: ignore[operator]
            assert cost.mult_adds == computed.mult_adds, f"{name}: cost() is not what torch counts"
            element = getattr(torch, setting.dtype).itemsize
            counts |= {"parameters": parameters, "attention_mult_adds": cost.attention_mult_adds}
            counts |= {"score_bytes": element * cost.score_entries}
        fits = computed.held_bytes + computed.peak_bytes <= limit
        error = None if fits else f"more than {limit / 2**30:.3g} GiB"
        rows.append(Row(work, setting.dtype, name, counts, error=error))
    return rows


def isa_of_dense(rows: Sequence[Row]) -> list[str]:
    """Return ISA's share of what dense attention takes, both with scores held: of whole blocks, and of scores alone."""
    lines = []
    for isa in rows:
        dense = counterpart(rows, isa, "dense-held")
        if isa.pipeline == "isa-held" and dense and isa.peak_bytes is not None and dense.peak_bytes:
            shares = {"measured memory": isa.peak_bytes / dense.peak_bytes}
            for key, text in (("mult_adds", "multiply-adds"), ("score_bytes", "scores")):
                if key in isa.counts:
                    shares[text] = isa.counts[key] / dense.counts[key]
            of = ", ".join(f"{100 * share:.2f} % of the {text}" for text, share in shares.items())
            lines.append(f"- {isa.work}: with scores held, ISA takes {of} of dense attention")
    return lines


def measure_growth(process: Served, rows: Sequence[Row], seconds: int) -> None:
    """Measure one size after the other, until one fails or is expected to take more than `seconds`."""
    before: Row | None = None
    for row in rows:
        if before is not None and before.error is None:
            growth = max(
                row.counts["mult_adds"] / max(before.counts["mult_adds"], 1), (row.side / before.side) ** 2
            )
            late = 3 * before.median * growth > seconds  # each size runs three times
            row.error = row.error or (f"more than {seconds} s" if late else None)
        elif before is not None:
            row.error = before.error
        take_turns({row.pipeline: process}, [row], 1, row.work)
        before = row


def growth_line(rows: Sequence[Row], limit: int, largest: int | None) -> str:
    """Return how far a module grew, and the largest side that fits into memory."""
    done = [row for row in rows if row.seconds]
    fits = "beyond 4096" if largest is None else f"{largest}"
    measured = f"measured up to {done[-1].side} ({done[-1].median:.2f} s)" if done else "not measured"
    why = f", then {rows[-1].error}" if rows[-1].error else ""
    name = rows[0].pipeline
    return f"- {name}: fits into {limit / 2**30:.1f} GiB up to a side of {fits} (computed); {measured}{why}"


def free_memory(device: str) -> int:
    """Return nine tenths of the bytes that are free on the device."""
    if device.startswith("cuda"):
        return int(0.9 * torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(0.9 * free)


def _start(task: dict[str, Any]) -> Answer:
    name, setting = task["module"], Setting(*task["setting"])
    if not task["timed"]:
        map_every_tensor()  # exact peaks, but slower, because each tensor's pages are new

    def make(work: str, kind: str) -> Work:
        part, side = work.replace("growing", "block").split()
        module = torch.nn.Identity() if name == REDUCTION else context_module(name, setting)
        return prepare(module, part, int(side), setting)[0]

    timer = Timer(make, keep=False)

    @torch.no_grad()
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        with rules(name):
            return timer(question)

    return answer


if __name__ == "__main__":
    serve(_start)
