"""Predictions as people see them: a picture under the colours of its classes, and the legend of the colours."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isaseg.files import replace_file

_LONGEST_SIDE = 2048  # as much as a screen shows; the label file has every pixel
_BLEND = 0.5  # share of the colour of the class
_JPEG_QUALITY = 90
_COLUMNS, _ROW, _MARGIN, _NAME = 4, 28, 16, 48  # of the legend


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the picture under the colours of its classes, with light borders, at most 2048 pixels on a side.

    Args:
        image: uint8 RGB (H, W, 3).
        labels: Classes, uint8 (H, W).
        colours: uint8 RGB (K, 3).
    """
    factor = _LONGEST_SIDE / max(labels.shape)
    if factor < 1:
        size = max(1, round(labels.shape[1] * factor)), max(1, round(labels.shape[0] * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(colours), 0] = colours
    blend: np.ndarray = cv2.addWeighted(image, 1 - _BLEND, cv2.LUT(cv2.merge([labels] * 3), table), _BLEND, 0)
    borders = np.zeros(labels.shape, bool)
    borders[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    borders[1:] |= labels[1:] != labels[:-1]
    blend[borders] = blend[borders] // 3 + 170
    return blend


def write_overlay(path: Path, image: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> None:
    """Write `overlay` as a JPEG, whole or not at all."""
    blend = np.ascontiguousarray(overlay(image, labels, colours)[..., ::-1])  # OpenCV's order
    _, content = cv2.imencode(".jpg", blend, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
    with replace_file(path) as file:
        file.write(content.tobytes())


def write_legend(path: Path, classes: Sequence[str], ids: np.ndarray, colours: np.ndarray) -> None:
    """Write a PNG that shows each class's colour, id and name, whole or not at all."""
    font = ImageFont.load_default(16)
    texts = [f"{number}  {name[:_NAME]}" for number, name in zip(ids, classes, strict=True)]
    cell = 44 + max(int(font.getlength(text)) for text in texts)
    columns = min(_COLUMNS, len(texts))
    rows = -(-len(texts) // columns)
    legend = Image.new("RGB", (columns * cell + 2 * _MARGIN, rows * _ROW + 2 * _MARGIN), (255, 255, 255))
    draw = ImageDraw.Draw(legend)
    for number, text in enumerate(texts):
        x, y = _MARGIN + number // rows * cell, _MARGIN + number % rows * _ROW
        draw.rectangle((x, y + 4, x + 26, y + 21), tuple(colours[number].tolist()), (120, 120, 120))
        draw.text((x + 34, y + 3), text, (34, 34, 34), font)
    with replace_file(path) as file:
        legend.save(file, "PNG")
