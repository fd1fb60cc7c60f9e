"""`attention`: the ISA block beside mmsegmentation's, openseg's, dense attention and the ceilings of the machine."""

import math
import statistics
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.ceilings import CEILING, SPEEDS, ceiling_rows
from benchmarks.harness import OURS, PEER, Measurement, Report, ours, ours_and_peer
from benchmarks.openseg_block import OpensegBlock
from benchmarks.serve import Timer, Work, serve
from benchmarks.works import feature_map, pass_through
from isaseg.models.baselines import SelfAttention2d
from isaseg.models.fuse import fuse
from isaseg.models.interlaced import InterlacedSparseAttention

RECOMPUTED, DENSE, OPENSEG = f"{OURS}, recomputed", "dense", "openseg"
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    OURS: InterlacedSparseAttention,
    RECOMPUTED: lambda channels: InterlacedSparseAttention(channels, recompute=True),
    OPENSEG: OpensegBlock,
    DENSE: SelfAttention2d,
}
SIDES = (64, 128, 256, 512)  # of the maps over which growth is fitted


def benchmark(options: Namespace) -> None:
    """Measure forward passes, and forward with backward passes; then, if asked, how the block grows with the map."""
    common = {"channels": options.channels, "threads": options.threads, "device": options.device}
    blocks = [name for name in BLOCKS if name != DENSE or not options.no_dense]
    tasks = ours_and_peer(options.peer, "attention", block=OURS, **common)
    tasks |= {name: ours("attention", block=name, **common) for name in blocks}
    rows = [
        Measurement(f"{mode} {side}", kind, name, operations(options.channels, mode, side, name))
        for side in options.sizes
        # only training can be recomputed, and dense attention takes minutes to train
        for mode, left_out in (("forward", RECOMPUTED), ("training", DENSE))
        for kind in options.types
        for name in tasks
        if name != left_out
    ]
    title = f"ISA block of {options.channels} channels, groups of 8×8"
    report = Report("attention", title, columns=SPEEDS)
    ceilings = ceiling_rows(options.types, options.device)
    report.measure({**tasks, CEILING: ours("ceilings", **common)}, [*ceilings, *rows], options.rounds)
    report.publish(options.folder)  # growth takes longer, and may be interrupted
    if options.growth is not None:
        kind, sides = options.types[0], sorted(set(options.growth)) or SIDES
        counts = {side: operations(options.channels, "forward", side, OURS) for side in sides}
        grown = [Measurement(f"growing {side}", kind, OURS, counts[side]) for side in sides]
        report.measure({OURS: tasks[OURS]}, grown, min(options.rounds, 3))
        report.lines += [
            f"- {name} grows as N^{power:.2f} with the number of pixels N, from {sides[0]}² to {sides[-1]}²"
            for name, power in exponents(grown).items()
        ]
        report.publish(options.folder)


def operations(channels: int, mode: str, side: int, pipeline: str) -> dict[str, float]:
    """Return the floating-point operations of a pass by its definition, and those that really run."""
    with torch.device("meta"):
        module = (SelfAttention2d if pipeline == DENSE else InterlacedSparseAttention)(channels)
    times = 2 if mode == "forward" else 6  # two a multiply-add; backward takes twice what forward takes
    defined = times * module.cost(side, side).mult_adds
    stages, padded = (1, side) if pipeline == DENSE else (2, side + -side % 8)
    # we apply the output projection to the values, which saves a product of C x C at each position
    saves = pipeline not in (PEER, OPENSEG) and (mode == "forward" or padded**2 > channels)
    done = defined - times * stages * padded**2 * channels**2 * saves
    return {"operations": defined, "operations_run": done * (4 / 3 if pipeline == RECOMPUTED else 1)}


def exponents(rows: Sequence[Measurement]) -> dict[str, float]:
    """Return b of the least-squares fit a N^b to the time and the memory of growing maps of N pixels."""
    pixels = [2 * math.log(row.side) for row in rows]
    curves = {"time": [row.median for row in rows], "memory": [1.0 * (row.peak_bytes or 0) for row in rows]}
    return {
        name: statistics.linear_regression(pixels, [math.log(v) for v in values]).slope
        for name, values in curves.items()
        if min(values) > 0
    }


def _start(task: dict[str, Any]) -> Timer:
    name, channels, device = task["block"], task["channels"], task["device"]
    module = BLOCKS[name](channels).to(device)
    fused = fuse(module)

    def make(work: str, kind: str) -> Work:
        mode, side = work.split()
        x, training = feature_map(channels, int(side), device), mode == "training"
        if name == OPENSEG:  # like mmsegmentation's, it has no fused copy and is written for contiguous maps
            return pass_through(module, module, x, training, kind)
        x, run = x.contiguous(memory_format=torch.channels_last), module if training else fused
        return pass_through(run, run, x, training, kind)

    return Timer(make)


if __name__ == "__main__":
    serve(_start)
