"""The training transform: image, labels and region go through the same geometry, labels by nearest neighbour only.

The window of the source that will fill the crop is chosen first, and only that is resized. Scale, place and
flip are distributed as when the whole picture is resized and cropped, at a fraction of the work. All that follows is a
list of albumentations transforms. The result is a pure function of the key (seed, step, index): all transforms draw from
one generator, and no global random state is read or changed.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any, Literal, NamedTuple

import albumentations
import cv2
import numpy as np
from pydantic import Field

from isaseg.data.augment import Draws, Pairs, Sample, change, check_augment, compose
from isaseg.data.colour_jitter import brightness, distortion, photometric
from isaseg.data.resize import INTERPOLATIONS, Resize, base_size, check_range, check_resize, draw_scale, fit
from isaseg.errors import ConfigError

Level = Annotated[int, Field(ge=0, le=255)]
Share = Annotated[float, Field(ge=0, le=1)]
_TURNS = (None, cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)
_TRIES = 10  # mmsegmentation's RandomCrop


class Window(NamedTuple):
    """Rows and columns of the source, the size (h, w) that they get, and where that lies in the crop (top, left)."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    offset: tuple[int, int]


class _Recolour(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """A change of colours, pixel by pixel: where it leads the list, it is applied before padding."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p)


class PhotometricDistortion(_Recolour):
    """mmsegmentation's PhotoMetricDistortion, see `colour_jitter.photometric`."""

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Return the image (H, W, 3) in other colours."""
        return photometric(img, self.random_generator)


class BrightnessShift(_Recolour):
    """openseg's random_brightness, see `colour_jitter.brightness`."""

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Return the image (H, W, 3) brighter or darker."""
        return brightness(img, self.random_generator)


class PaddleDistortion(albumentations.ImageOnlyTransform):  # type: ignore[misc]
    """PaddleSeg's RandomDistort, see `colour_jitter.distortion`: of the padded crop, as there.

    Args:
        brightness: r of a factor between 1 - r and 1 + r.
        contrast: Likewise.
        saturation: Likewise.
        hue: Largest change of hue, of 256 for the whole circle.
        p: How often anything is done.
    """

    def __init__(
        self,
        brightness: Share = 0.4,
        contrast: Share = 0.4,
        saturation: Share = 0.4,
        hue: Annotated[float, Field(ge=0, le=128)] = 18.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.ranges, self.hue = (brightness, contrast, saturation), hue

    def apply(self, img: np.ndarray, *args: Any, **params: Any) -> np.ndarray:
        """Return the image (H, W, 3) in other colours."""
        return distortion(img, self.random_generator, self.ranges, self.hue)


class HorizontalFlip(albumentations.HorizontalFlip):  # type: ignore[misc]
    """Albumentations' HorizontalFlip that also swaps the classes that change places, such as left and right arm."""

    swaps_pairs = True

    def apply_with_params(self, params: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the targets flipped; among `kwargs` are the `flip_pairs` of the data set."""
        done: dict[str, Any] = super().apply_with_params(params, *args, **kwargs)
        return {**done, "mask": _swap(done["mask"], kwargs.get("flip_pairs", ()))}


class RandomRotate90(albumentations.RandomRotate90):  # type: ignore[misc]
    """Albumentations' RandomRotate90 by OpenCV, which takes a tenth of the time for images."""

    def apply(self, img: np.ndarray, factor: Literal[0, 1, 2, 3], **params: Any) -> np.ndarray:
        """Return the image (H, W, C), or labels (H, W), after `factor` quarter turns against the clock."""
        return cv2.rotate(img, _TURNS[factor]) if factor else img


class TrainTransform:
    """Resize, jitter of scale and aspect, crop, padding; then `augment`.

    Of `augment`, the leading PhotometricDistortion and BrightnessShift are applied before an enlargement and after a
    reduction, whichever has fewer pixels. They and a HorizontalFlip that follows them come before padding, as in
    mmsegmentation and openseg, so that padding keeps its colour and its place; the others come after it.

    Args:
        crop_size: (H, W) of the result.
        scale: Range of the factor of the scale jitter; None: no jitter.
        scale_step: The factor is the smallest, or a whole number of such steps above it, each equally likely; None: any.
        resize: The size that the scale jitter starts from, see `base_size`; None: the size in the file.
        aspect: Range of the jitter a of the aspect: width times sqrt(a), height by sqrt(a); None: no jitter.
        interpolation: Of the image.
        cat_max_ratio: Another place is tried, ten times at most, while one class fills this share of the labelled
            pixels of the crop or more; 1: the first place is taken. As mmsegmentation's RandomCrop.
        pad: Where a picture that is smaller than the crop lies in it: at the top left (corner), centre or random.
        pad_colour: RGB of padding; the default is about zero once normalised by ImageNet's mean.
        augment: albumentations transforms that keep the size and add no label but `ignore_index`, in order.
        ignore_index: Label of padding.

    Raises:
        ConfigError: If a range is not one of positive factors or no whole number of steps, or `augment` cannot be used,
            see `check_augment`.
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
        augment: Sequence[Any] = (),
        ignore_index: int = 255,
        scale_step: Annotated[float, Field(gt=0)] | None = None,
        pad_colour: tuple[Level, Level, Level] = (124, 116, 104),
    ) -> None:
        check_range(scale, "data.transform.scale", scale_step)
        check_range(aspect, "data.transform.aspect")
        check_resize(resize, "data.transform.resize")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        check_augment(augment, self.crop_size, ignore_index)
        self.resize, self.scale, self.scale_step, self.aspect = resize, scale, scale_step, aspect
        self.interpolation, self.cat_max_ratio, self.pad = interpolation, cat_max_ratio, pad
        self.augment, self.ignore_index, self.pad_colour = tuple(augment), ignore_index, tuple(pad_colour)
        self.recolour = tuple(takewhile(lambda transform: isinstance(transform, _Recolour), augment))
        others = self.augment[len(self.recolour) :]
        flips = tuple(
            takewhile(lambda transform: isinstance(transform, albumentations.HorizontalFlip), others)
        )
        self.flips, self.rest = compose(flips), compose(others[len(flips) :])

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

        Raises:
            ConfigError: If a transform changed the size after all.
        """
        rng = np.random.default_rng(tuple(key))
        window, labels = self._choose(mask, self.factors(image.shape, rng), rng)
        # INTER_NEAREST would take the pixel half a pixel to the top left
        mask = fit(labels, window.size, cv2.INTER_NEAREST_EXACT)
        if far is not None:
            inside = np.ascontiguousarray(far[window.rows, window.columns]).view(np.uint8)
            far = fit(inside, window.size, cv2.INTER_NEAREST_EXACT)
        draws = Draws(rng)
        image = self._image(image[window.rows, window.columns], window, draws)
        image, mask, far = change(self.flips, (image, mask, far), draws, flip_pairs)
        image = self._padded(image, window, self.pad_colour)
        mask = self._padded(mask, window, self.ignore_index)
        far = None if far is None else self._padded(far, window, 0)
        image, mask, far = change(self.rest, (image, mask, far), draws, flip_pairs)
        if not image.shape[:2] == mask.shape == self.crop_size:
            raise ConfigError(
                f"expected data.transform.augment to keep data.crop_size={list(self.crop_size)}, "
                f"got an image of {image.shape[:2]}, labels of {mask.shape}"
            )
        return image, mask, None if far is None else far == 1  # not what a transform filled with

    def factors(self, shape: Sequence[int], rng: np.random.Generator) -> tuple[float, float]:
        """Draw scale and aspect; return by what height and width of a picture of `shape` (H, W, ...) are multiplied."""
        base = base_size(shape[0], shape[1], self.resize)
        scale = draw_scale(self.scale, self.scale_step, rng)
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

    def _image(self, pixels: np.ndarray, window: Window, draws: Draws) -> np.ndarray:
        enlarged = pixels.shape[0] * pixels.shape[1] < window.size[0] * window.size[1]
        if enlarged:
            pixels = self._recoloured(pixels, draws)
        pixels = fit(pixels, window.size, INTERPOLATIONS[self.interpolation])
        if not enlarged:
            pixels = self._recoloured(pixels, draws)
        return pixels

    def _recoloured(self, pixels: np.ndarray, draws: Draws) -> np.ndarray:
        for transform in self.recolour:
            transform.set_random_state(draws.generator, draws)
            pixels = transform(image=pixels)["image"]
        return pixels

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
