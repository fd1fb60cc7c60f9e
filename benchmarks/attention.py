"""`attention`: the ISA block beside mmsegmentation's and the ceilings of the machine."""

from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import OURS, PEER, Cell, Measurement, Report, ours, ours_and_peer
from benchmarks.serve import Timer, Work, serve
from benchmarks.works import feature_map, pass_through
from isaseg.models.interlaced import InterlacedSparseAttention

RECOMPUTED = f"{OURS}, recomputed"
CEILING = "ceiling"  # the pipeline of one large matrix product, which bounds the speed of a block
# the same product; oneDNN's is on some CPUs faster than that of the BLAS
CEILINGS = ("linear", "convolution")
CEILING_OPERATIONS = 2 * 16384 * 512 * 512  # floating-point operations, two a multiply-add


def benchmark(options: Namespace) -> None:
    """Measure forward passes, and forward with backward passes."""
    common = {"channels": options.channels, "threads": options.threads, "device": options.device}
    tasks = ours_and_peer(options.peer, "attention", block=OURS, **common)
    tasks[RECOMPUTED] = ours("attention", block=RECOMPUTED, **common)
    rows = [
        Measurement(product, kind, CEILING, {"operations": CEILING_OPERATIONS})
        for kind in options.types
        for product in CEILINGS
    ]
    rows += [
        Measurement(
            f"{mode} {side}", kind, name, {"operations": operations(options.channels, mode, side, name)}
        )
        for side in options.sizes
        for mode in ("forward", "training")
        for kind in options.types
        for name in tasks
        if name != RECOMPUTED or mode == "training"
    ]
    tasks[CEILING] = ours("attention", block=CEILING, **common)
    report = Report("attention", f"ISA block of {options.channels} channels, groups of 8×8", columns=SPEEDS)
    report.measure(tasks, rows, options.rounds)
    report.publish(options.folder)


def operations(channels: int, mode: str, side: int, pipeline: str) -> float:
    """Return the floating-point operations that a pass really runs."""
    with torch.device("meta"):
        module = InterlacedSparseAttention(channels)
    times = 2 if mode == "forward" else 6  # two a multiply-add; backward takes twice what forward takes
    defined = times * module.cost(side, side).mult_adds
    padded = side + -side % 8
    # we apply the output projection to the values, which saves a product of C x C at each position of both stages
    saves = pipeline != PEER and (mode == "forward" or padded**2 > channels)
    done = defined - times * 2 * padded**2 * channels**2 * saves
    return done * (4 / 3 if pipeline == RECOMPUTED else 1)


def speed(row: Measurement) -> float:
    """Return 10⁹ operations a second; 0 if none were measured."""
    return row.counts["operations"] / row.median / 1e9 if row.seconds else 0


def share_of_ceiling(rows: list[Measurement], row: Measurement) -> str:
    """Return the speed of a row as a share of the ceiling in the same type."""
    most = max((speed(r) for r in rows if r.pipeline == CEILING and r.kind == row.kind), default=0)
    return f"{100 * speed(row) / most:.0f} %" if most and row.seconds else ""


SPEEDS: dict[str, Cell] = {
    "GFLOP/s": lambda rows, row: f"{speed(row):.0f}" if row.seconds else "",
    "of ceiling": share_of_ceiling,
}


def _start(task: dict[str, Any]) -> Timer:
    name, channels, device = task["block"], task["channels"], task["device"]
    if name == CEILING:
        return Timer(lambda product, kind: _product(product, getattr(torch, kind), device))
    module = InterlacedSparseAttention(channels, recompute=name == RECOMPUTED).to(device)
    if name != RECOMPUTED:
        from isaseg.models.fuse import fuse  # imports timm, for which the other processes need not wait

        fused = fuse(module)

    def make(work: str, kind: str) -> Work:
        mode, side = work.split()
        x = feature_map(channels, int(side), device).contiguous(memory_format=torch.channels_last)
        run = module if mode == "training" else fused  # recomputation has a backward pass alone
        return pass_through(run, run, x, mode == "training", kind)

    return Timer(make)


def _product(name: str, dtype: torch.dtype, device: str) -> Work:
    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    if name == "linear":
        tokens, weight = made(16384, 512), made(512, 512)
        return lambda: F.linear(tokens, weight)
    x, kernel = made(1, 512, 128, 128).contiguous(memory_format=torch.channels_last), made(512, 512, 1, 1)
    return lambda: F.conv2d(x, kernel)


if __name__ == "__main__":
    serve(_start)
