"""Work on many files at once, with a progress bar.

In threads: decoders, zstd and checksums work without Python's global lock.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from isaseg.console import counted

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def in_threads(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    text: str,
    workers: int | None = None,
    count_bytes: Callable[[Result], int] | None = None,
) -> Iterator[Iterator[Result]]:
    """Give the results of `work` in the order of `items`; what has not begun when the block ends is dropped.

    Args:
        work: Called in a thread with an item.
        items: Something for each.
        text: What is done, beside the bar on stderr.
        workers: Threads; None: as many as there are cores.
        count_bytes: Number of bytes of a result, to show the sum of.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)
    results = _tracked(pool.map(work, items), len(items), text, count_bytes)
    try:
        yield results
    finally:
        results.close()  # takes the bar away
        pool.shutdown(cancel_futures=True)


def _tracked(
    results: Iterator[Result], total: int, text: str, count_bytes: Callable[[Result], int] | None
) -> Generator[Result]:
    with counted(text, total) as advance:
        size = 0
        for result in results:
            size += 0 if count_bytes is None else count_bytes(result)
            advance(1, "" if count_bytes is None else f"{size / 1e6:.0f} MB")
            yield result
