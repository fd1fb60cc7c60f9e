"""The torch data set over any source: a sample as tensors, a pure function of seed, step and index."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from isaseg.data.resize import Resize, resized
from isaseg.data.sampler import Key
from isaseg.data.source import Source
from isaseg.data.transforms import TrainTransform
from isaseg.errors import DataError


class SegmentationDataset(Dataset[dict[str, Any]]):
    """A source as tensors.

    Args:
        source: The samples.
        transform: The training transform; None: whole images.
        seed: Seed of the transform.
        length: Use only the first `length` samples; None: all.
        resize: Without a transform: how the image, never the mask, is resized for the network.
        interpolation: Of that resize: linear or cubic.
        max_bad: With a transform: how many samples that cannot be loaded may be replaced by others. Which sample takes
            the place is a function of seed, step and index; it lists under `bad` what it replaces.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | None = None,
        seed: int = 0,
        length: int | None = None,
        resize: Resize | None = None,
        interpolation: str = "linear",
        max_bad: int = 0,
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self.resize, self.interpolation = resize, interpolation
        self.length = len(source) if length is None else min(length, len(source))
        self.max_bad = 0 if transform is None else max_bad

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Return image and id; mask, or size where there are no labels; far where the source has it.

        image is uint8 (3, h, w), channels last in memory; mask uint8 (H, W); size (H, W); far bool (H, W).

        Args:
            key: Index of the sample; with a transform, (index, step).

        Raises:
            DataError: If the sample cannot be loaded, or more than `max_bad` cannot.
        """
        index, step = key if isinstance(key, tuple) else (key, 0)
        bad: dict[int, str] = {}
        candidates = self._candidates(index, step)
        while True:
            index = next(candidates)
            if index in bad:
                continue
            try:
                sample = self._sample(index, step)
                return {**sample, "bad": bad} if bad else sample
            except DataError as error:
                if self.max_bad < 1:
                    raise
                bad[index] = f"{self.source.name(index)}: {error}"
                if len(bad) > min(self.max_bad, self.length - 1):
                    raise DataError(too_many(self.max_bad, bad)) from error

    def _candidates(self, index: int, step: int) -> Iterator[int]:
        yield index
        rng = np.random.default_rng((self.seed, step, index, 1))
        while True:
            yield int(rng.integers(self.length))

    def _sample(self, index: int, step: int) -> dict[str, Any]:
        loaded = self.source.load(index)
        image: np.ndarray
        mask: np.ndarray | None
        if self.transform is not None:
            assert loaded.mask is not None
            key = (self.seed, step, index)
            image, mask, far = self.transform(*loaded, key, flip_pairs=self.source.flip_pairs)
        else:
            image = resized(loaded.image[:, :], self.resize, self.interpolation)
            mask, far = None if loaded.mask is None else loaded.mask[:, :], loaded.far
        sample: dict[str, Any] = {"image": _tensor(image).permute(2, 0, 1), "id": self.source.name(index)}
        if mask is None:
            sample["size"] = (loaded.image.shape[0], loaded.image.shape[1])
        else:
            sample["mask"] = _tensor(mask)
        if far is not None:
            sample["far"] = _tensor(far)
        return sample


def too_many(most: int, bad: Mapping[int, str]) -> str:
    """Return the message for more bad samples than allowed."""
    return (
        f"expected at most data.max_bad_samples={most} training samples that cannot be loaded, got {len(bad)}, "
        f"the last: {list(bad.values())[-1]}"
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
