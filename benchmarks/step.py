"""`step`: a training step of ISANet R-50 on 150 classes, beside mmsegmentation's."""

from argparse import Namespace
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from benchmarks.harness import Measurement, Report, ours_and_peer
from benchmarks.serve import Timer, Work, serve
from benchmarks.works import CLASSES, autocast, images_and_target
from isaseg.models.backbone import Backbone
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.losses import CrossEntropy
from isaseg.models.segmenter import Segmenter, build_segmenter
from isaseg.training.memory import keep_freed_memory


def benchmark(options: Namespace) -> None:
    """Measure forward, both losses, backward and SGD."""
    task = {
        "batch": options.batch,
        "side": options.size,
        "threads": options.threads,
        "device": options.device,
    }
    tasks = ours_and_peer(options.peer, "step", **task)
    work = f"step {options.batch}x{options.size}"
    rows = [Measurement(work, kind, name) for kind in options.types for name in tasks]
    title = f"training step, ISANet R-50, {options.batch}×{options.size}×{options.size}, {CLASSES} classes"
    report = Report("step", title)
    report.measure(tasks, rows, options.rounds)
    report.publish(options.folder)


def training_step(
    network: Segmenter,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    images: Tensor,
    target: Tensor,
    kind: str,
) -> Work:
    """Return a step as `SegmentationModule` does it, with the auxiliary loss.

    Args:
        network: In training mode.
        loss: Takes coarse logits and the target, of both heads.
        optimizer: Of the parameters of the network.
        images: uint8 RGB (B, 3, H, W).
        target: int64 (B, H, W).
        kind: Type of the products, see `autocast`.
    """

    def step() -> None:
        with autocast(kind, str(images.device)):
            logits, aux = network.coarse_with_aux(images)
            assert aux is not None
            value = loss(logits, target) + 0.4 * loss(aux, target)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _start(task: dict[str, Any]) -> Timer:
    keep_freed_memory()
    device = task["device"]
    backbone = Backbone("resnet50c", output_stride=8)
    network = build_segmenter(backbone, CLASSES, InterlacedSparseAttention).to(device).train()
    if device != "cpu":  # as training does
        network.channels_last()
    # as optim=sgd_poly
    optimizer = SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    images, target = images_and_target(task["batch"], (task["side"], task["side"]), device)
    return Timer(lambda work, kind: training_step(network, CrossEntropy(), optimizer, images, target, kind))


if __name__ == "__main__":
    serve(_start)
