"""One picture that shows a data set: samples of each split under their labels, and a legend."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from isaseg.data.source import FileSource
from isaseg.data.tools.inspection import SplitReport

_WIDTH, _HEADER, _CAPTION = 1600, 76, 26  # pixels
_COLUMNS, _TILE_WIDTH = 5, 296
_LEGEND_COLUMNS, _LEGEND_ROW = 5, 22
_SAMPLES, _SAMPLES_OF_SPLIT = 24, 12
_LEFT, _RIGHT = 0.02, 0.98  # of the width
_BLEND = 0.55  # share of the class's colour in a pixel
_NAME = 40  # characters of a sample's name


class Tile(NamedTuple):
    """A sample as it is shown: uint8 RGB (h, w, 3), its name, the train ids in it."""

    picture: np.ndarray
    name: str
    ids: frozenset[int]


def contact_sheet(splits: Sequence[tuple[FileSource, SplitReport]]) -> Figure:
    """Draw evenly spaced samples of each split, 24 at most, in the colours of their classes.

    White lines separate the classes; ignored pixels are hatched white. Samples with a fault are left out.

    Args:
        splits: One or more, each with its report.
    """
    info = splits[0][0].info
    count = min(_SAMPLES_OF_SPLIT, _SAMPLES // len(splits))
    box = _TILE_WIDTH, round(_TILE_WIDTH / _usual_shape([report for _, report in splits]))
    blocks = [[_tile(source, i, box) for i in evenly(report.usable, count)] for source, report in splits]
    seen = sorted({i for tiles in blocks for tile in tiles for i in tile.ids})
    rows = [max(1, -(-len(tiles) // _COLUMNS)) for tiles in blocks]
    heights = [_HEADER + n * (box[1] + _CAPTION) for n in rows]
    heights.append(_LEGEND_ROW * (2 + -(-len(seen) // _LEGEND_COLUMNS)))
    figure = Figure((_WIDTH / 100, sum(heights) / 100), dpi=100)
    panels = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, height, n, tiles, (_, report) in zip(panels, heights, rows, blocks, splits, strict=False):
        labels = "" if report.labelled else ", no labels"
        title = f"{info.title} {report.split}: {len(tiles)} of {report.images} images{labels}"
        panel.suptitle(title, x=_LEFT, y=1 - 16 / height, ha="left", va="top", weight="bold")
        _draw(panel, tiles, n, top=1 - _HEADER / height, bottom=_CAPTION / height, gap=_CAPTION / box[1])
    handles = [
        Patch(facecolor=info.palette[i] / 255, edgecolor="grey", label=info.classes[i])
        if i != info.ignore_index
        else Patch(facecolor="white", edgecolor="grey", hatch="////", label="ignored")
        for i in seen
    ]
    panels[-1].legend(handles=handles, ncols=_LEGEND_COLUMNS, loc="upper center", fontsize=9, frameon=False)
    return figure


def evenly(items: Sequence[int], count: int) -> list[int]:
    """Return `count` of the items, or all if there are fewer, spread evenly and always the same."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _usual_shape(reports: Sequence[SplitReport]) -> float:
    """Return the median width / height of the images, within what a tile can show."""
    shapes = sorted(w / h for report in reports for w, h in report.sizes.elements())
    return min(2.2, max(0.5, shapes[len(shapes) // 2])) if shapes else 4 / 3


def _draw(
    panel: SubFigure, tiles: Sequence[Tile], rows: int, *, top: float, bottom: float, gap: float
) -> None:
    grid = {"left": _LEFT, "right": _RIGHT, "top": top, "bottom": bottom, "hspace": gap, "wspace": 0.04}
    for number, axes in enumerate(panel.subplots(rows, _COLUMNS, squeeze=False, gridspec_kw=grid).flat):
        axes.axis("off")
        if number < len(tiles):
            axes.imshow(tiles[number].picture, interpolation="nearest")
            axes.set_title(_elided(tiles[number].name), fontsize=8, pad=3, parse_math=False)


def _tile(source: FileSource, index: int, box: tuple[int, int]) -> Tile:
    image, mask, _ = source.load(index)
    picture = _fit(image[:, :], box, cv2.INTER_AREA)
    if mask is None:
        return Tile(picture, source.name(index), frozenset())
    labels = mask[:, :]
    small = _fit(labels, box, cv2.INTER_NEAREST_EXACT)
    table = np.zeros((256, 3), np.uint8)
    table[: len(source.palette)] = source.palette
    blend = cv2.addWeighted(picture, 1 - _BLEND, table[small], _BLEND, 0)
    ignored = small == source.ignore_index
    blend[ignored] = _hatched(picture)[ignored]
    borders = np.zeros(small.shape, bool)
    borders[:, 1:] |= small[:, 1:] != small[:, :-1]
    borders[1:] |= small[1:] != small[:-1]
    blend[borders] = blend[borders] // 3 + 170
    return Tile(blend, source.name(index), frozenset(np.unique(labels).tolist()))


def _fit(picture: np.ndarray, box: tuple[int, int], interpolation: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = min(box[0] / width, box[1] / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if factor >= 1:
        interpolation = cv2.INTER_NEAREST_EXACT
    fitted: np.ndarray = cv2.resize(picture, size, interpolation=interpolation)
    return fitted


def _hatched(picture: np.ndarray) -> np.ndarray:
    y, x = np.indices(picture.shape[:2])
    pale: np.ndarray = cv2.addWeighted(picture, 0.5, np.full_like(picture, 255), 0.5, 0)
    pale[(x + y) % 8 < 3] = 255
    return pale


def _elided(name: str) -> str:
    """Return the name with its middle left out so that it fits above a tile."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 :]}"
