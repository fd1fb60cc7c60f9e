"""Our blocks and our training step, dense attention, openseg's block, and the ceilings of the machine, timed."""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.modules_work import facts
from benchmarks.openseg_block import OpensegBlock
from benchmarks.serve import serve, timed_work
from benchmarks.timed import autocast, block_work, feature_map, pictures_and_target
from isaseg.models.attention import InterlacedSparseAttention, SelfAttention2d
from isaseg.models.backbone import Backbone
from isaseg.models.fuse import fuse
from isaseg.models.losses import CrossEntropy
from isaseg.models.segmenter import build_segmenter
from isaseg.training.memory import keep_freed_memory
from isaseg.training.optim import sgd_poly

Work = Callable[[], None]

BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "isaseg": InterlacedSparseAttention,
    "isaseg, recomputed": lambda channels: InterlacedSparseAttention(channels, recompute=True),
    "dense": SelfAttention2d,
    "openseg": OpensegBlock,
}
CEILINGS = ("linear", "linear, oneDNN", "convolution 3x3", "batched product", "copy")


def attention_work(task: dict[str, Any]) -> Callable[[str, str], Work]:
    """Return what makes a work such as `forward 128` of the block `task["block"]`."""
    module = BLOCKS[task["block"]](task["channels"]).to(task["device"])

    def make(work: str, kind: str) -> Work:
        mode, side = work.split()
        x = feature_map(task["channels"], int(side), task["device"])
        if task["block"] != "openseg":  # which takes contiguous maps alone, as mmsegmentation's does
            x = x.contiguous(memory_format=torch.channels_last)
        called = fuse(module) if mode == "forward" and task["block"] != "openseg" else module
        return block_work(called, called, x, mode, kind)

    return make


def step_work(task: dict[str, Any]) -> Callable[[str, str], Work]:
    """Return what makes a step of ISANet R-50 with SGD, as `SegmentationModule` does it."""
    keep_freed_memory()
    device, side = task["device"], task["side"]
    backbone = Backbone("resnet50c", output_stride=8)
    network = build_segmenter(backbone, 150, InterlacedSparseAttention).to(device).train()
    optimizer, _ = sgd_poly(network, 0.01, 1000)
    loss = CrossEntropy()
    image, target = (t.to(device) for t in pictures_and_target(task["batch"], side, 150))

    def make(work: str, kind: str) -> Work:
        def run() -> None:
            with autocast(kind, device):
                logits, aux = network.coarse_with_aux(image)
                assert aux is not None
                value = loss(logits, target) + 0.4 * loss(aux, target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize()

        return run

    return make


def ceiling_work(task: dict[str, Any]) -> Callable[[str, str], Work]:
    """Return what makes one of CEILINGS, which does `ceiling_amount` of work."""
    device = task["device"]

    def make(work: str, kind: str) -> Work:
        dtype = getattr(torch, kind)
        run = _ceiling(work, dtype, device)

        @torch.no_grad()
        def timed() -> None:
            run()
            if device != "cpu":
                torch.cuda.synchronize()

        return timed

    return make


def _ceiling(work: str, dtype: torch.dtype, device: str) -> Callable[[], Any]:
    def made(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    if work == "linear":
        x, weight = made(16384, 512), made(512, 512)
        return lambda: F.linear(x, weight)
    if work == "linear, oneDNN":
        x, weight = made(16384, 512), made(512, 512)
        if dtype is torch.float32:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
        return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    if work == "convolution 3x3":
        x = made(1, 1024, 64, 64).contiguous(memory_format=torch.channels_last)
        weight = made(512, 1024, 3, 3).contiguous(memory_format=torch.channels_last)
        return lambda: F.conv2d(x, weight, padding=1)
    if work == "batched product":
        q, v = made(64, 256, 256), made(64, 256, 512)
        return lambda: q @ v
    source, target = made(2**24), made(2**24)
    return lambda: target.copy_(source)


def ceiling_amount(work: str, kind: str) -> float:
    """Return the floating-point operations of a ceiling, of `copy` the bytes read and written."""
    if work.startswith("linear"):
        return 2 * 16384 * 512 * 512
    if work == "convolution 3x3":
        return 2 * 64 * 64 * 9 * 1024 * 512
    if work == "batched product":
        return 2 * 64 * 256 * 256 * 512
    return 2 * 2**24 * (4 if kind == "float32" else 2)


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    task = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    make = {"attention": attention_work, "step": step_work, "ceiling": ceiling_work}[task["what"]](task)
    serve(timed_work(make), facts(task["device"]), answers)


if __name__ == "__main__":
    main()
