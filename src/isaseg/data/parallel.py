"""Work on many files in threads, with a progress bar: decoders, zstd and checksums release Python's global lock."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from isaseg.console import counted

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], text: str, workers: int | None = None
) -> list[Result]:
    """Return the results of `work` in the order of `items`. The first error is raised; what has not begun is dropped.

    Args:
        work: Called in a thread with an item.
        items: What to work on.
        text: What is done, beside the bar on stderr.
        workers: Threads; None: as many as there are cores.
    """
    results = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool, counted(text, len(items)) as advance:
        try:
            for result in pool.map(work, items):
                results.append(result)
                advance()
        finally:
            pool.shutdown(cancel_futures=True)
    return results
