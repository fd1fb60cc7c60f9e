"""Colour jitter in uint8, a pure function of an image and a generator."""

import cv2
import numpy as np
from PIL import Image, ImageEnhance

_ENHANCED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def photometric(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image under mmsegmentation's PhotoMetricDistortion; each part is applied every other time.

    Brightness: plus -32 to 32. Contrast: times 0.5 to 1.5, before or after the next two. Saturation: times 0.5 to 1.5.
    Hue: plus -18 to 17 of 180. Saturation and hue share one conversion to HSV and back, where mmsegmentation has two.
    Values are rounded, not truncated.

    Args:
        image: uint8 RGB (H, W, 3), contiguous.
        rng: Generator of all draws.
    """
    shift = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    turn = int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0
    if shift:
        image = _plus(image, shift)
    if contrast != 1 and contrast_first:
        image = _times(image, contrast)
    if saturation != 1 or turn:
        hue, sat, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
        if turn:
            hue = cv2.LUT(hue, ((np.arange(256) + turn) % 180).astype(np.uint8))
        if saturation != 1:
            sat = _times(sat, saturation)
        image = cv2.cvtColor(cv2.merge([hue, sat, value]), cv2.COLOR_HSV2RGB)
    if contrast != 1 and not contrast_first:
        image = _times(image, contrast)
    return image


def brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image plus a whole number of -10 to 10, the same for all channels: openseg's random_brightness."""
    return _plus(image, int(rng.integers(-10, 11)))


def distortion(
    image: np.ndarray, rng: np.random.Generator, ranges: tuple[float, float, float], hue: float
) -> np.ndarray:
    """Return the image under PaddleSeg's RandomDistort (paddleseg/transforms/transforms.py:1001-1097).

    Brightness, contrast, saturation and hue change in random order, each every other time: the first three by Pillow's
    enhancement with a factor of 1 - r to 1 + r, hue by what is added to it. Sharpness, whose probability is 0 in all
    configurations of ISANet, is left out.

    Args:
        image: uint8 RGB (H, W, 3).
        rng: Generator of all draws.
        ranges: r of brightness, contrast and saturation.
        hue: Largest change of hue, of 256 for the whole circle.
    """
    picture = Image.fromarray(image)
    for part in rng.permutation(4):
        if rng.random() >= 0.5:
            continue
        if part < 3:
            factor = rng.uniform(1 - ranges[part], 1 + ranges[part])
            picture = _ENHANCED[part](picture).enhance(factor)
        else:
            picture = _turned(picture, rng.uniform(-hue, hue))
    return np.array(picture)


def _turned(picture: Image.Image, turn: float) -> Image.Image:
    """Return a picture with another hue; the sum is truncated towards zero before it wraps, as in PaddleSeg."""
    hue, sat, value = picture.convert("HSV").split()
    hue = hue.point(((np.arange(256) + turn).astype(int) % 256).tolist())
    return Image.merge("HSV", (hue, sat, value)).convert("RGB")


def _plus(image: np.ndarray, shift: float) -> np.ndarray:
    """Return image + shift, rounded and clipped to 0 to 255."""
    flat: np.ndarray = cv2.add(image.reshape(image.shape[0], -1), float(shift))
    return flat.reshape(image.shape)


def _times(image: np.ndarray, factor: float) -> np.ndarray:
    """Return factor * image, rounded and clipped at 255."""
    changed: np.ndarray = cv2.convertScaleAbs(image, alpha=factor)
    return changed
