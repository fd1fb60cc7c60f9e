"""One picture that shows a data set: samples of each split under their labels, and a legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isaseg.data.source import FileSource
from isaseg.data.tools.inspection import SplitReport

_WIDTH, _MARGIN, _GAP = 1600, 32, 14
_TILE_AREA = 380 * 285
_SAMPLES, _SAMPLES_OF_SPLIT = 24, 12
_TITLE, _HEADER, _CAPTION = 56, 44, 26  # heights
_INK, _FAINT, _PAPER, _BACK = (34, 34, 34), (120, 120, 120), (255, 255, 255), (238, 238, 238)
_BLEND = 0.55  # share of the colour of the class
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


class Tile(NamedTuple):
    """A sample as it is shown: uint8 RGB (h, w, 3), its name, the train ids in it."""

    picture: np.ndarray
    name: str
    ids: frozenset[int]


def contact_sheet(splits: Sequence[tuple[FileSource, SplitReport]]) -> Image.Image:
    """Draw evenly spaced samples of each split, 24 at most, in the colours of their classes.

    White lines part the classes, ignored pixels are hatched white. Samples with a fault are left out.

    Args:
        splits: One or more, each with its report.
    """
    facts = splits[0][0].info
    count = min(_SAMPLES_OF_SPLIT, _SAMPLES // len(splits))
    columns, box = _grid([report for _, report in splits])
    blocks = []
    for source, report in splits:
        tiles = [_tile(source, index, box) for index in evenly(report.usable, count)]
        labels = "" if report.labelled else ", no labels"
        blocks.append((report.split, f"{len(tiles)} of {report.images} images{labels}", tiles))
    seen = sorted({i for _, _, tiles in blocks for tile in tiles for i in tile.ids})
    classes = [(facts.classes[i], facts.palette[i]) for i in seen if i != facts.ignore_index]
    legend = _legend(classes, facts.ignore_index in seen)
    rows = [-(-len(tiles) // columns) for _, _, tiles in blocks]
    height = (
        _TITLE + len(blocks) * _HEADER + sum(rows) * (box[1] + _CAPTION + _GAP) + legend.height + 2 * _MARGIN
    )
    sheet = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN
    draw.text((_MARGIN, y), facts.title, _INK, _font(30, bold=True))
    y += _TITLE
    for split, note, tiles in blocks:
        font = _font(20, bold=True)
        draw.text((_MARGIN, y), split, _INK, font)
        draw.text((_MARGIN + font.getlength(split) + 12, y + 4), note, _FAINT, _font(16))
        y += _HEADER - 8
        for number, tile in enumerate(tiles):
            x = _MARGIN + number % columns * (box[0] + _GAP)
            _draw_tile(sheet, draw, tile, (x, y), box)
            if number % columns == columns - 1 or number == len(tiles) - 1:
                y += box[1] + _CAPTION + _GAP
        y += 8
    sheet.paste(legend, (_MARGIN, y))
    return sheet


def evenly(items: Sequence[int], count: int) -> list[int]:
    """Return `count` of the items, or all if there are fewer, spread evenly and always the same."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _grid(reports: Sequence[SplitReport]) -> tuple[int, tuple[int, int]]:
    """Return the number of columns and the (width, height) of a tile, of the usual shape of the images."""
    shapes = sorted(w / h for report in reports for (w, h), n in report.sizes.items() for _ in range(n))
    shape = min(2.2, max(0.5, shapes[len(shapes) // 2])) if shapes else 4 / 3
    inside = _WIDTH - 2 * _MARGIN + _GAP
    columns = min(8, max(3, round(inside / ((_TILE_AREA * shape) ** 0.5 + _GAP))))
    width = inside // columns - _GAP
    return columns, (width, round(width / shape))


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
    borders = _borders(small)
    blend[borders] = blend[borders] // 3 + 170
    return Tile(blend, source.name(index), frozenset(np.unique(labels).tolist()))


def _fit(picture: np.ndarray, box: tuple[int, int], interpolation: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = min(box[0] / width, box[1] / height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    fitted: np.ndarray = cv2.resize(
        picture, size, interpolation=interpolation if factor < 1 else cv2.INTER_NEAREST_EXACT
    )
    return fitted


def _hatched(picture: np.ndarray) -> np.ndarray:
    y, x = np.indices(picture.shape[:2])
    pale: np.ndarray = cv2.addWeighted(picture, 0.5, np.full_like(picture, 255), 0.5, 0)
    pale[(x + y) % 8 < 3] = _PAPER
    return pale


def _borders(labels: np.ndarray) -> np.ndarray:
    borders = np.zeros(labels.shape, bool)
    borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    return borders


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, place: tuple[int, int], box: tuple[int, int]
) -> None:
    x, y = place
    height, width = tile.picture.shape[:2]
    draw.rectangle((x, y, x + box[0] - 1, y + box[1] - 1), _BACK)
    sheet.paste(Image.fromarray(tile.picture), (x + (box[0] - width) // 2, y + (box[1] - height) // 2))
    font = _font(14)
    draw.text((x, y + box[1] + 4), _elided(tile.name, font, box[0]), _INK, font)


def _elided(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the name with its middle left out so that it fits."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    if font.getlength(name) <= width:
        return name
    keep = len(name)
    while keep > 2 and font.getlength(short := f"{name[: keep // 2]}…{name[-(keep // 2) :]}") > width:
        keep -= 1
    return short


def _legend(classes: Sequence[tuple[str, np.ndarray]], ignored: bool) -> Image.Image:
    font = _font(16)
    labels = [*(name for name, _ in classes), *(["ignored"] if ignored else [])]
    inside = _WIDTH - 2 * _MARGIN
    cell = 34 + 24 + max((int(font.getlength(name)) for name in labels), default=0)
    columns = max(1, min(inside // cell, len(labels)))
    rows = -(-len(labels) // columns)
    legend = Image.new("RGB", (inside, rows * 28), _PAPER)
    draw = ImageDraw.Draw(legend)
    for number, name in enumerate(labels):
        x, y = number % columns * cell, number // columns * 28
        swatch = np.full((16, 26, 3), 160, np.uint8)
        swatch[:] = classes[number][1] if number < len(classes) else _hatched(swatch)
        legend.paste(Image.fromarray(swatch), (x + 1, y + 5))
        draw.rectangle((x, y + 4, x + 27, y + 21), outline=_FAINT)
        draw.text((x + 36, y + 3), name, _INK, font)
    return legend


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)
