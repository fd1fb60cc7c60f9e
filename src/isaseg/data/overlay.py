"""Labels as people see them: a picture under the colours of its classes, and the legend of the colours."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from isaseg.data.resize import fit
from isaseg.files import replace_file

_LONGEST_SIDE = 2048  # as much as a screen shows; the label file has every pixel
_BLEND = 0.5  # share of the colour of the class
_HEAT = 0.7  # share of the colour of a value
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
    size = shown_size(labels.shape[0], labels.shape[1])
    image = fit(image, size, cv2.INTER_AREA)
    labels = fit(labels, size, cv2.INTER_NEAREST_EXACT)
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


def heat(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the picture in grey under values, from violet (0) over green to yellow (255), at most 2048 pixels on a side.

    Args:
        image: uint8 RGB (H, W, 3).
        values: uint8 (H, W).
    """
    size = shown_size(values.shape[0], values.shape[1])
    grey = cv2.cvtColor(fit(image, size, cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    colours = cv2.applyColorMap(fit(values, size, cv2.INTER_AREA), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    blend: np.ndarray = cv2.addWeighted(cv2.merge([grey] * 3), 1 - _HEAT, colours, _HEAT, 0)
    return blend


def shown_size(height: int, width: int, longest: int = _LONGEST_SIDE) -> tuple[int, int]:
    """Return the size (h, w) of a picture of which no side is shown longer than `longest`; none is enlarged."""
    factor = min(1.0, longest / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def write_jpeg(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 RGB (H, W, 3), whole or not at all."""
    with replace_file(path) as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=90)


def legend_handles(names: Sequence[str], colours: Iterable[np.ndarray]) -> list[Patch]:
    """Return what a legend shows of each name: its colour, uint8 (3,), beside it."""
    return [
        Patch(fc=colour / 255, ec="0.5", label=name.replace("$", r"\$"))  # no formula
        for name, colour in zip(names, colours, strict=True)
    ]


def write_legend(path: Path, classes: Sequence[str], ids: np.ndarray, colours: np.ndarray) -> None:
    """Write a PNG that shows each class's colour, id and name, whole or not at all."""
    names = [f"{number}  {name[:_NAME]}" for number, name in zip(ids, classes, strict=True)]
    handles = legend_handles(names, colours)
    figure = Figure(dpi=110)
    figure.legend(handles=handles, ncols=min(4, len(handles)), loc="center", frameon=False)
    with replace_file(path) as file:
        figure.savefig(file, format="png", bbox_inches="tight")
