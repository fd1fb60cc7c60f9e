"""The training transform: image, labels and region go through the same geometry, labels by nearest neighbour only.

The window of the source that will fill the crop is chosen first, and only that is read and resized: the distribution of
scale, place and flip is that of resizing the whole picture and cropping it, at a fraction of the work. A pure function
of its key (seed, batch number, sample index): no global random state is read or changed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from isaseg.data import colours
from isaseg.data.resize import INTERPOLATIONS, Resize, base_size, check_resize, fit
from isaseg.errors import ConfigError

Sample = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Pairs = Sequence[tuple[int, int]]
PADS = ("corner", "centre", "random")
_GREY = (124, 116, 104)  # ImageNet's mean colour, 255 * (0.485, 0.456, 0.406): about zero once normalised
_TRIES = 10  # mmsegmentation's RandomCrop


class TrainTransform:
    """Resize, jitter of scale and aspect, crop, colours, pad, flip, quarter turns, more.

    Colours are changed before an enlargement and after a reduction, whichever has fewer pixels, and never in padding.

    Args:
        crop_size: (H, W) of the result.
        scale: Range of the factor of the scale jitter; None: no jitter.
        resize: What the scale jitter is relative to, see `base_size`; None: the size in the file.
        aspect: Range of the jitter a of the aspect: width times sqrt(a), height by sqrt(a); None: no jitter.
        interpolation: Of the image: linear or cubic.
        cat_max_ratio: Another place is tried, ten times at most, while one class fills this share of the labelled
            pixels of the crop or more; 1: the first place is taken. As mmsegmentation's RandomCrop.
        pad: Where a picture that is smaller than the crop lies in it: corner (above left), centre or random.
        flip: Flip horizontally every other time.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        colours: photometric (mmsegmentation), brightness (openseg), or None.
        extra: albumentations transforms that keep the size, applied last.
        ignore_index: Label of padding.

    Raises:
        ConfigError: If a range is no range of positive factors, a name is unknown, or quarter turns are asked of an
            oblong crop.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] | None = (0.5, 2.0),
        resize: Resize | None = None,
        aspect: Sequence[float] | None = None,
        interpolation: str = "linear",
        cat_max_ratio: float = 1.0,
        pad: str = "centre",
        flip: bool = True,
        quarter_turns: bool = False,
        colours: str | None = "photometric",
        extra: Sequence[Any] = (),
        ignore_index: int = 255,
    ) -> None:
        for name, limits in (("scale", scale), ("aspect", aspect)):
            if limits is not None and not _is_range(limits):
                raise ConfigError(
                    f"expected data.transform.{name} as [smallest, largest] above 0, got {limits}"
                )
        if quarter_turns and crop_size[0] != crop_size[1]:
            raise ConfigError(f"expected a square data.crop_size for quarter turns, got {crop_size=}")
        if not isinstance(cat_max_ratio, int | float) or not 0 < cat_max_ratio <= 1:
            raise ConfigError(
                f"expected data.transform.cat_max_ratio above 0 and at most 1, got {cat_max_ratio}"
            )
        for name, value, names in (
            ("interpolation", interpolation, tuple(INTERPOLATIONS)),
            ("pad", pad, PADS),
            ("colours", colours, (*COLOURS, None)),
        ):
            if value not in names:
                raise ConfigError(f"expected data.transform.{name} as one of {names}, got {value!r}")
        check_resize(resize, "data.transform.resize")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.resize, self.scale, self.aspect = resize, scale, aspect
        self.interpolation, self.cat_max_ratio, self.pad = interpolation, cat_max_ratio, pad
        self.flip, self.quarter_turns, self.colours = flip, quarter_turns, colours
        for transform in extra:
            if not callable(getattr(transform, "set_random_seed", None)):
                raise ConfigError(
                    f"expected data.transform.extra to be a list of albumentations transforms, got {transform!r} in it; "
                    "e.g. [{_target_: albumentations.GaussianBlur, p: 0.2}]"
                )
        self.extra, self.ignore_index = tuple(extra), ignore_index

    def __call__(
        self,
        image: Any,
        mask: Any,
        far: np.ndarray | None,
        key: Sequence[int],
        flip_pairs: Pairs = (),
    ) -> Sample:
        """Return image, mask and far of `crop_size`.

        Args:
            image: uint8 RGB, (H, W, 3); an array, or what gives one for `image[rows, columns]`.
            mask: uint8 train ids, (H, W), likewise.
            far: A region, bool (H, W).
            key: Whole numbers; the same key gives the same result.
            flip_pairs: Classes that change places in a mirror, such as left and right arm.
        """
        rng = np.random.default_rng(tuple(key))
        size = (image.shape[0], image.shape[1])
        if self.scale or self.aspect or self.resize or size != self.crop_size:
            windows = self.windows(size, rng)
            window, labels = self._choose(mask, windows)
            flag = cv2.INTER_NEAREST_EXACT  # INTER_NEAREST takes the pixel half a pixel up and left
            mask = _padded(fit(labels, window.size, flag), window, self.crop_size, self.ignore_index)
            if far is not None:
                inside = np.ascontiguousarray(far[window.rows, window.columns]).view(np.uint8)
                far = _padded(fit(inside, window.size, flag), window, self.crop_size, 0).view(bool)
            image = self._image(image[window.rows, window.columns], window, rng)
        else:
            image, mask = self._recolour(image[:, :], rng), mask[:, :]
        if self.flip and rng.random() < 0.5:
            image, mask = cv2.flip(image, 1), _swap(cv2.flip(mask, 1), flip_pairs)
            far = None if far is None else far[:, ::-1]
        if self.quarter_turns:
            turns = int(rng.integers(4))
            image, mask = np.rot90(image, turns), np.rot90(mask, turns)
            far = None if far is None else np.rot90(far, turns)
        for transform in self.extra:
            transform.set_random_seed(int(rng.integers(2**31)))
            done = transform(image=np.ascontiguousarray(image), mask=np.ascontiguousarray(mask))
            image, mask = done["image"], done["mask"]
            if image.shape[:2] != mask.shape or mask.shape != self.crop_size:
                raise ConfigError(
                    f"expected transforms that keep the size in data.transform.extra, got {type(transform).__name__}, "
                    f"which makes {self.crop_size} {image.shape[:2]}"
                )
        return image, mask, far

    def windows(self, size: tuple[int, int], rng: np.random.Generator) -> "Windows":
        """Draw scale and aspect for a picture of `size` (H, W) and give windows at random places, without end."""
        base = base_size(*size, self.resize)
        scale = 1.0 if self.scale is None else rng.uniform(self.scale[0], self.scale[1])
        stretch = 1.0 if self.aspect is None else rng.uniform(self.aspect[0], self.aspect[1]) ** 0.5
        factors = (base[0] / size[0] * scale / stretch, base[1] / size[1] * scale * stretch)
        return Windows(size, self.crop_size, factors, self.pad, rng)

    def _image(self, pixels: np.ndarray, window: "Window", rng: np.random.Generator) -> np.ndarray:
        enlarged = pixels.shape[0] * pixels.shape[1] < window.size[0] * window.size[1]
        if enlarged:
            pixels = self._recolour(pixels, rng)
        pixels = fit(pixels, window.size, INTERPOLATIONS[self.interpolation])
        return _padded(pixels if enlarged else self._recolour(pixels, rng), window, self.crop_size, _GREY)

    def _recolour(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return pixels if self.colours is None else COLOURS[self.colours](np.ascontiguousarray(pixels), rng)

    def _choose(self, mask: Any, windows: "Windows") -> "tuple[Window, np.ndarray]":
        for attempt in range(_TRIES + 1):
            window = next(windows)
            labels = mask[window.rows, window.columns]
            if self.cat_max_ratio == 1 or attempt == _TRIES or labels.shape == mask.shape:
                break  # the last: the whole picture, wherever it is tried
            if not _is_filled(labels, self.ignore_index, self.cat_max_ratio):
                break
        return window, labels


class Window(NamedTuple):
    """Rows and columns of the source; the size they get, and where they lie in the crop."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    offset: tuple[int, int]


class Windows:
    """Windows of a source of `size` that fill a crop when they are scaled by `factors`, at random places.

    The size of a window is a whole number of pixels of the source: so the scale is off by half a pixel in the length of
    the window at most.
    """

    def __init__(
        self,
        size: tuple[int, int],
        crop_size: tuple[int, int],
        factors: tuple[float, float],
        pad: str,
        rng: np.random.Generator,
    ) -> None:
        self.size, self.crop_size, self.factors, self.pad, self.rng = size, crop_size, factors, pad, rng

    def __next__(self) -> Window:
        """Draw a place."""
        (rows, height, top), (columns, width, left) = (self._axis(axis) for axis in (0, 1))
        return Window(rows, columns, (height, width), (top, left))

    def _axis(self, axis: int) -> tuple[slice, int, int]:
        length, crop, factor = self.size[axis], self.crop_size[axis], self.factors[axis]
        window = max(1, round(crop / factor))
        if window <= length:
            start = int(self.rng.integers(length - window + 1))
            return slice(start, start + window), crop, 0
        filled = min(crop, max(1, round(length * factor)))
        room = crop - filled
        offset = {"corner": 0, "centre": room // 2}.get(self.pad)
        return slice(0, length), filled, int(self.rng.integers(room + 1)) if offset is None else offset


def _is_range(limits: Any) -> bool:
    if not isinstance(limits, list | tuple) or not all(isinstance(x, int | float) for x in limits):
        return False
    return len(limits) == 2 and 0 < limits[0] <= limits[1]


def _padded(
    pixels: np.ndarray, window: Window, crop_size: tuple[int, int], fill: int | tuple[int, ...]
) -> np.ndarray:
    if window.size == crop_size:
        return pixels
    (top, left), (height, width) = window.offset, window.size
    below, right = crop_size[0] - top - height, crop_size[1] - left - width
    padded: np.ndarray = cv2.copyMakeBorder(pixels, top, below, left, right, cv2.BORDER_CONSTANT, value=fill)
    return padded


def _is_filled(labels: np.ndarray, ignore_index: int, ratio: float) -> bool:
    """Tell whether one class has at least `ratio` of the labelled pixels, or none is labelled.

    Every 64th pixel tells which class is the largest, and decides alone where its share is far below `ratio`.
    """
    some = np.bincount(labels[::8, ::8].ravel(), minlength=256)
    some[ignore_index] = 0
    if some.max() < (ratio - 0.15) * some.sum():
        return False
    labelled = np.count_nonzero(labels != ignore_index)
    return bool(np.count_nonzero(labels == some.argmax()) >= ratio * labelled)


def _swap(mask: np.ndarray, pairs: Pairs) -> np.ndarray:
    if not pairs:
        return mask
    table = np.arange(256, dtype=np.uint8)
    for left, right in pairs:
        table[left], table[right] = right, left
    swapped: np.ndarray = cv2.LUT(mask, table)
    return swapped


COLOURS = {"photometric": colours.photometric, "brightness": colours.brightness}
