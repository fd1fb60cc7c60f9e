"""`modules`: parameters, multiply-adds, memory and time of every context module, and how they grow with the map."""

import math
import os
import resource
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import MIB, Cell, Measurement, Report, Served, counterpart, ours, started, take_turns
from benchmarks.serve import Answer, Timer, Work, serve
from isaseg import config
from isaseg.models.attention_cores import dense
from isaseg.models.attention_kernels import by_definition
from isaseg.models.head import ContextHead
from isaseg.models.layers import conv_norm_act
from isaseg.models.regroup import interlace, split_windows
from isaseg.training.memory import map_every_tensor

SIDES = (32, 48, 64, 96, 128, 192, 256, 384, 512)  # of the growth curves


def benchmark(options: Namespace) -> None:
    """Measure memory in one process after the other, then time in turns; then, if asked, growth.

    Measured are the context module ("block"), the module after the 3x3 convolution that reduces the channels ("head"; of
    "none" that is the convolution alone), the scores and contexts of ISA and dense attention alone ("scores"), and of
    both what the authors' script measures of ISA: 3x3 convolution, module and fusing convolution ("whole";
    openseg.pytorch, branch pytorch-1.7, lib/models/modules/isa_block.py).
    """
    names = options.modules
    limit = MIB * options.memory if options.memory else _memory_of(torch.device(options.device)) // 2
    task = {key: getattr(options, key) for key in ("channels", "device", "threads")}
    alone = {name: ours("modules", module=name, memory=limit, **task) for name in names}
    in_turn = {name: ours("modules", module=name, memory=None, **task) for name in names}
    title = "context modules of {1} channels after {0}, inference".format(*options.channels)
    report = Report("modules", title, columns=_COLUMNS, facts={"memory_limit": limit})
    for name in names:
        more = {"isa": ["whole"], "dense": ["whole"], "isa-held": ["scores"], "dense-held": ["scores"]}
        parts = ["block", "head", *more.get(name, [])]
        works = [f"{part} {side}" for part in parts for side in options.sizes]
        report.measure({name: alone[name]}, counted_rows(name, works, options), rounds=0)
    heads = [row for row in report.rows if row.pipeline == "none" and row.work.startswith("head")]
    timed = [*heads, *(row for row in report.rows if row.work.startswith(("block", "whole")))]
    report.measure(in_turn, sorted(timed, key=lambda row: row.side), options.rounds, memory=False)
    report.rows = sorted(dict.fromkeys(report.rows), key=lambda row: (row.side, row.work))
    report.lines += isa_of_dense(report.rows)
    report.publish(options.folder)  # growth takes longer, and may be interrupted
    if options.growth is not None:
        from benchmarks.growth_figure import plot_growth  # the measured processes need no matplotlib

        works = [f"growing {side}" for side in sorted(set(options.growth)) or SIDES]
        grown = []
        for name in names:
            rows = counted_rows(name, works, options)
            with started({name: alone[name]}) as served:
                measure_growth(served[name], rows, options.seconds)
            grown += rows
            report.lines += exponents(name, rows)
        plot_growth(grown, options.folder / "modules.png")
        report.rows += grown
        report.lines.append("\n![growth with the side of the map](modules.png)")
        report.publish(options.folder)


