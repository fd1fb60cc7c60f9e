"""`evaluate`: from coarse logits to scores, and from an image to scores, beside mmsegmentation."""

from argparse import Namespace
from typing import Any

import torch

from benchmarks.harness import Measurement, Report, ours_and_peer
from benchmarks.serve import Timer, Work, serve
from benchmarks.works import LOGITS, SETS, logits_and_target, smooth_image
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.labels import labels_from_coarse
from isaseg.inference.metrics import count_each
from isaseg.models.backbone import Backbone
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import build_segmenter


def benchmark(options: Namespace) -> None:
    """Measure on one core: coarse logits to the confusion matrix, and ISANet R-50 with random weights."""
    tasks = ours_and_peer(options.peer, "evaluate", size=options.size)
    works = [*((name, kind) for name in SETS for kind in LOGITS), ("network", "random weights")]
    rows = [Measurement(work, kind, name) for work, kind in works for name in tasks]
    title = "evaluation of one image on one core ({}×{} through the network)".format(*options.size)
    report = Report("evaluate", title, kind="logits")
    report.measure(tasks, rows, options.rounds)
    report.publish(options.folder)


def _labels_work(name: str, kind: str) -> Work:
    logits, target = logits_and_target(name, kind)
    classes, _, size = SETS[name]
    return lambda: count_each(labels_from_coarse(logits, [size], False), target[None], classes, 255)


def _network_work(size: list[int]) -> Work:
    backbone = Backbone("resnet50c", output_stride=8)
    network = build_segmenter(backbone, 19, InterlacedSparseAttention, aux_channels=None).fuse()
    image, target = smooth_image(*size), torch.zeros(size, dtype=torch.uint8)
    return lambda: count_each(predict_labels(network, image[None], Inference()), target[None], 19, 255)


def _start(task: dict[str, Any]) -> Timer:
    size = task["size"]
    return Timer(lambda work, kind: _network_work(size) if work == "network" else _labels_work(work, kind))


if __name__ == "__main__":
    serve(_start)
