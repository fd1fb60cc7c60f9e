"""Our evaluation as a process that is timed; the counterpart of mmseg_evaluation.py."""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.serve import serve, timed_work
from benchmarks.work import SETS, logits_and_target, picture
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.labels import labels_from_coarse
from isaseg.inference.metrics import count
from isaseg.models.attention import InterlacedSparseAttention
from isaseg.models.backbone import Backbone
from isaseg.models.segmenter import build_segmenter


def areas(matrix: Tensor) -> list[list[int]]:
    """Return intersection, union, prediction and label areas of each class."""
    same, predicted, labelled = matrix.diag(), matrix.sum(0), matrix.sum(1)
    return [x.tolist() for x in (same, predicted + labelled - same, predicted, labelled)]


def labels_work(name: str, kind: str) -> Callable[[], list[list[int]]]:
    """Return the way from coarse logits to areas."""
    logits, target = logits_and_target(name, kind)
    classes, _, size = SETS[name]
    return lambda: areas(count(labels_from_coarse(logits, [size], False)[0], target, classes, 255))


def network_work(size: list[int]) -> Callable[[], list[list[int]]]:
    """Return the way from a picture to areas, through ISANet R-50 with random weights."""
    torch.manual_seed(0)
    network = build_segmenter(
        Backbone("resnet50c", output_stride=8), 19, partial(InterlacedSparseAttention), aux_channels=None
    ).fuse()
    image = picture(*size)
    target = torch.zeros(size, dtype=torch.uint8)
    return lambda: areas(count(predict_labels(network, image[None], Inference())[0], target, 19, 255))


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    task = json.loads(sys.stdin.readline())

    def make(work: str, kind: str) -> Callable[[], Any]:
        return network_work(task["size"]) if work == "network" else labels_work(work, kind)

    serve(timed_work(make), {}, answers)


if __name__ == "__main__":
    main()