def _memory_of(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _scaled(key: str, unit: float) -> Cell:
    return lambda rows, row: f"{row.counts[key] / unit:.2f}" if row.counts.get(key) else ""


_COLUMNS = {
    "parameters, M": _scaled("parameters", 1e6),
    "multiply-adds, G": _scaled("mult_adds", 1e9),
    "of attention, G": _scaled("attention_mult_adds", 1e9),
    "scores, MiB": _scaled("score_bytes", MIB),
}


def counted_rows(name: str, works: Sequence[str], options: Namespace) -> list[Measurement]:
    """Return rows with the parameters, the multiply-adds and the score memory of a module."""
    first, width = options.channels
    with torch.device("meta"):
        module: Any = context_module(name, width)
    parameters = sum(p.numel() for p in module.parameters())
    rows = []
    for work in works:
        row = Measurement(work, options.dtype, name)
        cost = module.cost(row.side, row.side)
        convs = [9 * first * width] if work.startswith(("head", "whole")) else []
        convs += [2 * width * width] if work.startswith("whole") else []
        row.counts = {
            "mult_adds": cost.mult_adds + sum(convs) * row.side**2,
            "attention_mult_adds": cost.attention_mult_adds,
            "score_bytes": cost.score_entries * getattr(torch, options.dtype).itemsize,
            "parameters": parameters + sum(convs) + 2 * width * len(convs),  # each with a batch norm
        }
        if work.startswith("scores"):
            row.counts |= {"mult_adds": cost.attention_mult_adds, "parameters": 0}
        rows.append(row)
    return rows


def isa_of_dense(rows: Sequence[Measurement]) -> list[str]:
    """Return ISA's share of what dense attention takes, both with scores held: of whole blocks, and of scores alone."""
    lines = []
    for isa in rows:
        other = counterpart(rows, isa, "dense-held")
        if isa.pipeline == "isa-held" and other and isa.peak_bytes is not None and other.peak_bytes:
            work = f"{100 * isa.counts['mult_adds'] / other.counts['mult_adds']:.2f} % of the multiply-adds"
            memory = f"{100 * isa.peak_bytes / other.peak_bytes:.2f} % of the measured memory"
            lines.append(f"- {isa.work}: with scores held, ISA takes {work} and {memory} of dense attention")
    return lines


def measure_growth(process: Served, rows: Sequence[Measurement], seconds: int) -> None:
    """Measure one size after the other, until one fails or is expected to take more than `seconds`."""
    before: Measurement | None = None
    for row in rows:
        if before is not None and before.error is None:
            work = row.counts["mult_adds"] / max(before.counts["mult_adds"], 1)
            expected = before.median * max(work, (row.side / before.side) ** 2)
            row.error = f"more than {seconds} s" if 3 * expected > seconds else None  # it runs three times
        elif before is not None:
            row.error = before.error
        take_turns({row.pipeline: process}, [row], 1, f"{row.pipeline} {row.side}")
        before = row


def exponents(name: str, rows: Sequence[Measurement]) -> list[str]:
    """Return a line with b of the least-squares fit a N^b to the time and to the memory of maps of N pixels."""
    fitted = [row for row in rows if row.seconds and row.peak_bytes]
    if len(fitted) < 2:
        return []
    pixels = [2 * math.log(row.side) for row in fitted]
    time, memory = (
        statistics.linear_regression(pixels, [math.log(value) for value in values]).slope
        for values in ([row.median for row in fitted], [row.peak_bytes or 0 for row in fitted])
    )
    sides = f"{fitted[0].side}² to {fitted[-1].side}²"
    return [
        f"- {name}: from {sides}, time grows as N^{time:.2f} and memory as N^{memory:.2f} with the pixels N"
    ]


def context_module(name: str, channels: int) -> nn.Module:
    """Return a context module of `conf/attention`; one whose name ends in "-held" is the same."""
    cfg = config.compose_from("train", [f"attention={name.removesuffix('-held')}"])
    module: nn.Module = config.build(cfg.attention, "attention")(channels)
    return module


def scores_work(module: Any, side: int, place: dict[str, Any]) -> Work:
    """Return the attention of ISA or dense attention alone, given queries, keys and values in their groups."""
    stages: dict[str, Callable[..., Tensor]] = {"block": lambda x, group_size: x}
    group_size = getattr(module, "group_size", (1, 1))
    if hasattr(module, "group_size"):
        stages = {"long_range": interlace, "short_range": split_windows}
    side += -side % max(group_size)
    groups = []
    for name, split in stages.items():
        block = getattr(module, name)
        widths = (block.key_channels, block.key_channels, block.value_channels)
        groups.append([split(torch.randn((1, c, side, side), **place), group_size) for c in widths])

    def attend() -> None:
        for query, key, value in groups:
            dense(query, key, value)  # freed before the next stage attends

    return attend


def _start(task: dict[str, Any]) -> Answer:
    name, (first, width) = task["module"], task["channels"]
    if task["memory"] is not None:
        map_every_tensor()  # exact peaks, but slower, because each tensor's pages are new
        _limit_memory(task["memory"], task["device"])

    def make(work: str, kind: str) -> Work:
        part, side = work.split()
        place: dict[str, Any] = {"device": task["device"], "dtype": getattr(torch, kind)}
        module = context_module(name, width)
        if part == "scores":
            return scores_work(module, int(side), place)
        if part == "head":
            module = nn.Sequential(conv_norm_act(first, width, 3), module)
        elif part == "whole":
            whole = ContextHead(first, width, 1, lambda channels: module, dropout=0)
            whole.set_submodule("classifier", nn.Identity())
            module = whole
        run = module.to(**place).eval()
        x = torch.randn((1, first if part in ("head", "whole") else width, int(side), int(side)), **place)
        return lambda: run(x)

    timer = Timer(make, keep=False)

    @torch.no_grad()
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        with by_definition() if name.endswith("-held") else nullcontext():
            return timer(question)

    return answer


def _limit_memory(limit: int, device: str) -> None:
    """Make allocations beyond `limit` bytes fail, so that the system need not kill a process."""
    if device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
    elif sys.platform == "linux":
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    serve(_start)
