"""Imports that take seconds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without Python's garbage collector, which finds nothing in modules: a sixth to a quarter of the time.

    It does not look at what was imported later either, so that loader processes do not copy those pages.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
