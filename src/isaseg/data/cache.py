"""Decoded pictures on disk, in tiles, so that a crop reads only the tiles that it touches.

A file holds one picture: a header, the sizes of the compressed tiles, the tiles. A checksum covers header and sizes, and
each tile is a zstd frame with its own: a damaged cache is an error and never a wrong pixel. The header names the file
that the picture comes from by bytes, time and SHA-256. (Tile size and level were measured: reading takes less than half
the time of blosc2, for 20 % more space.)
"""

import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import zstandard

from isaseg.errors import DataError
from isaseg.files import replace_file, sha256

_MAGIC = b"isaseg-tiles-2\n"
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


def write_picture(path: Path, picture: np.ndarray, source: Path) -> None:
    """Write the decoded content of `source`; the file appears whole or not at all.

    Args:
        path: The cache file.
        picture: uint8 or uint16, (H, W) or (H, W, C).
        source: The file that it was decoded from.
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
    state = source.stat()
    header = json.dumps(
        {
            "shape": picture.shape,
            "dtype": picture.dtype.name,
            "source": str(source),
            "bytes": state.st_size,
            "mtime_ns": state.st_mtime_ns,
            "sha256": sha256(source),
        }
    ).encode()
    sizes = np.array([len(tile) for tile in tiles], "<u4").tobytes()
    with replace_file(path) as file:
        file.write(_MAGIC + _START.pack(len(header), len(tiles), zlib.crc32(header + sizes)) + header + sizes)
        file.writelines(tiles)


@cache
def _sha256_once(source: Path, size: int, changed_ns: int) -> str:
    return sha256(source)


def cached_picture(path: Path, source: Path) -> "CachedPicture | None":
    """Return the cached picture of `source` as it is now; None if it is absent or older.

    Raises:
        CacheError: If it is damaged.
    """
    try:
        cached = CachedPicture(path)
    except FileNotFoundError:
        return None
    return cached if cached.is_of(source) else None


class CachedPicture:
    """An open cache file.

    Attributes:
        shape: (H, W) or (H, W, C).
        dtype: uint8 or uint16.

    Raises:
        CacheError: If it is damaged.
        FileNotFoundError: If there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + _START.size)
            if len(start) < len(_MAGIC) + _START.size or not start.startswith(_MAGIC):
                raise _damaged(path, "is no cache file of this version")
            header_bytes, tiles, checksum = _START.unpack(start[len(_MAGIC) :])
            text, numbers = file.read(header_bytes), file.read(4 * tiles)
            if zlib.crc32(text + numbers) != checksum:
                raise _damaged(path, "has a damaged header")
            self._header, sizes = json.loads(text), np.frombuffer(numbers, "<u4")
            self.shape: tuple[int, ...] = tuple(self._header["shape"])
            self.dtype = np.dtype(self._header["dtype"])
            self._offsets = file.tell() + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            if os.fstat(file.fileno()).st_size != self._offsets[-1]:
                raise _damaged(path, "is cut short")

    def is_of(self, source: Path) -> bool:
        """Return whether `source` is still the file that this picture was decoded from.

        Place, size and time decide. Where only the size agrees (a copy), the SHA-256 decides.
        """
        now, header = source.stat(), self._header
        if now.st_size != header["bytes"]:
            return False
        if now.st_mtime_ns == header["mtime_ns"] and str(source) == header["source"]:
            return True
        return bool(_sha256_once(source, now.st_size, now.st_ctime_ns) == header["sha256"])

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the window, (h, w) or (h, w, C).

        Raises:
            CacheError: If a tile is damaged.
        """
        height, width = self.shape[:2]
        channels = self.shape[2] if len(self.shape) == 3 else 1
        top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
        out = np.empty((channels, bottom - top, right - left), self.dtype)
        across = -(-width // _TILE[1])
        first, last = left // _TILE[1], (right - 1) // _TILE[1]
        decompress = zstandard.ZstdDecompressor().decompress
        with self.path.open("rb", buffering=0) as file:
            for ty in range(top // _TILE[0], (bottom - 1) // _TILE[0] + 1):
                offsets = self._offsets[ty * across + first : ty * across + last + 2]
                row = memoryview(os.pread(file.fileno(), int(offsets[-1] - offsets[0]), int(offsets[0])))
                y0 = ty * _TILE[0]
                tile_height = min(_TILE[0], height - y0)
                for tx in range(first, last + 1):
                    start, stop = offsets[tx - first : tx - first + 2] - offsets[0]
                    try:
                        pixels = np.frombuffer(decompress(row[start:stop]), self.dtype)
                        x0 = tx * _TILE[1]
                        tile = pixels.reshape(channels, tile_height, min(_TILE[1], width - x0))
                    except (zstandard.ZstdError, ValueError) as error:
                        raise _damaged(self.path, f"is damaged: {error}", "cache verify=true") from error
                    ya, yb = max(top, y0), min(bottom, y0 + tile_height)
                    xa, xb = max(left, x0), min(right, x0 + tile.shape[2])
                    part = tile[:, ya - y0 : yb - y0, xa - x0 : xb - x0]
                    out[:, ya - top : yb - top, xa - left : xb - left] = part
        whole: np.ndarray = out[0] if len(self.shape) == 2 else cv2.merge(list(out))
        return whole


def _damaged(path: Path, fault: str, command: str = "cache") -> CacheError:
    return CacheError(f"'{path}' {fault}; remove it, or make it again with `python src/data.py {command}`")
