"""Samples: what a source of labelled images is, the one source that reads files, and the torch data set over any.

Labels are raw indices: they are never converted, never interpolated, and every id must stand in the id table.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset

from isaseg.data.sampler import Key
from isaseg.data.transforms import TrainTransform
from isaseg.errors import DataError

Loaded = tuple[np.ndarray, np.ndarray, np.ndarray | None]
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_POISON = -1
_CHECK_ALL = 5000  # pairs; of a larger split, _CHECK_SOME evenly spaced ones are checked
_CHECK_SOME = 500


class Source(Protocol):
    """One split of a data set."""

    classes: tuple[str, ...]
    palette: np.ndarray  # uint8 (K, 3)
    ignore_index: int
    groups: tuple[tuple[int, ...], ...] | None
    flip_pairs: tuple[tuple[int, int], ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the sample's name."""

    def load(self, index: int) -> Loaded:
        """Return image uint8 RGB (H, W, 3), train ids uint8 (H, W), and a region bool (H, W) or None."""

    def check(self) -> None:
        """Raise DataError if a sample cannot be used."""


@dataclass(frozen=True)
class Pair:
    """An image file, its label file, and a name."""

    name: str
    image: Path
    mask: Path


class FileSource:
    """One split of a data set in files.

    Args:
        dataset: Name of the data set, for errors.
        split: Name of the split, for errors.
        pairs: The files.
        classes: Names of the K classes.
        palette: Colours, uint8 (K, 3).
        ids: Raw id in the label files to train id; every id that is not here is an error.
        modes: PIL modes that a label file may have: L, P, I;16.
        ignore_index: Train id that is left out.
        flip_pairs: Classes that change places in a mirror.

    Raises:
        DataError: If a train id is neither a class nor `ignore_index`.
    """

    groups: tuple[tuple[int, ...], ...] | None = None

    def __init__(
        self,
        dataset: str,
        split: str,
        pairs: Sequence[Pair],
        classes: Sequence[str],
        palette: np.ndarray,
        ids: Mapping[int, int],
        modes: Sequence[str] = ("L",),
        ignore_index: int = 255,
        flip_pairs: tuple[tuple[int, int], ...] = (),
    ) -> None:
        strange = set(ids.values()) - set(range(len(classes))) - {ignore_index}
        if strange or not 0 <= ignore_index <= 255 or ignore_index < len(classes):
            raise DataError(
                f"expected train ids 0 to {len(classes) - 1} and an ignore_index above them and at most 255, "
                f"got {sorted(strange)}, {ignore_index=} for {dataset}"
            )
        self.dataset, self.split, self.pairs, self.modes = dataset, split, tuple(pairs), tuple(modes)
        self.classes, self.palette = tuple(classes), palette
        self.ignore_index, self.flip_pairs = ignore_index, flip_pairs
        self.table = np.full(2**16 if "I;16" in modes else 2**8, _POISON, np.int16)
        for raw, train in ids.items():
            self.table[raw] = train

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def name(self, index: int) -> str:
        """Return the pair's name."""
        return self.pairs[index].name

    def load(self, index: int) -> Loaded:
        """Decode and check a pair.

        Raises:
            DataError: If a file cannot be decoded, the sizes differ, or a label is not in the id table.
        """
        pair = self.pairs[index]
        image = self._decode(pair.image, _rgb)
        raw = self._decode(pair.mask, self._raw_ids)
        if image.shape[:2] != raw.shape:
            raise DataError(
                f"expected image and mask of one size, got {_size(image)} in image='{pair.image}' and {_size(raw)} in "
                f"mask='{pair.mask}' ({self.dataset}, {self.split}); EXIF orientation is not applied"
            )
        mask = self.table.take(raw)
        if (mask == _POISON).any():
            value = int(raw[mask == _POISON][0])
            raise DataError(
                f"expected labels {self._allowed()} in {self.dataset}, got the id {value} in "
                f"{int((raw == value).sum())} pixels of mask='{pair.mask}' ({self.split}); mend the file or the id table"
            )
        return image, mask.astype(np.uint8), None

    def check(self) -> None:
        """Decode and check every pair, or 500 evenly spaced ones where there are more than 5000.

        Raises:
            DataError: For the first pair that cannot be used.
        """
        indices = range(len(self))
        if len(self) > _CHECK_ALL:
            indices = range(0, len(self), -(-len(self) // _CHECK_SOME))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            done = pool.map(self._check_one, indices)
            console = Console(stderr=True)
            text = f"checking {self.dataset} {self.split}"
            for _ in track(done, text, len(indices), console=console, transient=True):
                pass

    def _check_one(self, index: int) -> None:
        self.load(index)

    def _decode(self, path: Path, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
        try:
            with Image.open(path) as picture:
                return read(picture)
        except _WrongMode as error:
            raise DataError(f"{error} in '{path}' ({self.dataset}, {self.split})") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"expected a readable image, got '{path}' ({self.dataset}, {self.split}): {error}; replace the file"
            ) from error

    def _raw_ids(self, picture: Image.Image) -> np.ndarray:
        if picture.mode not in self.modes:
            expected = " or ".join(self.modes)
            raise _WrongMode(f"expected labels as indices of mode {expected}, got mode={picture.mode!r}")
        return np.asarray(picture)

    def _allowed(self) -> str:
        ids = np.flatnonzero(self.table != _POISON)
        runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
        return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


class _WrongMode(Exception):
    pass


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith(("I", "F")):
        raise _WrongMode(f"expected an image of 8 bits a channel, got mode={picture.mode!r}")
    return np.asarray(picture.convert("RGB"))


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def list_files(folder: Path, endings: Sequence[str] = IMAGE_ENDINGS, suffix: str = "") -> dict[str, Path]:
    """Return the files below `folder` by name: path without `suffix` and ending, relative to `folder`.

    Raises:
        DataError: If two files have one name.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() not in endings or path.name.startswith(".") or not stem.endswith(suffix):
            continue
        name = stem.removesuffix(suffix)
        if name in files:
            raise DataError(f"expected one file for each name, got '{files[name]}' and '{path}'; remove one")
        files[name] = path
    return files


def require_root(root: str | None, dataset: str, split: str, layout: str) -> Path:
    """Return the root as a path.

    Raises:
        DataError: If it is not given or not a folder.
    """
    if root is None or not Path(root).expanduser().is_dir():
        raise DataError(
            f"data set not found: expected {dataset} in a folder, got data.root={root!r} (split {split!r}); "
            f"pass data.root=/path/to/it, which should hold\n{layout}"
        )
    return Path(root).expanduser()


def pair_files(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    root: str | None,
    dataset: str,
    split: str,
    layout: str,
) -> list[Pair]:
    """Return the pairs of images and masks of the same name, sorted by name.

    Raises:
        DataError: If there are none, or a file has no partner.
    """
    names = sorted(images.keys() | masks.keys())
    missing = [f"mask of '{images[n]}'" for n in names if n not in masks]
    missing += [f"image of '{masks[n]}'" for n in names if n not in images]
    if missing or not names:
        lacking = (
            f"; missing: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}" if missing else ""
        )
        raise DataError(
            f"expected {dataset} with a mask for every image, got {len(names) - len(missing)} of {len(names)} pairs in "
            f"data.root={root!r} (split {split!r}){lacking}; pass data.root=/path/to/it, which should hold\n{layout}"
        )
    return [Pair(name, images[name], masks[name]) for name in names]


class SegmentationDataset(Dataset[dict[str, Any]]):
    """A source as tensors.

    Args:
        source: The samples.
        transform: Training transform; None: every sample as it is.
        seed: Seed of the transform.
        length: Use only the first `length` samples; None: all.
    """

    def __init__(
        self,
        source: Source,
        transform: TrainTransform | None = None,
        seed: int = 0,
        length: int | None = None,
    ) -> None:
        self.source, self.transform, self.seed = source, transform, seed
        self.length = len(source) if length is None else min(length, len(source))

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.length

    def __getitem__(self, key: int | Key) -> dict[str, Any]:
        """Return image uint8 (3, H, W), mask int64 (H, W), id, and far bool (H, W) where the source has it.

        Args:
            key: Index of the sample; with a transform, (index, number of the batch).
        """
        index, step = key if isinstance(key, tuple) else (key, 0)
        image, mask, far = self.source.load(index)
        if self.transform is not None:
            image, mask, far = self.transform(
                image, mask, far, (self.seed, step, index), flip_pairs=self.source.flip_pairs
            )
        sample = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "mask": torch.from_numpy(mask.astype(np.int64)),
            "id": self.source.name(index),
        }
        if far is not None:
            sample["far"] = torch.from_numpy(np.ascontiguousarray(far))
        return sample
