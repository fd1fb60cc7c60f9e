"""The list `data.transform.augment`: albumentations transforms, checked, applied in order on one random stream."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from albumentations import D4, BaseCompose, BasicTransform, Compose, HorizontalFlip, Transpose, VerticalFlip

from isaseg.data.check import shown
from isaseg.errors import ConfigError

Sample = tuple[np.ndarray, np.ndarray, np.ndarray | None]
Pairs = Sequence[tuple[int, int]]
KEY = "data.transform.augment"
_MIRRORS = (HorizontalFlip, VerticalFlip, Transpose, D4)


class Draws(random.Random):
    """What `random.Random` draws, from a NumPy generator: all draws of a sample are one stream, nothing is kept.

    Args:
        generator: The stream.
    """

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def __reduce__(self) -> tuple[Any, ...]:
        return Draws, (self.generator,)

    def random(self) -> float:
        """Return a number from 0 to 1."""
        return self.generator.random()

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of k bits."""
        return int.from_bytes(self.generator.bytes(-(-k // 8)), "little") >> -k % 8

    def randint(self, a: int, b: int) -> int:
        """Return an integer from a to b, both included."""
        return int(self.generator.integers(a, b + 1))

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        """Return a normal number; that of the base keeps every second one for the next sample."""
        return float(self.generator.normal(mu, sigma))


def compose(transforms: Sequence[Any]) -> Compose:
    """Return transforms as one, for image, mask and far; `far` is turned and bent like a mask."""
    return Compose(list(transforms), additional_targets={"far": "mask"}, is_check_shapes=False)


def change(transforms: Compose, sample: Sample, draws: Draws, flip_pairs: Pairs) -> Sample:
    """Return image, mask and far changed by transforms that draw from `draws`."""
    if not transforms.transforms:
        return sample
    transforms.set_random_state(draws.generator, draws)
    image, mask, far = sample
    # forced, it draws no number of its own
    done = transforms(image=image, mask=mask, far=far, flip_pairs=flip_pairs, force_apply=True)
    return done["image"], done["mask"], done["far"]


def check_augment(transforms: Sequence[Any], crop_size: tuple[int, int], ignore_index: int) -> None:
    """Apply each transform to noise: what would spoil every sample is found before the first step.

    Raises:
        ConfigError: Naming the transform, if it is none of albumentations, needs more than an image and its labels,
            changes their size or type, or adds a label that was not there, as interpolation and filling do.
    """
    for index, transform in enumerate(transforms):
        key, name = f"{KEY}[{index}]", type(transform).__name__
        if not isinstance(transform, BasicTransform | BaseCompose):
            raise ConfigError(
                f"expected {key} to be an albumentations transform, got {transform!r}; "
                "write e.g. {_target_: albumentations.GaussianBlur, p: 0.2}"
            )
        for seed in range(16 if isinstance(transform, BaseCompose) else 4):  # which part, how far: by chance
            sample = _noise(crop_size, seed)
            try:
                done = _applied(transform, sample, seed)
            except Exception as error:
                raise ConfigError(
                    f"expected {key} to work on an image of data.crop_size={list(crop_size)} and its labels, got {name}, "
                    f"which fails: {' '.join(str(error).split())[:200]}"
                ) from error
            for part, before in sample.items():
                if shown(done[part]) != shown(before):
                    raise ConfigError(
                        f"expected {key} to keep size and type, {shown(before)} for data.crop_size={list(crop_size)}, "
                        f"got {name}, which makes the {part} {shown(done[part])}"
                    )
            new = set(np.unique(done["mask"]).tolist()) - {*np.unique(sample["mask"]).tolist(), ignore_index}
            if new:
                raise ConfigError(
                    f"expected {key} to add no label but data.ignore_index={ignore_index}, got {name}, which adds "
                    f"{sorted(new)[:3]}; give it fill_mask: {ignore_index}, or mask_interpolation: 0 if it resamples"
                )


def check_mirrors(transforms: Sequence[Any], flip_pairs: Sequence[tuple[int, int]]) -> None:
    """Check that what mirrors a picture swaps the classes that a mirror swaps, such as left and right arm.

    Raises:
        ConfigError: Naming a transform that does not.
    """
    for index, transform in enumerate(transforms):
        for leaf in _leaves(transform):
            if flip_pairs and isinstance(leaf, _MIRRORS) and not getattr(leaf, "swaps_pairs", False):
                raise ConfigError(
                    f"expected {KEY}[{index}] to swap the paired classes {[list(pair) for pair in flip_pairs]} of the "
                    f"data set, got albumentations' {type(leaf).__name__}, which does not; mirror by "
                    "isaseg.data.transforms.HorizontalFlip"
                )


def _leaves(transform: BasicTransform | BaseCompose) -> Iterator[BasicTransform]:
    if isinstance(transform, BaseCompose):
        for part in transform.transforms:
            yield from _leaves(part)
    else:
        yield transform


def _noise(size: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Return image, mask and far; among the labels is no 0, with which albumentations fills unless told otherwise."""
    rng = np.random.default_rng(seed)
    image, labels = rng.integers(0, 256, (*size, 3), np.uint8), np.array([1, 101, 201], np.uint8)
    return {"image": image, "mask": rng.choice(labels, size), "far": rng.integers(0, 2, size, np.uint8)}


def _applied(
    transform: BasicTransform | BaseCompose, sample: dict[str, np.ndarray], seed: int
) -> dict[str, Any]:
    whole, rng = compose([transform]), np.random.default_rng(seed)
    whole.set_random_state(rng, Draws(rng))
    done: dict[str, Any] = transform(force_apply=True, **sample)
    return done
