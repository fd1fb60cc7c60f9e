"""The training transform: image, labels and region go through the same geometry, labels by nearest neighbour only.

A pure function of its key (seed, batch number, sample index): no global random state is read or changed.
"""

import os
import warnings
from collections.abc import Sequence

# Otherwise the import asks pypi.org for a newer version, in every process.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np

from isaseg.errors import ConfigError

Sample = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Pairs = Sequence[tuple[int, int]]

_GREY = (124, 116, 104)  # ImageNet's mean colour, 255 * (0.485, 0.456, 0.406): about zero once normalised


class TrainTransform:
    """Scale jitter, pad, random crop, horizontal flip, quarter turns, photometric distortion, in this order.

    Args:
        crop_size: (H, W) of the result.
        scale: Range of the factor of the scale jitter; None: no jitter.
        flip: Flip horizontally every other time.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees.
        photometric: Jitter brightness, contrast, saturation and hue.
        ignore_index: Label of padding.

    Raises:
        ConfigError: If `scale` is no range of positive factors, or quarter turns are asked of an oblong crop.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        scale: Sequence[float] | None = (0.5, 2.0),
        flip: bool = True,
        quarter_turns: bool = False,
        photometric: bool = True,
        ignore_index: int = 255,
    ) -> None:
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1]):
            raise ConfigError(f"expected data.transform.scale as [smallest, largest] above 0, got {scale=}")
        if quarter_turns and crop_size[0] != crop_size[1]:
            raise ConfigError(f"expected a square data.crop_size for quarter turns, got {crop_size=}")
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.flip, self.quarter_turns = flip, quarter_turns
        self.scaled = scale is not None
        with warnings.catch_warnings():
            # albumentations ignores an argument that it does not know, with a warning
            warnings.filterwarnings("error", message=r"Argument\(s\)")
            self.cut = _cut(self.crop_size, scale, ignore_index)
            self.colours = _colours() if photometric else None

    def __call__(
        self,
        image: np.ndarray,
        mask: np.ndarray,
        far: np.ndarray | None,
        key: Sequence[int],
        flip_pairs: Pairs = (),
    ) -> Sample:
        """Return image, mask and far of `crop_size`.

        Args:
            image: uint8 RGB, (H, W, 3).
            mask: uint8 train ids, (H, W).
            far: A region, bool (H, W).
            key: Whole numbers; the same key gives the same result.
            flip_pairs: Classes that change places in a mirror, such as left and right arm.
        """
        rng = np.random.default_rng(tuple(key))
        if self.scaled or image.shape[:2] != self.crop_size:
            _reseed(self.cut, rng)
            if far is None:
                done = self.cut(image=image, mask=mask)
            else:
                done = self.cut(image=image, mask=mask, far=far.astype(np.uint8))
                far = done["far"] == 1
            image, mask = done["image"], done["mask"]
        if self.flip and rng.random() < 0.5:
            image, mask = image[:, ::-1], _swap(mask[:, ::-1], flip_pairs)
            far = None if far is None else far[:, ::-1]
        if self.quarter_turns:
            turns = int(rng.integers(4))
            image, mask = np.rot90(image, turns), np.rot90(mask, turns)
            far = None if far is None else np.rot90(far, turns)
        if self.colours is not None:
            _reseed(self.colours, rng)
            image = self.colours(image=np.ascontiguousarray(image))["image"]
        return image, mask, far


def _cut(crop_size: tuple[int, int], scale: Sequence[float] | None, ignore_index: int) -> A.Compose:
    height, width = crop_size
    steps: list[A.BasicTransform] = []
    if scale is not None:
        steps.append(
            A.RandomScale(
                (scale[0] - 1, scale[1] - 1),  # albumentations adds 1
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                p=1,
            )
        )
    steps += [
        A.PadIfNeeded(
            height, width, border_mode=cv2.BORDER_CONSTANT, fill=_GREY, fill_mask=ignore_index, p=1
        ),
        A.RandomCrop(height, width, p=1),
    ]
    return A.Compose(steps, additional_targets={"far": "mask"})


def _colours() -> A.Compose:
    """Return mmsegmentation's PhotoMetricDistortion as near as ColorJitter comes: each part every other time.

    Ranges of mmseg: brightness +-32 of 255 (added there, a factor here), contrast and saturation 0.5 to 1.5, hue +-18
    of 180, a tenth of the circle.
    """
    still = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
    ranges = {
        "brightness": (1 - 32 / 255, 1 + 32 / 255),
        "contrast": (0.5, 1.5),
        "saturation": (0.5, 1.5),
        "hue": (-18 / 180, 18 / 180),
    }
    return A.Compose([A.ColorJitter(**{**still, part: limits}, p=0.5) for part, limits in ranges.items()])


def _reseed(compose: A.Compose, rng: np.random.Generator) -> None:
    # Compose.set_random_seed would give every step the same seed: crop position and scale would move together
    for step in compose.transforms:
        step.set_random_seed(int(rng.integers(2**31)))


def _swap(mask: np.ndarray, pairs: Pairs) -> np.ndarray:
    if not pairs:
        return mask
    table = np.arange(256, dtype=mask.dtype)
    for left, right in pairs:
        table[left], table[right] = right, left
    swapped: np.ndarray = table[mask]
    return swapped
