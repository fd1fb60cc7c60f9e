"""The sizes that protocols ask for, and resizing to them."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from isaseg.errors import ConfigError

Resize = Mapping[str, Any]

INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def base_size(height: int, width: int, resize: Resize | None) -> tuple[int, int]:
    """Return the size (H, W) that `resize` gives a picture of `height` and `width`.

    With {short_side: S}, the shorter side becomes S; {short_side: S, long_side: L}: as large as fits both, as
    mmsegmentation's keep_ratio; {size: [H, W]}: that size; None: unchanged.
    """
    if resize is None:
        return height, width
    if "size" in resize:
        return int(resize["size"][0]), int(resize["size"][1])
    factor = resize["short_side"] / min(height, width)
    if "long_side" in resize:
        factor = min(factor, resize["long_side"] / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def scaled_size(height: int, width: int, resize: Resize | None, scale: float) -> tuple[int, int]:
    """Return the size (H, W) of a picture at a scale, with the rounding of mmcv's Resize.

    The scale multiplies what `resize` asks for, rounded down, as in mmsegmentation 0.x; without `resize`, the picture's
    own size, as in 1.x.
    """
    if scale == 1:
        return base_size(height, width, resize)
    if resize is None:
        short, long = sorted((max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))))
        return base_size(height, width, {"short_side": short, "long_side": long})
    if "size" in resize:
        return base_size(height, width, {"size": [max(1, int(n * scale)) for n in resize["size"]]})
    return base_size(height, width, {key: max(1, int(n * scale)) for key, n in resize.items()})


def check_resize(resize: Resize | None, key: str) -> None:
    """Check the form of `resize`.

    Raises:
        ConfigError: Naming `key`.
    """
    if resize is None:
        return
    sides: Any = None
    if isinstance(resize, Mapping) and set(resize) in ({"short_side"}, {"short_side", "long_side"}):
        sides = list(resize.values())
    elif isinstance(resize, Mapping) and set(resize) == {"size"}:
        sides = resize["size"]
    is_list = isinstance(sides, list | tuple) and all(isinstance(n, int) and n > 0 for n in sides)
    if not is_list or ("size" in resize and len(sides) != 2):
        raise ConfigError(
            f"expected {key} as {{short_side: S}}, {{short_side: S, long_side: L}} or {{size: [H, W]}} in pixels, "
            f"got {resize}"
        )


def check_range(limits: tuple[float, float] | None, key: str, step: float | None = None) -> None:
    """Check a range of factors, and that it is a whole number of steps.

    Raises:
        ConfigError: Naming `key`, the step as `key`_step.
    """
    if limits is not None and not 0 < limits[0] <= limits[1]:
        raise ConfigError(f"expected {key} as [smallest, largest] above 0, got {limits}")
    if step is not None and (
        limits is None or abs(limits[0] + step * _steps(limits, step) - limits[1]) > 1e-6
    ):
        raise ConfigError(
            f"expected {key}_step to divide {key} into whole steps, got {step} for "
            f"{'null' if limits is None else list(limits)}; set {key}_step to null, or e.g. to 0.25 for [0.5, 2.0]"
        )


def draw_scale(limits: tuple[float, float] | None, step: float | None, rng: np.random.Generator) -> float:
    """Draw a factor within limits, of equal chance, or one of smallest, smallest + step, ..., largest; None: 1."""
    if limits is None:
        return 1.0
    if step is None:
        return rng.uniform(*limits)
    return limits[0] + step * int(rng.integers(_steps(limits, step) + 1))


def _steps(limits: tuple[float, float], step: float) -> int:
    return round((limits[1] - limits[0]) / step)


def fit(pixels: np.ndarray, size: tuple[int, int], flag: int) -> np.ndarray:
    """Return pixels (H, W) or (H, W, C) at `size` (h, w), by an interpolation of OpenCV."""
    if pixels.shape[:2] == size:
        return pixels
    done: np.ndarray = cv2.resize(pixels, size[::-1], interpolation=flag)
    return done
