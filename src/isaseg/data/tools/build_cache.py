"""Decode a split once, into the files that `cache.py` reads; a second run checks the first."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from isaseg.data.cache import CacheError, cached_picture, write_picture
from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError


@dataclass
class CacheReport:
    """What was done with one sample, or with the samples of a split.

    Attributes:
        samples: Number of samples in the cache.
        written: Number of files that were written now.
        repaired: Files among these that were there, but damaged.
        errors: A sentence for each sample that cannot be decoded.
    """

    samples: int = 0
    written: int = 0
    repaired: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def build_cache(source: FileSource, workers: int | None = None, verify: bool = False) -> CacheReport:
    """Write image and labels of each sample below `source.cache` where they are absent, stale or damaged.

    Each file appears whole or not at all, so the next run continues an interrupted one. Nothing is removed. A sample
    that cannot be decoded does not keep the others from being written.

    Args:
        source: A split; its `cache` is set.
        workers: Number of threads; None: one for each core.
        verify: Read every tile, each of which has a checksum; otherwise only headers are read.
    """
    text = f"{'verifying' if verify else 'caching'} {source.info.title} {source.split}"
    done = in_threads(partial(cache_sample, source, verify=verify), range(len(source)), text, workers)
    return CacheReport(
        sum(sample.samples for sample in done),
        sum(sample.written for sample in done),
        [path for sample in done for path in sample.repaired],
        [text for sample in done for text in sample.errors],
    )


def cache_sample(source: FileSource, index: int, verify: bool = False) -> CacheReport:
    """Write the files of a sample where they are absent, stale or damaged."""
    pair, (image, labels) = source.pairs[index], source.cache_files(index)
    files = [(image, pair.image, source.turned_by(index, 0))]
    files += [] if pair.mask is None else [(labels, pair.mask, source.turned_by(index, 1))]
    report = CacheReport(samples=1)
    try:
        for path, file, more in files:
            try:
                cached = cached_picture(path, file, *more)
                if cached is not None and verify:
                    cached[:, :]
            except CacheError:
                report.repaired.append(path)
                cached = None
            if cached is None:
                pixels = source.decode_image(index) if path == image else _labels(source, index)
                write_picture(path, pixels, file, *more)
                report.written += 1
    except DataError as error:
        return CacheReport(errors=[str(error)])
    return report


def _labels(source: FileSource, index: int) -> np.ndarray:
    """Return the raw ids, all of them known: training looks up only those that it crops.

    MATLAB's float64 becomes bytes where the ids fit: an eighth to read, and the quick way to train ids.
    """
    raw = source.decode_labels(index)
    source.to_train_ids(raw, index)
    if raw.dtype.itemsize > 2 and raw.size and raw.min() >= 0 and raw.max() < 2**16:
        return raw.astype(np.uint8 if raw.max() < 2**8 else np.uint16)
    return raw
