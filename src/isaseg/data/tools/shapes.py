"""Labelled shapes on a picture, painted over one another.

A point (x, y) is measured from the top left corner of the picture, so pixel (0, 0) has its centre at (0.5, 0.5). A pixel
belongs to a polygon if its centre lies inside, by the even-odd rule: neighbours with a common edge neither overlap nor
leave a gap. A later shape covers an earlier one, as in LabelMe itself and in COCO-Stuff's own conversion.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from isaseg.errors import DataError

Placed = tuple[int, int, np.ndarray]  # top, left, and which pixels from there on, bool (h, w)


class Shape(NamedTuple):
    """A labelled shape; `area(height, width)` gives its pixels in a picture of that size, or raises a ValueError."""

    label: str
    area: Callable[[int, int], Placed]


class Drawing(NamedTuple):
    """The shapes on a picture, named by its path without ending, of (width, height) where the file says so."""

    name: str
    size: tuple[int, int] | None
    shapes: list[Shape]
    file: Path


def paint_shapes(drawing: Drawing, height: int, width: int, ids: Mapping[str, int], rest: int) -> np.ndarray:
    """Return labels, uint8 (height, width): `ids` of the last shape that covers a pixel, `rest` where there is none.

    Raises:
        DataError: If a shape cannot be decoded or lies outside.
    """
    labels = np.full((height, width), rest, np.uint8)
    for number, shape in enumerate(drawing.shapes):
        try:
            top, left, inside = shape.area(height, width)
            window = labels[max(top, 0) :, max(left, 0) :][: inside.shape[0], : inside.shape[1]]
            if min(top, left) < 0 or window.shape != inside.shape:
                raise ValueError(f"a mask of {inside.shape} from {top, left} on, outside of {height, width}")
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(
                f"expected shapes inside their picture in '{drawing.file}', got {error} as shape {number} "
                f"({shape.label}) of '{drawing.name}'; correct or remove it"
            ) from error
        window[inside] = ids[shape.label]
    return labels


def polygon(points: np.ndarray, height: int, width: int) -> Placed:
    """Return the pixels of a picture whose centres lie in a polygon, points (N, 2) of x and y, by the even-odd rule.

    Raises:
        ValueError: If it lies outside of the picture.
    """
    x, y = np.asarray(points, np.float64).T - 0.5  # so that centres are whole numbers
    if x.max() < -0.5 or y.max() < -0.5 or x.min() > width - 0.5 or y.min() > height - 0.5:
        raise ValueError(f"a polygon outside of {height, width}")
    left, right = (int(np.clip(edge, 0, width)) for edge in (np.ceil(x.min()), np.floor(x.max()) + 1))
    top, bottom = (int(np.clip(edge, 0, height)) for edge in (np.ceil(y.min()), np.floor(y.max()) + 1))
    crossed = np.zeros((max(bottom - top, 0), max(right - left, 0) + 1), bool)
    for a, b in zip(zip(y, x, strict=True), zip(np.roll(y, -1), np.roll(x, -1), strict=True), strict=True):
        (y0, x0), (y1, x1) = sorted((a, b))  # the same numbers for the neighbour that goes the other way
        rows = np.arange(max(np.ceil(y0), top), min(np.ceil(y1), bottom), dtype=np.intp)
        if len(rows):
            columns = np.ceil(x0 + (rows - y0) * ((x1 - x0) / (y1 - y0))).clip(left, max(right, left))
            crossed[rows - top, columns.astype(np.intp) - left] ^= True
    return top, left, np.logical_xor.accumulate(crossed, axis=1)[:, :-1]


def corners(x0: float, y0: float, x1: float, y1: float, degrees: float = 0) -> np.ndarray:
    """Return the corners of a rectangle, (4, 2), turned about its centre, clockwise as seen."""
    centre, half = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned: np.ndarray = centre + np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half @ [
        [cos, sin],
        [-sin, cos],
    ]
    return turned
