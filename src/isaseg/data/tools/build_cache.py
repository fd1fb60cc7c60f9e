"""Decode a split once, into the files that `cache.py` reads; a second run checks the first."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isaseg.data.cache import CachedPicture, CacheError, write_picture
from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError


class CachedSample(NamedTuple):
    """What became of a sample: bytes in the cache, files written now, those that were damaged before; or an error."""

    size: int = 0
    written: int = 0
    repaired: tuple[Path, ...] = ()
    error: str | None = None


@dataclass
class CacheReport:
    """What is in the cache of a split.

    Attributes:
        samples: Number of samples that it holds.
        written: Number of files that were written now.
        repaired: Files among these that were there, but damaged or with other pixels.
        size: Bytes of all files.
        errors: A sentence for each sample that cannot be decoded.
    """

    samples: int = 0
    written: int = 0
    repaired: list[Path] = field(default_factory=list)
    size: int = 0
    errors: list[str] = field(default_factory=list)


def build_cache(source: FileSource, workers: int | None = None, verify: bool = False) -> CacheReport:
    """Write image and labels of each sample below `source.cache` where they are absent, stale or damaged.

    Each file appears whole or not at all, so the next run continues an interrupted one. Nothing is removed. A sample
    that cannot be decoded does not keep the others from being written.

    Args:
        source: A split; its `cache` is set.
        workers: Number of threads; None: one for each core.
        verify: Decode the files again, and write again what differs from them in a pixel.

    Raises:
        DataError: If the folder cannot be written, or the disk is full.
    """
    report = CacheReport()
    title = f"{source.info.title} {source.split}"
    text = f"{'verifying' if verify else 'caching'} {title}"

    def work(index: int) -> CachedSample:
        return cache_sample(source, index, verify)

    try:
        with in_threads(work, range(len(source)), text, workers, lambda sample: sample.size) as results:
            for sample in results:
                report.samples += sample.error is None
                report.written += sample.written
                report.repaired += sample.repaired
                report.size += sample.size
                report.errors += [] if sample.error is None else [sample.error]
    except OSError as error:
        raise DataError(
            f"expected to write the cache of {title} below '{source.cache}', got {error}; make space or give another "
            "folder as data.cache=/path/to/it; the same command continues"
        ) from error
    return report


def cache_sample(source: FileSource, index: int, verify: bool = False) -> CachedSample:
    """Write the files of a sample where they are absent, stale or damaged, and with `verify` where a pixel differs."""
    pair, (image, labels) = source.pairs[index], source.cache_files(index)
    files = [(image, pair.image), *([] if pair.mask is None else [(labels, pair.mask)])]
    written, repaired = 0, []
    try:
        for path, file in files:
            try:
                cached = _open(path, file)
                if cached is not None and not verify:
                    continue
            except CacheError:
                cached = None
                repaired.append(path)
            picture = source.decode_image(index) if path == image else _labels(source, index)
            if cached is not None:
                if _holds(cached, picture):
                    continue
                repaired.append(path)
            write_picture(path, picture, file)
            written += 1
    except DataError as error:
        return CachedSample(error=str(error))
    return CachedSample(sum(path.stat().st_size for path, _ in files), written, tuple(repaired))


def _open(path: Path, file: Path) -> CachedPicture | None:
    """Return what the cache holds of a file as it is now."""
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


def _labels(source: FileSource, index: int) -> np.ndarray:
    """Return the raw ids, all of them known: training looks up only those that it crops.

    MATLAB's float64 becomes bytes where the ids fit: an eighth to read, and the quick way to train ids.
    """
    raw = source.decode_labels(index)
    source.to_train_ids(raw, index)
    if raw.dtype.itemsize > 2 and raw.size and raw.min() >= 0 and raw.max() < 2**16:
        return raw.astype(np.uint8 if raw.max() < 2**8 else np.uint16)
    return raw
