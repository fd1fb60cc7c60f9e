"""How glibc treats the memory of freed tensors."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Ask glibc not to give freed tensors back to the kernel, which costs a tenth of a CPU step in page faults."""
    _mallopt((-3, 2**25), (-1, 2**31 - 1), (-2, 2**26))  # mmap threshold (at most), trim threshold, top pad


def map_every_tensor() -> None:
    """Ask glibc to map every tensor separately and unmap it when freed, so that a peak of memory holds nothing freed."""
    _mallopt((-3, 2**16))


def _mallopt(*settings: tuple[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        for parameter, value in settings:
            mallopt(parameter, value)
