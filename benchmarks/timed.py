"""What is timed in every process alike: a network part or a step, on a device, in a type. Imports torch alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

KINDS = ("float32", "bfloat16")  # of a kind other than float32: under autocast, as it is trained


def autocast(kind: str, device: str) -> AbstractContextManager[Any]:
    """Return the context of a kind."""
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(kind)
    return nullcontext() if half is None else torch.autocast(device.split(":")[0], half)


def feature_map(channels: int, side: int, device: str) -> Tensor:
    """Return a map (1, C, side, side), the same in every process."""
    generator = torch.Generator().manual_seed(side)
    return torch.randn(1, channels, side, side, generator=generator).to(device)


def block_work(
    module: Any, call: Callable[[Tensor], Tensor], x: Tensor, mode: str, kind: str
) -> Callable[[], None]:
    """Return `forward` in evaluation without gradients, or `training`: forward and backward.

    Args:
        module: What has the weights.
        call: Runs it.
        x: Its input, (1, C, H, W), in the layout that it likes best.
        mode: forward or training.
        kind: Of KINDS.
    """
    device = str(x.device)

    def wait() -> None:
        if x.device.type == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        module.eval()
        with torch.no_grad(), autocast(kind, device):
            call(x)
        wait()

    def training() -> None:
        module.train()
        x.requires_grad_()
        with autocast(kind, device):
            out = call(x)
        torch.autograd.backward(out, torch.ones_like(out))
        module.zero_grad()
        x.grad = None
        wait()

    return {"forward": forward, "training": training}[mode]


def pictures_and_target(batch: int, side: int, classes: int) -> tuple[Tensor, Tensor]:
    """Return pictures, uint8 RGB (B, 3, side, side), and labels, int64 (B, side, side)."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8)
    return image, torch.randint(0, classes, (batch, side, side), generator=generator)
