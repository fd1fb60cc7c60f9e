"""What a training transform has drawn, read off the pictures that it makes; NumPy alone, for other code bases' Python.

The pictures are made so that they tell: in `ramp`, colour is place; in `palette`, colours show what was done to colours.
"""

from typing import Any

import numpy as np

GREYS = range(40, 131)  # stay within 0 to 255 under PhotoMetricDistortion
_TURNED = [np.roll(colour, k) for colour in ((138, 60, 34), (138, 34, 60)) for k in range(3)]  # show the hue
_PALE = [np.roll((130, 100, 85), k) for k in range(3)] + [np.roll((130, 85, 100), k) for k in range(3)]
_BRIGHT = [(250, 200, 120), (120, 200, 250), (220, 250, 160), (250, 140, 240)]  # clipped: the order shows


def ramp(height: int, width: int) -> np.ndarray:
    """Return a picture (H, W, 3) whose red is the column and whose green is the row, both from 12 to 243."""
    y, x = np.mgrid[:height, :width]
    parts = [12 + x * 231 / (width - 1), 12 + y * 231 / (height - 1), np.full((height, width), 128)]
    return np.stack(parts, axis=2).round().astype(np.uint8)


def stripes(height: int, width: int) -> np.ndarray:
    """Return labels (H, W) of which one class is more than half, one part none, and no crop has the same shares."""
    labels = np.zeros((height, width), np.uint8)
    labels[:, int(0.55 * width) :] = 1 + np.arange(width - int(0.55 * width)) * 6 // width
    labels[: height // 10] = 255
    return labels


def place(crop: np.ndarray, filled: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    """Return where a crop of `ramp(*size)` came from.

    Args:
        crop: (h, w, 3).
        filled: Where it is no padding, bool (h, w).
        size: (H, W) of the ramp.

    Returns:
        `rows` and `columns`, pixels of the crop for one of the picture; `top` and `left`, from 0 to 1, of all places
        where the window fits, NaN if there is hardly one; `above` and `before`, likewise of the padding; `flip`;
        `shift`, how much brighter it is.
    """
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    middle = (rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2
    down, along = crop[rows, middle[1]].astype(float), crop[middle[0], columns].astype(float)
    shift = down[:, 2].mean() - 128
    found = {"shift": float(shift)}
    lines = [down[:, 1] - shift, along[:, 0] - shift]
    found["flip"] = float(lines[1][0] > lines[1][-1])
    if found["flip"]:
        lines[1] = lines[1][::-1]
    names = (("rows", "top", "above"), ("columns", "left", "before"))
    for line, length, inside, whole, (step, start, padding) in zip(
        lines, size, (rows, columns), filled.shape, names, strict=True
    ):
        inner = np.arange(3, len(line) - 3)
        slope, first = np.polyfit(inner, (line[3:-3] - 12) * (length - 1) / 231, 1)
        found[step] = 1 / slope
        room = length - len(line) * slope
        first -= 0.5 * (slope - 1)  # centres of pixels: where the window begins
        found[start] = float(np.clip(first / room, 0, 1)) if room > 0.06 * length else np.nan
        free = whole - len(line)
        found[padding] = inside[0] / free if free > 0.06 * whole else np.nan
    return found


def palette() -> np.ndarray:
    """Return a picture (2, W, 3) of greys and of colours."""
    greys = [(grey, grey, grey) for grey in GREYS]
    return np.array([[*greys, *_PALE, *_TURNED, *_BRIGHT]] * 2, np.uint8)


def colours(picture: np.ndarray) -> dict[str, float]:
    """Return what PhotoMetricDistortion has done to `palette`, in steps that are larger than what rounding does.

    Returns:
        `shift` in steps of 4, `contrast`, `saturation` in steps of 0.1, `hue` in steps of 3 of 180; `first` is 1 if
        contrast came before saturation and hue, 0 if after, NaN if it makes no difference.
    """
    row = picture[0].astype(float)
    greys, pale, turned, bright = np.split(row, np.cumsum([len(GREYS), len(_PALE), len(_TURNED)]))
    contrast, offset = np.polyfit(list(GREYS), greys.mean(1), 1)
    shift = offset / contrast
    before = np.array(_PALE) + shift
    saturation = float(np.mean(_saturation(pale) / _saturation(before)))
    turns = np.exp(1j * (_hue(turned) - _hue(np.array(_TURNED))))
    hue = float(np.angle(turns.mean()) * 90 / np.pi)
    both = [
        _recoloured(np.array(_BRIGHT) + shift, contrast, saturation, hue, first) for first in (False, True)
    ]
    errors = [np.abs(bright - expected).max() for expected in both]
    decided = np.abs(both[0] - both[1]).max() > 15
    return {
        "shift": round(shift / 4) * 4.0,
        "contrast": round(float(contrast), 3),
        "saturation": round(saturation * 10) / 10,
        "hue": round(hue / 3) * 3.0,
        "first": float(errors[1] < errors[0]) if decided else np.nan,
    }


def table(found: list[dict[str, float]]) -> dict[str, Any]:
    """Return draws as one array for each name."""
    return {name: np.array([draw[name] for draw in found]) for name in found[0]}


def _saturation(colour: np.ndarray) -> np.ndarray:
    return 1 - colour.min(1) / colour.max(1)


def _hue(colour: np.ndarray) -> np.ndarray:
    """Return the hue in radians, by sixths of the circle."""
    chroma, largest = np.maximum(np.ptp(colour, axis=1), 1e-9), colour.argmax(1)
    after, later = (np.take_along_axis(colour, (largest[:, None] + k) % 3, 1)[:, 0] for k in (1, 2))
    return np.pi / 3 * (2 * largest + (after - later) / chroma)


def _recoloured(
    colour: np.ndarray, contrast: float, saturation: float, hue: float, first: bool
) -> np.ndarray:
    """Return colours (N, 3) under contrast, saturation and a turn of hue, in one of two orders."""
    x = np.clip(colour, 0, 255)
    if first:
        x = np.clip(x * contrast, 0, 255)
    value, turned = x.max(1), _hue(x) + hue * np.pi / 90
    chroma = value * np.minimum(1, _saturation(x) * saturation)
    # the channel whose hue is h away has value - chroma * min(1, max(0, |h| - 1)), in sixths of the circle
    away = np.abs((turned[:, None] * 3 / np.pi - np.array([0, 2, 4]) + 3) % 6 - 3)
    x = value[:, None] - chroma[:, None] * np.clip(away - 1, 0, 1)
    return x if first else np.clip(x * contrast, 0, 255)
