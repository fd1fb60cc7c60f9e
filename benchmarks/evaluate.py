"""`evaluate`: from coarse logits to scores, and from an image to scores, beside mmsegmentation."""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Measurement, Report, counterpart, ours_and_peer
from benchmarks.serve import Timer, Work, serve
from benchmarks.works import LOGITS, SETS, logits_and_target, smooth_image
from isaseg.errors import ConfigError
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.labels import labels_from_coarse
from isaseg.inference.metrics import count
from isaseg.models.backbone import Backbone
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import build_segmenter


def benchmark(options: Namespace) -> None:
    """Measure on one core: coarse logits to areas of intersection and union, and ISANet R-50 with random weights.

    Raises:
        ConfigError: If ours and mmsegmentation count different areas from the same logits.
    """
    tasks = ours_and_peer(options.peer, "evaluate", size=options.size)
    works = [*((name, kind) for name in SETS for kind in LOGITS), ("network", "random weights")]
    rows = [Measurement(work, kind, name) for work, kind in works for name in tasks]
    title = "evaluation of one image on one core ({}×{} through the network)".format(*options.size)
    report = Report("evaluate", title, kind="logits")
    report.measure(tasks, rows, options.rounds)
    check_areas(rows)
    report.publish(options.folder)


def check_areas(rows: Sequence[Measurement]) -> None:
    """Raise a ConfigError if areas from the same logits differ from mmsegmentation's in more than 1e-5 of the pixels."""
    for row in rows:
        peer = counterpart(rows, row)
        if peer and not row.error and not peer.error and row.work != "network":  # whose weights are random
            mine, theirs = (torch.tensor(r.result, dtype=torch.float64) for r in (row, peer))
            if (mine - theirs).abs().sum() > 1e-5 * theirs.sum():
                raise ConfigError(f"expected {peer.pipeline}'s areas, got others from {row.work}, {row.kind}")


def areas(matrix: Tensor) -> list[list[int]]:
    """Return the areas of intersection, union, prediction and labels of each class, from a confusion matrix."""
    same, predicted, labelled = matrix.diag(), matrix.sum(0), matrix.sum(1)
    return [x.tolist() for x in (same, predicted + labelled - same, predicted, labelled)]


def _labels_work(name: str, kind: str) -> Work:
    logits, target = logits_and_target(name, kind)
    classes, _, size = SETS[name]
    return lambda: areas(count(labels_from_coarse(logits, [size], False)[0], target, classes, 255))


def _network_work(size: list[int]) -> Work:
    backbone = Backbone("resnet50c", output_stride=8)
    network = build_segmenter(backbone, 19, InterlacedSparseAttention, aux_channels=None).fuse()
    image, target = smooth_image(*size), torch.zeros(size, dtype=torch.uint8)
    return lambda: areas(count(predict_labels(network, image[None], Inference())[0], target, 19, 255))


def _start(task: dict[str, Any]) -> Timer:
    size = task["size"]
    return Timer(lambda work, kind: _network_work(size) if work == "network" else _labels_work(work, kind))


if __name__ == "__main__":
    serve(_start)
