"""Decoded pictures on disk, in tiles, so that a crop reads only the tiles that it touches.

A file holds one picture: a header, the sizes of the compressed tiles, the tiles. A checksum covers header and sizes, and
each tile is a zstd frame with its own: a damaged cache is an error and never a wrong pixel. The header names the file
that the picture comes from, its bytes and its time. (Tile size and level were measured: reading takes less than half the
time of blosc2, for 20 % more space.)
"""

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zstandard

from isaseg.console import as_typed
from isaseg.errors import DataError
from isaseg.files import replace_file

_MAGIC = b"isaseg-tiles-3\n"
_START = struct.Struct("<III")  # bytes of the header, number of tiles, CRC-32 of header and sizes
_TILE = (64, 256)
_LEVEL = -1


class CacheError(DataError):
    """A cache file that is damaged."""


@dataclass(frozen=True)
class LazyArray:
    """A picture that is read by window: `picture[rows, columns]`, or `picture[:, :]` for the whole."""

    shape: tuple[int, ...]
    read: Callable[[slice, slice], np.ndarray]

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        """Return the pixels of a window with steps of 1."""
        rows, columns = (slice(*w.indices(n)) for w, n in zip(window, self.shape, strict=False))
        return self.read(rows, columns)


def write_picture(path: Path, picture: np.ndarray, source: Path, *more: Any) -> None:
    """Write the decoded content of `source`; the file appears whole or not at all.

    Args:
        path: The cache file.
        picture: uint8 or uint16, (H, W) or (H, W, C).
        source: The file that it was decoded from.
        more: What the pixels depend on beside it, as JSON.
    """
    native = picture.dtype.newbyteorder("=")  # MATLAB files may have the other byte order
    picture = picture.astype(native, copy=False)
    planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    height, width = planes.shape[1:]
    tiles = [
        compressor.compress(np.ascontiguousarray(planes[:, y : y + _TILE[0], x : x + _TILE[1]]).tobytes())
        for y in range(0, height, _TILE[0])
        for x in range(0, width, _TILE[1])
    ]
    facts = {"shape": picture.shape, "dtype": picture.dtype.name, "source": [*file_state(source), *more]}
    header = json.dumps(facts).encode()
    sizes = np.array([len(tile) for tile in tiles], "<u4").tobytes()
    with replace_file(path) as file:
        file.write(_MAGIC + _START.pack(len(header), len(tiles), zlib.crc32(header + sizes)) + header + sizes)
        file.writelines(tiles)


def cached_picture(path: Path, source: Path, *more: Any) -> LazyArray | None:
    """Return the cached picture of `source` as it is now.

    None if there is none, or it was made from another file, an earlier version of it, or with other `more`.

    Raises:
        CacheError: If it is damaged.
    """
    try:
        cached = CachedPicture(path)
    except FileNotFoundError:
        return None
    is_current = cached.source == [*file_state(source), *more]
    return LazyArray(cached.shape, cached.read) if is_current else None


class CachedPicture:
    """An open cache file.

    Attributes:
        shape: (H, W) or (H, W, C).
        dtype: uint8 or uint16.
        source: Place, bytes and time of the file that it was decoded from, and what else the pixels depend on.

    Raises:
        CacheError: If it is damaged.
        FileNotFoundError: If there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + _START.size)
            if len(start) < len(_MAGIC) + _START.size or not start.startswith(_MAGIC):
                raise _damaged(path, "is not a cache file of this version")
            header_bytes, tiles, checksum = _START.unpack(start[len(_MAGIC) :])
            text, numbers = file.read(header_bytes), file.read(4 * tiles)
            if zlib.crc32(text + numbers) != checksum:
                raise _damaged(path, "has a damaged header")
            facts, sizes = json.loads(text), np.frombuffer(numbers, "<u4")
            self.shape: tuple[int, ...] = tuple(facts["shape"])
            self.dtype, self.source = np.dtype(facts["dtype"]), facts["source"]
            self._offsets = file.tell() + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            if os.fstat(file.fileno()).st_size != self._offsets[-1]:
                raise _damaged(path, "is cut short")

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the window, (h, w) or (h, w, C).

        Raises:
            CacheError: If a tile is damaged.
        """
        channels = self.shape[2] if len(self.shape) == 3 else 1
        out = np.empty((channels, rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        decompress = zstandard.ZstdDecompressor().decompress
        with self.path.open("rb", buffering=0) as file:
            for y in range(rows.start // _TILE[0] * _TILE[0], rows.stop, _TILE[0]):
                for x in range(columns.start // _TILE[1] * _TILE[1], columns.stop, _TILE[1]):
                    number = y // _TILE[0] * -(-self.shape[1] // _TILE[1]) + x // _TILE[1]
                    start, stop = self._offsets[number : number + 2].tolist()
                    size = min(_TILE[0], self.shape[0] - y), min(_TILE[1], self.shape[1] - x)
                    try:
                        pixels = decompress(os.pread(file.fileno(), stop - start, start))
                        tile = np.frombuffer(pixels, self.dtype).reshape(channels, *size)
                    except (zstandard.ZstdError, ValueError) as error:
                        raise _damaged(self.path, f"is damaged: {error}", "cache verify=true") from error
                    top, bottom = max(rows.start, y), min(rows.stop, y + size[0])
                    left, right = max(columns.start, x), min(columns.stop, x + size[1])
                    part = tile[:, top - y : bottom - y, left - x : right - x]
                    out[
                        :,
                        top - rows.start : bottom - rows.start,
                        left - columns.start : right - columns.start,
                    ] = part
        whole: np.ndarray = out[0] if len(self.shape) == 2 else cv2.merge(list(out))
        return whole


def file_state(source: Path) -> list[Any]:
    """Return place, bytes and time of a file, as JSON gives them back."""
    state = source.stat()
    return [str(source), state.st_size, state.st_mtime_ns]


def _damaged(path: Path, fault: str, command: str = "cache") -> CacheError:
    return CacheError(
        f"'{path}' {fault}; remove it, or make it again with `{as_typed('isaseg data')} {command}`"
    )
