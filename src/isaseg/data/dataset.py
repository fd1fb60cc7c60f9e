"""The torch data set over any source: a sample as tensors, a pure function of seed, step and index."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from isaseg.data.resize import INTERPOLATIONS, Resize, base_size, fit
from isaseg.data.sampler import Key
from isaseg.data.source import Loaded, Source
from isaseg.data.transforms import TrainTransform


class Views(NamedTuple):
    """Other sizes at which pictures are wanted, instead of their own.

    Attributes:
        make: Returns images, uint8 (B, 3, H, W), at each of them, uint8 (B, 3, h, w).
        number: How many sizes there are.
    """

    make: Callable[[torch.Tensor], list[torch.Tensor]]
    number: int


class SegmentationDataset(Dataset[dict[str, Any]]):
    """A source as tensors.

    Args:
        transform: The training transform; None: whole images.
        seed: Seed of the transform.
        length: Use only the first `length` samples; None: all.
        resize: Without a transform: how the image, never the mask, is resized for the network.
        interpolation: Of that resize: linear or cubic.
        views: Without a transform: the sizes at which the image is wanted.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | None = None,
        seed: int = 0,
        length: int | None = None,
        resize: Resize | None = None,
        interpolation: str = "linear",
        views: Views | None = None,
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self.resize, self.interpolation, self.views = resize, interpolation, views
        self.length = len(source) if length is None else min(length, len(source))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Return `image` and `id`; `mask`, or `size` if there are no labels; and `far` if the source has it.

        image is uint8 (3, h, w), channels last in memory; mask uint8 (H, W); size (H, W); far bool (H, W). If there are
        `views`, views, a list of such images, takes the place of image, and size is there with labels, too.

        Args:
            key: Index of the sample; with a transform, (index, step).

        Raises:
            DataError: If the sample cannot be loaded.
        """
        index, step = key if isinstance(key, tuple) else (key, 0)
        loaded = Loaded(*self.source.load(index))  # a source may give a plain tuple
        image: np.ndarray
        mask: np.ndarray | None
        if self.transform is not None:
            assert loaded.mask is not None
            draw = (self.seed, step, index)
            image, mask, far = self.transform(*loaded, draw, flip_pairs=self.source.flip_pairs)
        else:
            height, width = loaded.image.shape[:2]
            size = base_size(height, width, self.resize)
            image = fit(loaded.image[:, :], size, INTERPOLATIONS[self.interpolation])
            mask, far = None if loaded.mask is None else loaded.mask[:, :], loaded.far
        sample: dict[str, Any] = {"image": _tensor(image).permute(2, 0, 1), "id": self.source.name(index)}
        if self.views is not None:
            sample["views"] = [view[0] for view in self.views.make(sample.pop("image")[None])]
        if mask is None or self.views is not None:
            sample["size"] = (loaded.image.shape[0], loaded.image.shape[1])
        if mask is not None:
            sample["mask"] = _tensor(mask)
        if far is not None:
            sample["far"] = _tensor(far)
        return sample


def _tensor(array: np.ndarray) -> torch.Tensor:
    # ascontiguousarray leaves the negative stride of a flipped axis of length 1, which torch refuses
    return torch.from_numpy(array.copy() if min(array.strides) < 0 else np.ascontiguousarray(array))
