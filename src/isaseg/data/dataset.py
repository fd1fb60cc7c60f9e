"""The torch data set over any source: samples as tensors, a function of seed, batch number and index."""

from collections.abc import Mapping
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
        transform: Training transform; None: every sample as it is.
        seed: Seed of the transform.
        length: Use only the first `length` samples; None: all.
        resize: Without a transform: how the image, never the mask, is resized for the network.
        interpolation: Of that: linear or cubic.
        max_bad: With a transform: so many samples that cannot be loaded may be replaced by others; the sample then
            says so under `bad`. Which one replaces it is a function of the key.
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
        self.max_bad = max_bad

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Return image, id, mask or without labels size, and far where the source has it.

        image is uint8 (3, h, w), channels last in memory; mask uint8 (H, W); size (H, W); far bool (H, W).

        Args:
            key: Index of the sample; with a transform, (index, number of the batch).
        """
        index, step = key if isinstance(key, tuple) else (key, 0)
        try:
            return self._sample(index, step)
        except DataError as error:
            if self.transform is None or self.max_bad < 1:
                raise
            bad = {index: f"{self.source.name(index)}: {error}"}
        candidates = np.random.default_rng((self.seed, step, index, 1))
        while len(bad) <= self.max_bad and len(bad) < self.length:
            index = int(candidates.integers(self.length))
            if index in bad:
                continue
            try:
                return {**self._sample(index, step), "bad": bad}
            except DataError as error:
                bad[index] = f"{self.source.name(index)}: {error}"
        raise DataError(too_many(self.max_bad, bad))

    def _sample(self, index: int, step: int) -> dict[str, Any]:
        loaded = self.source.load(index)
        image: np.ndarray
        mask: np.ndarray | None
        if self.transform is not None:
            assert loaded.mask is not None
            image, mask, far = self.transform(
                *loaded, (self.seed, step, index), flip_pairs=self.source.flip_pairs
            )
        else:
            image = resized(loaded.image[:, :], self.resize, self.interpolation)
            mask, far = None if loaded.mask is None else loaded.mask[:, :], loaded.far
        sample: dict[str, Any] = {
            "image": torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1),
            "id": self.source.name(index),
        }
        if mask is None:
            sample["size"] = (loaded.image.shape[0], loaded.image.shape[1])
        else:
            sample["mask"] = torch.from_numpy(np.ascontiguousarray(mask))
        if far is not None:
            sample["far"] = torch.from_numpy(np.ascontiguousarray(far))
        return sample


def too_many(most: int, bad: Mapping[int, str]) -> str:
    """Return the sentence that more samples than allowed cannot be loaded."""
    return (
        f"expected at most data.max_bad_samples={most} training samples that cannot be loaded, got {len(bad)}, "
        f"the last: {list(bad.values())[-1]}"
    )
