"""Class probabilities of a picture, made, written and summed up a few rows at a time: they need not fit into memory."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from isaseg.errors import DataError
from isaseg.inference.apply import Inference, in_strips, views
from isaseg.inference.labels import largest
from isaseg.models.segmenter import Segmenter

Strips = Iterator[tuple[Tensor, Tensor]]
_TYPE = np.dtype("<f2")


@torch.no_grad()
def predict_probabilities(segmenter: Segmenter, image: Tensor, how: Inference) -> Strips:
    """Yield labels and class probabilities of a picture in strips, from top to bottom.

    Args:
        segmenter: The network, in evaluation mode; the work is done on its device.
        image: uint8 RGB (1, 3, H, W), at the file's own size, on any device.
        how: The protocol. If it averages logits, the probabilities are the softmax of their mean.

    Yields:
        Labels, uint8 (n, W), those of `predict_labels` up to ties, and probabilities, float32 (K, n, W).
    """
    number = len(how.scales) * (1 + how.flip)
    for rows in next(in_strips(segmenter, views(image, how), (image.shape[2], image.shape[3]), how)):
        if number == 1 or how.average == "logits":
            yield largest(rows), (rows / number).softmax(0)
        else:
            positive = rows.clamp(min=0)  # cubic resizing leaves the range of probabilities
            yield largest(rows), positive / positive.sum(0)


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of probabilities (K, ...) over the K classes, as a share of its largest value, log K."""
    share: Tensor = torch.special.entr(probabilities).sum(0) / math.log(max(2, len(probabilities)))
    return share.clamp(0, 1)


def collected(
    strips: Strips, size: tuple[int, int], file: BinaryIO | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of a picture and its normalised entropy times 255, both uint8 (H, W).

    Args:
        strips: What `predict_probabilities` yields.
        size: (H, W).
        file: Gets the probabilities, float16 (H, W, K), in NumPy's format.
    """
    labels, entropy = np.empty(size, np.uint8), np.empty(size, np.uint8)
    top = 0
    for some, probabilities in strips:
        if file is not None:
            if top == 0:
                shape = (*size, len(probabilities))
                header = {"descr": _TYPE.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            # all classes of a pixel lie together, and so all that a strip holds: it can be written at once
            file.write(probabilities.permute(1, 2, 0).half().cpu().numpy().astype(_TYPE).tobytes())
        rows = slice(top, top + len(some))
        labels[rows] = some.cpu().numpy()
        entropy[rows] = (255 * normalised_entropy(probabilities)).round().byte().cpu().numpy()
        top = rows.stop
    return labels, entropy


def check_room(folder: Path, name: str, shape: tuple[int, int, int]) -> None:
    """Check that the probabilities of a picture fit on the disk.

    Args:
        folder: Of the output; it exists.
        name: Of the picture, for people.
        shape: (H, W, K).

    Raises:
        DataError: If they do not.
    """
    needed, free = math.prod(shape) * _TYPE.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        height, width, classes = shape
        raise DataError(
            f"expected room in '{folder}' for the probabilities of {name!r}, {width} x {height} pixels x {classes} "
            f"classes in float16: {needed / 1e9:.3g} GB, got {free / 1e9:.3g} GB free; give another output, or leave "
            "probabilities out of write"
        )
