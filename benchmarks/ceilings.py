"""The ceilings of the machine, measured in the same run as what they bound: products, a convolution, a copy."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._compat import onednn_linear
from benchmarks.harness import Cell, Measurement
from benchmarks.serve import Timer, Work, serve

CEILING = "ceiling"  # the pipeline of these rows

# floating-point operations, two a multiply-add; of "copy" the numbers read and written
AMOUNTS = {
    "linear": 2 * 16384 * 512 * 512,
    "linear, oneDNN": 2 * 16384 * 512 * 512,
    "convolution 3x3": 2 * 64 * 64 * 9 * 1024 * 512,
    "batched product": 2 * 64 * 256 * 256 * 512,
    "copy": 2 * 2**24,
}


def ceiling_rows(kinds: Sequence[str], device: str) -> list[Measurement]:
    """Return a row for each floating-point type and ceiling."""
    one = torch.ones(1, 1)
    works = [w for w in AMOUNTS if "oneDNN" not in w or (device == "cpu" and onednn_linear(one, one))]
    return [
        Measurement(work, kind, CEILING, {"operations_run": AMOUNTS[work]})
        for kind in kinds
        for work in works
    ]


def speed(row: Measurement) -> float:
    """Return 10⁹ operations a second, for "copy" 10⁹ bytes; 0 if nothing was counted or measured."""
    scale = getattr(torch, row.kind).itemsize if row.work == "copy" else 1
    return scale * row.counts.get("operations_run", 0) / row.median / 1e9 if row.seconds else 0


def share_of_linear(rows: list[Measurement], row: Measurement) -> str:
    """Return the speed of a row as a share of the fastest matrix product's in the same type."""
    most = max((speed(r) for r in rows if r.work.startswith("linear") and r.kind == row.kind), default=0)
    return f"{100 * speed(row) / most:.0f} %" if most and speed(row) and row.work != "copy" else ""


SPEEDS: dict[str, Cell] = {
    "GFLOP/s": lambda rows, row: f"{speed(row):.0f}{' GB/s' * (row.work == 'copy')}" if speed(row) else "",
    "of linear": share_of_linear,
}


def _ceiling(work: str, dtype: torch.dtype, device: str) -> Work:
    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    if work == "convolution 3x3":
        x = made(1, 1024, 64, 64).contiguous(memory_format=torch.channels_last)
        kernel = made(512, 1024, 3, 3).contiguous(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, kernel, padding=1)
    if work == "batched product":
        q, v = made(64, 256, 256), made(64, 256, 512)
        return lambda: q @ v
    if work == "copy":
        source, target = made(2**24), made(2**24)
        return lambda: target.copy_(source)
    tokens, weight = made(16384, 512), made(512, 512)
    product = onednn_linear(tokens, weight) if work == "linear, oneDNN" else None
    return product or (lambda: F.linear(tokens, weight))


def _start(task: dict[str, Any]) -> Timer:
    return Timer(lambda work, kind: _ceiling(work, getattr(torch, kind), task["device"]))


if __name__ == "__main__":
    serve(_start)
