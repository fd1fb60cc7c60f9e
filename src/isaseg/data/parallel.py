"""Work on many files in threads, with a progress bar: decoders, zstd and checksums release Python's global lock."""

import os
from collections.abc import Callable, Iterator, Sequence
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
    count_bytes: Callable[[Result], int] = lambda result: 0,
) -> Iterator[Iterator[Result]]:
    """Give the results of `work` in the order of `items`; work that has not begun when the block ends is dropped.

    Args:
        work: Called in a thread with an item.
        items: What to work on.
        text: What is done, beside the bar on stderr.
        workers: Threads; None: as many as there are cores.
        count_bytes: Number of bytes of a result; their sum is shown.
    """

    def tracked() -> Iterator[Result]:
        size = 0
        for result in pool.map(work, items):
            size += count_bytes(result)
            advance(1, f"{size / 1e6:.0f} MB" if size else "")
            yield result

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool, counted(text, len(items)) as advance:
        try:
            yield tracked()
        finally:
            pool.shutdown(cancel_futures=True)
