"""Decode a split once, into the files that `cache.py` reads; a second run looks after the first."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isaseg.data.cache import CachedPicture, CacheError, write_picture
from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError

_TRIED = 8  # samples that are written to learn how much space the rest will take
_MARGIN = 1.1  # times that estimate


class Made(NamedTuple):
    """What became of a sample: bytes in the cache, files written now, those of them that were damaged; or an error."""

    size: int = 0
    written: int = 0
    mended: tuple[Path, ...] = ()
    error: str | None = None


@dataclass
class CacheReport:
    """What is in the cache of a split.

    Attributes:
        samples: Number of samples that it holds.
        written: Files that were written now.
        mended: Files among these that were there, but damaged, or with other pixels.
        size: Bytes of its files.
        errors: A sentence for each sample that cannot be decoded.
    """

    samples: int = 0
    written: int = 0
    mended: list[Path] = field(default_factory=list)
    size: int = 0
    errors: list[str] = field(default_factory=list)


def build_cache(source: FileSource, workers: int | None = None, verify: bool = False) -> CacheReport:
    """Write image and labels of each sample below `source.cache` where they are absent, stale or damaged.

    Each file appears whole or not at all, so that the next run continues an interrupted one. Nothing is removed. A
    sample that cannot be decoded does not keep the others from being written.

    Args:
        source: A split; its `cache` is set.
        workers: Threads; None: as many as there are cores.
        verify: Decode the files again and mend what differs from them in a pixel.

    Raises:
        DataError: If there is too little space, or the folder cannot be written.
    """
    report = CacheReport()
    title = f"{source.info.title} {source.split}"
    text = f"{'verifying' if verify else 'caching'} {title}"
    try:
        tried = _try_space(source)

        def work(index: int) -> Made:
            return tried.get(index) or cache_sample(source, index, verify)

        with in_threads(work, range(len(source)), text, workers, lambda made: made.size) as results:
            for made in results:
                report.samples += made.error is None
                report.written += made.written
                report.mended += made.mended
                report.size += made.size
                report.errors += [] if made.error is None else [made.error]
    except OSError as error:
        raise DataError(
            f"expected to write the cache of {title} below '{source.cache}', got {error}; make space or give another "
            "folder as data.cache=/path/to/it; the same command continues"
        ) from error
    return report


def cache_sample(source: FileSource, index: int, verify: bool = False) -> Made:
    """Write the files of a sample where they are absent, stale or damaged, and with `verify` where a pixel differs."""
    written, mended = 0, []
    try:
        for path, file, labels in _files(source, index):
            try:
                cached = _open(path, file)
                if cached is not None and not verify:
                    continue
            except CacheError:
                cached = None
                mended.append(path)
            picture = _labels(source, index) if labels else source.decode_image(index)
            if cached is not None:
                if _holds(cached, picture):
                    continue
                mended.append(path)
            write_picture(path, picture, file)
            written += 1
        size = sum(path.stat().st_size for path, _, _ in _files(source, index))
    except DataError as error:
        return Made(error=str(error))
    return Made(size, written, tuple(mended))


def _labels(source: FileSource, index: int) -> np.ndarray:
    """Return the raw ids once all of them are found in the table: training looks up only those that it crops."""
    raw = source.decode_labels(index)
    source.to_train_ids(raw, index)
    return _compact(raw)


def _files(source: FileSource, index: int) -> list[tuple[Path, Path, bool]]:
    """Return the cache file, the file it is made from, and whether that holds labels."""
    pair = source.pairs[index]
    image, labels = source.cache_files(index)
    return [(image, pair.image, False), *([] if pair.mask is None else [(labels, pair.mask, True)])]


def _open(path: Path, file: Path) -> CachedPicture | None:
    try:
        cached = CachedPicture(path)
    except FileNotFoundError:
        return None
    return cached if cached.is_of(file) else None


def _holds(cached: CachedPicture, picture: np.ndarray) -> bool:
    if cached.shape != picture.shape or cached.dtype != picture.dtype:
        return False
    try:
        return np.array_equal(cached.read(slice(0, picture.shape[0]), slice(0, picture.shape[1])), picture)
    except CacheError:
        return False


def _compact(labels: np.ndarray) -> np.ndarray:
    """Return MATLAB's numbers as bytes where they fit: an eighth to read, and the quick way to train ids."""
    if labels.dtype.itemsize > 2 and labels.size and labels.min() >= 0 and labels.max() < 2**16:
        return labels.astype(np.uint8 if labels.max() < 2**8 else np.uint16)
    return labels


def _try_space(source: FileSource) -> dict[int, Made]:
    """Write a few of the samples that are missing; return what became of them.

    Raises:
        DataError: If there is not enough space for as many bytes for each of the others.
    """
    assert source.cache is not None
    missing = [i for i in range(len(source)) if not all(path.exists() for path, _, _ in _files(source, i))]
    tried = {i: cache_sample(source, i) for i in missing[:: max(1, len(missing) // _TRIED)][:_TRIED]}
    sizes = [made.size for made in tried.values() if made.error is None]
    if not sizes:
        return tried
    needed = _MARGIN * (len(missing) - len(tried)) * sum(sizes) / len(sizes)
    free = shutil.disk_usage(source.cache).free
    if needed > free:
        raise DataError(
            f"expected about {needed / 1e9:.1f} GB of space for the cache of {source.info.title} {source.split}, got "
            f"{free / 1e9:.1f} GB below '{source.cache}'; make space or give another folder as data.cache=/path/to/it"
        )
    return tried
