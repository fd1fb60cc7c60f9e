"""Labels as people see them: a picture under the colours of its classes, and the legend of the colours."""

from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from isaseg.files import replace_file

_LONGEST_SIDE = 2048  # as much as a screen shows; the label file has every pixel
_BLEND = 0.5  # share of the colour of the class
_NAME = 48  # letters of a name in the legend


def overlay(
    image: np.ndarray, labels: np.ndarray, colours: np.ndarray, clear: Collection[int] = ()
) -> np.ndarray:
    """Return the picture under the colours of its classes, with light borders, at most 2048 pixels on a side.

    Args:
        image: uint8 RGB (H, W, 3).
        labels: Classes, uint8 (H, W).
        colours: uint8 RGB (K, 3); what is no class, as ignored pixels, is white.
        clear: Classes that have no colour: the picture is as it is, see `info.backgrounds`.
    """
    factor = _LONGEST_SIDE / max(labels.shape)
    if factor < 1:
        size = max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    table = np.full((256, 1, 3), 255, np.uint8)
    table[: len(colours), 0] = colours
    blend: np.ndarray = cv2.addWeighted(image, 1 - _BLEND, cv2.LUT(cv2.merge([labels] * 3), table), _BLEND, 0)
    bare = np.isin(labels, list(clear))
    blend[bare] = image[bare]
    borders = np.zeros(labels.shape, bool)
    borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    blend[borders] = blend[borders] // 3 + 170
    return blend


def write_overlay(
    path: Path, image: np.ndarray, labels: np.ndarray, colours: np.ndarray, clear: Collection[int] = ()
) -> None:
    """Write `overlay` as a JPEG, whole or not at all."""
    with replace_file(path) as file:
        Image.fromarray(overlay(image, labels, colours, clear)).save(file, "JPEG", quality=90)


def write_legend(path: Path, classes: Sequence[str], ids: np.ndarray, colours: np.ndarray) -> None:
    """Write a PNG that shows each class's colour, id and name, whole or not at all."""
    handles = [
        Patch(fc=colour / 255, ec="0.5", label=f"{number}  {name[:_NAME]}".replace("$", r"\$"))  # no formula
        for number, name, colour in zip(ids, classes, colours, strict=True)
    ]
    figure = Figure(dpi=110)
    figure.legend(handles=handles, ncols=min(4, len(handles)), loc="center", frameon=False)
    with replace_file(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")
