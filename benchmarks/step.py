"""`step`: a training step of ISANet R-50 on 150 classes, beside mmsegmentation's."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from benchmarks.ceilings import CEILING, SPEEDS, ceiling_rows
from benchmarks.harness import OURS, PEER, Measurement, Report, ours, ours_and_peer, ratios, with_range
from benchmarks.serve import Timer, serve
from benchmarks.works import CLASSES, autocast, images_and_target
from isaseg.models.backbone import Backbone
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.losses import CrossEntropy
from isaseg.models.segmenter import build_segmenter
from isaseg.training.memory import keep_freed_memory
from isaseg.training.optim import sgd_poly


def benchmark(options: Namespace) -> None:
    """Measure forward, both losses, backward and SGD, and the ceilings of the machine."""
    common = {"threads": options.threads, "device": options.device}
    tasks = ours_and_peer(options.peer, "step", batch=options.batch, side=options.size, **common)
    work = f"step {options.batch}x{options.size}"
    rows = ceiling_rows(options.types, options.device)
    rows += [Measurement(work, kind, name) for kind in options.types for name in tasks]
    title = f"training step, ISANet R-50, {options.batch}×{options.size}×{options.size}, {CLASSES} classes"
    report = Report("step", title, columns=SPEEDS)
    report.measure({**tasks, CEILING: ours("ceilings", **common)}, rows, options.rounds)
    report.lines += across_types(rows)
    report.publish(options.folder)


def across_types(rows: Sequence[Measurement]) -> list[str]:
    """Return a line for each of our rows: how many times as fast it is as mmsegmentation in float32, its default."""
    return [
        f"- {row.work}: ours in {row.kind} is {with_range(found)} times as fast as {PEER}'s in float32"
        for row in rows
        if row.pipeline == OURS and (found := ratios(rows, row, kind="float32"))
    ]


def _start(task: dict[str, Any]) -> Timer:
    """Return the timer of a step as `SegmentationModule` does it."""
    keep_freed_memory()
    device = task["device"]
    backbone = Backbone("resnet50c", output_stride=8)
    network = build_segmenter(backbone, CLASSES, InterlacedSparseAttention).to(device).train()
    optimizer, _ = sgd_poly(network, 0.01, 1000)
    loss = CrossEntropy()
    images, target = images_and_target(task["batch"], task["side"], device)

    def step(kind: str) -> None:
        with autocast(kind, device):
            logits, aux = network.coarse_with_aux(images)
            assert aux is not None
            value = loss(logits, target) + 0.4 * loss(aux, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return Timer(lambda work, kind: lambda: step(kind))


if __name__ == "__main__":
    serve(_start)
