"""One picture that shows many: samples of each split of a data set under their labels, or predictions, and a legend."""

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from isaseg.data.info import backgrounds
from isaseg.data.overlay import legend_handles, overlay
from isaseg.data.resize import fit
from isaseg.data.source import FileSource
from isaseg.data.tools.inspection import SplitReport

_COLUMNS, _TILE = 5, (300, 225)  # width and height of a tile in pixels
_SAMPLES, _SAMPLES_OF_SPLIT = 24, 12
_NAME = 40  # characters above a tile


def contact_sheet(reports: Sequence[SplitReport]) -> Figure:
    """Draw evenly spaced samples of each split, 24 at most, in the colours of their classes.

    Light lines separate the classes, ignored pixels are pale, and a background has no colour. Samples with a fault are
    left out.
    """
    source = reports[0].source
    count = min(_SAMPLES_OF_SPLIT, _SAMPLES // len(reports))
    tiles = [
        _tile(report.source, index)
        for report in reports
        for index in report.usable[:: -(-len(report.usable) // count) or 1]
    ]
    seen = sorted({i for _, _, ids in tiles for i in ids})
    images = ", ".join(f"{report.source.split} {len(report.source)}" for report in reports)
    legend = {i: (name, source.palette[i]) for i, name in enumerate(source.classes)}
    legend[source.ignore_index] = ("ignored", np.full(3, 255))
    title = f"{source.info.title}, images: {images}"
    return draw_tiles([(picture, name) for picture, name, _ in tiles], title, [legend[i] for i in seen])


def draw_tiles(
    tiles: Sequence[tuple[np.ndarray, str]],
    title: str,
    legend: Sequence[tuple[str, np.ndarray]],
    columns: int = _COLUMNS,
) -> Figure:
    """Draw pictures, uint8 RGB, each under its name, and below them names with their colours, uint8 (3,)."""
    rows = max(1, -(-len(tiles) // columns))
    height = rows * (_TILE[1] + 30) + 25 * (len(legend) // _COLUMNS + 4)
    figure = Figure((16, height / 100), dpi=100, layout="constrained")
    figure.suptitle(title, weight="bold")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(tiles):
            picture, name = tiles[number]
            axes.imshow(picture, interpolation="nearest")
            axes.set_title(_elided(name), fontsize=8, parse_math=False)
    handles = legend_handles([name for name, _ in legend], [colour for _, colour in legend])
    figure.legend(handles=handles, ncols=_COLUMNS, loc="outside lower center", fontsize=9, frameon=False)
    return figure


def _tile(source: FileSource, index: int) -> tuple[np.ndarray, str, list[int]]:
    """Return a sample as it is shown, uint8 RGB (h, w, 3), its name, and the train ids in it."""
    image, mask, _ = source.load(index)
    picture = tile(image[:, :], cv2.INTER_AREA)
    name = f"{source.split} {source.name(index)}"
    if mask is None:
        return picture, name, []
    labels = tile(mask[:, :], cv2.INTER_NEAREST_EXACT)
    shown = overlay(picture, labels, source.palette, backgrounds(source.classes))
    return shown, name, np.unique(mask[:, :]).tolist()


def tile(picture: np.ndarray, interpolation: int) -> np.ndarray:
    """Return a picture or labels as large as fits into a tile."""
    height, width = picture.shape[:2]
    factor = min(_TILE[0] / width, _TILE[1] / height)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    return fit(picture, size, interpolation if factor < 1 else cv2.INTER_NEAREST_EXACT)


def _elided(name: str) -> str:
    """Return the name with its middle left out so that it fits above a tile."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-_NAME // 2 :]}"
