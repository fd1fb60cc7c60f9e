"""The training transform: image, labels and region go through the same geometry, labels by nearest neighbour only.

The window of the source that will fill the crop is chosen first, and only that is read and resized. Scale, place and
flip are distributed as when the whole picture is resized and cropped, at a fraction of the work. The result is a pure
function of the key (seed, step, index): no global random state is read or changed.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from isaseg.data.colour_jitter import brightness, photometric
from isaseg.data.resize import INTERPOLATIONS, Resize, base_size, check_resize, fit
from isaseg.errors import ConfigError

Sample = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Pairs = Sequence[tuple[int, int]]
JITTERS = {"photometric": photometric, "brightness": brightness}
_GREY = (124, 116, 104)  # ImageNet's mean colour, 255 * (0.485, 0.456, 0.406): about zero once normalised
_TRIES = 10  # mmsegmentation's RandomCrop


class Window(NamedTuple):
    """Rows and columns of the source, the size (h, w) that they get, and where that lies in the crop (top, left)."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    offset: tuple[int, int]


class TrainTransform:
    """Resize, jitter of scale and aspect, crop, colours, padding, flip, quarter turns, more.

    Colours are changed before an enlargement and after a reduction, whichever has fewer pixels, and never in padding.

    Args:
        crop_size: (H, W) of the result.
        scale: Range of the factor of the scale jitter; None: no jitter.
        resize: The size that the scale jitter starts from, see `base_size`; None: the size in the file.
        aspect: Range of the jitter a of the aspect: width times sqrt(a), height by sqrt(a); None: no jitter.
        interpolation: Of the image.
        cat_max_ratio: Another place is tried, ten times at most, while one class fills this share of the labelled
            pixels of the crop or more; 1: the first place is taken. As mmsegmentation's RandomCrop.
        pad: Where a picture that is smaller than the crop lies in it: at the top left (corner), centre or random.
        flip: Flip horizontally every other time.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        colours: photometric (mmsegmentation), brightness (openseg), or None.
        extra: albumentations transforms that keep the size, applied last.
        ignore_index: Label of padding.

    Raises:
        ConfigError: If a range is not one of positive factors, or quarter turns are asked of a crop that is not square.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: tuple[float, float] | None = (0.5, 2.0),
        resize: Resize | None = None,
        aspect: tuple[float, float] | None = None,
        interpolation: Literal["linear", "cubic"] = "linear",
        cat_max_ratio: Annotated[float, Field(gt=0, le=1)] = 1.0,
        pad: Literal["corner", "centre", "random"] = "centre",
        flip: bool = True,
        quarter_turns: bool = False,
        colours: Literal["photometric", "brightness"] | None = "photometric",
        extra: Sequence[Any] = (),
        ignore_index: int = 255,
    ) -> None:
        for name, limits in (("scale", scale), ("aspect", aspect)):
            if limits is not None and not 0 < limits[0] <= limits[1]:
                raise ConfigError(
                    f"expected data.transform.{name} as [smallest, largest] above 0, got {limits}"
                )
        if quarter_turns and crop_size[0] != crop_size[1]:
            raise ConfigError(f"expected a square data.crop_size for quarter turns, got {crop_size=}")
        check_resize(resize, "data.transform.resize")
        for transform in extra:
            if not callable(getattr(transform, "set_random_seed", None)):
                raise ConfigError(
                    f"expected data.transform.extra to be a list of albumentations transforms, got {transform!r} in it; "
                    "e.g. [{_target_: albumentations.GaussianBlur, p: 0.2}]"
                )
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.resize, self.scale, self.aspect = resize, scale, aspect
        self.interpolation, self.cat_max_ratio, self.pad = interpolation, cat_max_ratio, pad
        self.flip, self.quarter_turns, self.extra = flip, quarter_turns, tuple(extra)
        self.recolour = None if colours is None else JITTERS[colours]
        self.ignore_index = ignore_index

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
            key: Integers; the same key gives the same result.
            flip_pairs: Classes that change places in a mirror image, such as left and right arm.
        """
        rng = np.random.default_rng(tuple(key))
        window, labels = self._choose(mask, self.factors(image.shape, rng), rng)
        # INTER_NEAREST would take the pixel half a pixel to the top left
        mask = self._padded(fit(labels, window.size, cv2.INTER_NEAREST_EXACT), window, self.ignore_index)
        if far is not None:
            inside = np.ascontiguousarray(far[window.rows, window.columns]).view(np.uint8)
            far = self._padded(fit(inside, window.size, cv2.INTER_NEAREST_EXACT), window, 0).view(bool)
        image = self._image(image[window.rows, window.columns], window, rng)
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

    def factors(self, shape: Sequence[int], rng: np.random.Generator) -> tuple[float, float]:
        """Draw scale and aspect; return by what height and width of a picture of `shape` (H, W, ...) are multiplied."""
        base = base_size(shape[0], shape[1], self.resize)
        scale = 1.0 if self.scale is None else rng.uniform(*self.scale)
        stretch = 1.0 if self.aspect is None else rng.uniform(*self.aspect) ** 0.5
        return base[0] / shape[0] * scale / stretch, base[1] / shape[1] * scale * stretch

    def window(self, shape: Sequence[int], factors: tuple[float, float], rng: np.random.Generator) -> Window:
        """Draw a window of a source of `shape` (H, W, ...) that fills the crop once it is multiplied by `factors`.

        The size of a window is a whole number of pixels of the source, so the scale is off by at most half a pixel in
        the length of the window.
        """
        (rows, height, top), (columns, width, left) = (
            self._interval(shape[axis], self.crop_size[axis], factors[axis], rng) for axis in (0, 1)
        )
        return Window(rows, columns, (height, width), (top, left))

    def _interval(
        self, length: int, crop: int, factor: float, rng: np.random.Generator
    ) -> tuple[slice, int, int]:
        window = max(1, round(crop / factor))
        if window <= length:
            start = int(rng.integers(length - window + 1))
            return slice(start, start + window), crop, 0
        filled = min(crop, max(1, round(length * factor)))
        room = crop - filled
        offset = {"corner": 0, "centre": room // 2}.get(self.pad)
        return slice(0, length), filled, int(rng.integers(room + 1)) if offset is None else offset

    def _choose(
        self, mask: Any, factors: tuple[float, float], rng: np.random.Generator
    ) -> tuple[Window, np.ndarray]:
        for attempt in range(_TRIES + 1):
            window = self.window(mask.shape, factors, rng)
            labels = mask[window.rows, window.columns]
            if self.cat_max_ratio == 1 or attempt == _TRIES or labels.shape == mask.shape:
                break  # with the whole picture, every try is the same
            if not _is_filled(labels, self.ignore_index, self.cat_max_ratio):
                break
        return window, labels

    def _image(self, pixels: np.ndarray, window: Window, rng: np.random.Generator) -> np.ndarray:
        enlarged = pixels.shape[0] * pixels.shape[1] < window.size[0] * window.size[1]
        if self.recolour and enlarged:
            pixels = self.recolour(np.ascontiguousarray(pixels), rng)
        pixels = fit(pixels, window.size, INTERPOLATIONS[self.interpolation])
        if self.recolour and not enlarged:
            pixels = self.recolour(np.ascontiguousarray(pixels), rng)
        return self._padded(pixels, window, _GREY)

    def _padded(self, pixels: np.ndarray, window: Window, fill: int | tuple[int, ...]) -> np.ndarray:
        if window.size == self.crop_size:
            return pixels
        (top, left), (height, width) = window.offset, window.size
        bottom, right = self.crop_size[0] - top - height, self.crop_size[1] - left - width
        padded: np.ndarray = cv2.copyMakeBorder(
            pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill
        )
        return padded


def _is_filled(labels: np.ndarray, ignore_index: int, ratio: float) -> bool:
    """Return whether one class has at least `ratio` of the labelled pixels, or none is labelled.

    Every 64th pixel shows which class is the largest, and is enough where its share is far below `ratio`.
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
