"""What a source of labelled images is, and the source that reads files: it decodes, checks and remaps them.

Labels are raw indices: they are never converted, never interpolated, and every id must be in the id table.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from isaseg.console import as_typed
from isaseg.data.cache import LazyArray, cached_picture, file_state
from isaseg.data.decode import DecodeError, NoIndicesError, read_image, read_labels
from isaseg.data.index import Pair
from isaseg.data.info import DatasetInfo
from isaseg.data.upright import orientation, turns, upright
from isaseg.errors import DataError

log = logging.getLogger(__name__)

Picture = np.ndarray | LazyArray


class Loaded(NamedTuple):
    """A sample. `picture[rows, columns]` gives the pixels of a window, `picture[:, :]` all of them.

    Attributes:
        image: uint8 RGB (H, W, 3).
        mask: Train ids, uint8 (H, W); None if the labels are not public.
        far: A region that is scored separately, bool (H, W), or None.
    """

    image: Picture
    mask: Picture | None
    far: np.ndarray | None = None


class Source(Protocol):
    """One split of a data set. A source of the user's own needs `__len__` and `load`; `own_source` adds the rest."""

    classes: tuple[str, ...]
    palette: np.ndarray  # uint8 (K, 3)
    ignore_index: int
    groups: tuple[tuple[int, ...], ...] | None
    flip_pairs: tuple[tuple[int, int], ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the sample's name."""

    def load(self, index: int) -> Loaded:
        """Return a sample; a tuple of image and mask will do."""


class FileSource:
    """One split of a data set in files.

    Args:
        split: Name of the split, for messages; its published size is in `info.splits`.
        modes: Pillow modes that a label image may have: L, P, I;16.
        variable: Name of the label matrix in MATLAB files.
        ids: Raw id in the label files to train id; None: `info.ids`. Every id that is missing here is an error.
        exif: Whether images and masks are turned upright, see `upright.turns`; ignore: as published data sets are read.

    Attributes:
        cache: Folder of decoded pictures, written by `tools.build_cache`; None: files are decoded each time.

    Raises:
        DataError: If a train id is neither a class nor `info.ignore_index`.
    """

    groups: tuple[tuple[int, ...], ...] | None = None

    def __init__(
        self,
        info: DatasetInfo,
        split: str,
        pairs: Sequence[Pair],
        modes: Sequence[str] = ("L",),
        variable: str | None = None,
        ids: Mapping[int, int] | None = None,
        exif: str | None = "ignore",
    ) -> None:
        self.info, self.split, self.pairs = info, split, tuple(pairs)
        self.modes, self.variable = tuple(modes), variable
        self.classes, self.palette = info.classes, info.palette
        self.ignore_index, self.flip_pairs = info.ignore_index, info.flip_pairs
        self.ids = dict(info.ids if ids is None else ids)
        self.exif, self._turns = exif, dict[int, tuple[int, int]]()
        self.cache: Path | None = None
        self._warned = False
        classes, ignore = len(self.classes), self.ignore_index
        strange = set(self.ids.values()) - set(range(classes)) - {ignore}
        if strange or not classes <= ignore <= 255 or classes > 254:
            raise DataError(
                f"expected train ids 0 to {classes - 1}, at most 254 of them, and an ignore_index above them and at "
                f"most 255, got {sorted(strange)}, ignore_index={ignore} for {info.title}"
            )
        self._unknown = 254 if ignore == 255 else 255  # marks a raw id that is not in the table
        self._table = np.full(2**16, self._unknown, np.uint8)
        for raw, train in self.ids.items():
            self._table[raw] = train

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    @property
    def labelled(self) -> bool:
        """Whether there are label files."""
        return all(pair.mask is not None for pair in self.pairs)

    def name(self, index: int) -> str:
        """Return the pair's name."""
        return self.pairs[index].name

    def load(self, index: int) -> Loaded:
        """Return a pair, checked. From the cache, only the windows that are used are read.

        Raises:
            DataError: If a file cannot be decoded, the sizes differ, or a label is not in the id table.
        """
        pair = self.pairs[index]
        image: Picture = self._cached(index, 0) or self.decode_image(index)
        if pair.mask is None:
            return Loaded(image, None)
        raw: Picture = self._cached(index, 1) or self.decode_labels(index)
        self.check_sizes(index, image, raw)
        if isinstance(raw, np.ndarray):
            return Loaded(image, self.to_train_ids(raw, index))
        # the cache holds only known ids: remap only the window that is used
        return Loaded(image, LazyArray(raw.shape, lambda y, x: self.to_train_ids(raw[y, x], index)))

    def check_sizes(self, index: int, image: Picture, labels: Picture) -> None:
        """Raise a DataError if image and labels of a pair differ in size."""
        if image.shape[:2] != labels.shape:
            pair = self.pairs[index]
            raise DataError(
                f"expected image and mask of one size, got {_size(image)} in image='{pair.image}' and {_size(labels)} in "
                f"mask='{pair.mask}' ({self.info.title}, {self.split}); {self.info.remedies.sizes}"
            )

    def decode_image(self, index: int) -> np.ndarray:
        """Return the image from its file, uint8 RGB (H, W, 3), upright if `exif` says so."""
        return upright(self._decode(self.pairs[index].image, read_image), self.turns(index)[0])

    def decode_labels(self, index: int) -> np.ndarray:
        """Return the raw ids from their file, (H, W), turned as `exif` says."""
        mask = self.pairs[index].mask
        assert mask is not None
        raw = self._decode(mask, lambda path: read_labels(path, self.modes, self.variable))
        return upright(raw, self.turns(index)[1])

    def turns(self, index: int) -> tuple[int, int]:
        """Return the EXIF flags by which image and mask of a pair are turned; 1 for neither.

        Raises:
            DataError: If nothing says on which pixels the mask was drawn.
        """
        if index not in self._turns:
            pair = self.pairs[index]
            found = turns(pair.image, pair.mask, self.exif)
            if found is None:
                raise DataError(
                    f"expected an image whose mask fits in one way, got EXIF orientation {orientation(pair.image)[0]}, "
                    f"which keeps the size, in '{pair.image}' ({self.info.title}, {self.split}); set data.source.exif="
                    "apply if the masks were drawn on upright images, data.source.exif=ignore if on the pixels as stored"
                )
            self._turns[index] = found
        return self._turns[index]

    def to_train_ids(self, raw: np.ndarray, index: int) -> np.ndarray:
        """Return train ids, uint8 (H, W), for raw ids (H, W) of any integer type.

        Raises:
            DataError: If an id is not in the table.
        """
        mask: np.ndarray
        if raw.dtype == np.uint8:
            mask = cv2.LUT(raw, self._table[:256])
        else:
            mask = self._table.take(raw.astype(np.int64), mode="clip")
            mask[(raw < 0) | (raw >= len(self._table))] = self._unknown
        if (mask == self._unknown).any() and (unknown := self.unknown_ids(raw)):
            value, count = next(iter(unknown.items()))
            raise DataError(
                f"expected labels {_runs(self.ids)} in {self.info.title}, got the id {value} in {count} pixels of "
                f"mask='{self.pairs[index].mask}' ({self.split}); {self.info.remedies.ids}"
            )
        return mask

    def unknown_ids(self, raw: np.ndarray) -> dict[int, int]:
        """Return the ids in `raw` that are not in the id table, with their numbers of pixels."""
        values, counts = np.unique(raw, return_counts=True)
        return {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in self.ids}

    def cache_files(self, index: int) -> tuple[Path, Path]:
        """Return where the cache holds image and labels of a pair; `cache` must be set."""
        assert self.cache is not None
        folder = self.cache / self.split
        return folder / f"{self.name(index)}.image", folder / f"{self.name(index)}.labels"

    def turned_by(self, index: int, which: int) -> list[Any]:
        """Return what the pixels of image (0) or labels (1) depend on beside their file, as JSON."""
        if self.exif == "ignore":
            return []
        other = (self.pairs[index].mask, self.pairs[index].image)[which]
        return [self.exif, None if other is None else file_state(other)]

    def _cached(self, index: int, which: int) -> LazyArray | None:
        """Return image (0) or labels (1) from the cache; None if the cache has not the file as it is now."""
        file = (self.pairs[index].image, self.pairs[index].mask)[which]
        if self.cache is None or file is None:
            return None
        path = self.cache_files(index)[which]
        cached = cached_picture(path, file, *self.turned_by(index, which))
        if cached is None and not self._warned:
            self._warned = True
            log.warning(
                f"the cache of {self.info.title} {self.split} is incomplete, older than the files, of files in another "
                f"place or of another data.source.exif, e.g. '{path}'; what it lacks is decoded each time; fix it with "
                f"`{as_typed('isaseg data')} cache`"
            )
        return cached

    def _decode(self, path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        try:
            return read(path)
        except DecodeError as error:
            advice = self.info.remedies
            remedy = advice.mask if isinstance(error, NoIndicesError) else advice.file
            raise DataError(f"{error} in '{path}' ({self.info.title}, {self.split}); {remedy}") from error


def _size(array: Picture) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"


def _runs(ids: Mapping[int, int]) -> str:
    """Return ids as text: 0, 7 to 8."""
    values = np.array(sorted(ids))
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
