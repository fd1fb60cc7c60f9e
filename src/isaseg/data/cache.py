"""Decoded pictures on disk, in tiles, of which a crop reads only those that it touches.

A file holds one picture: a header, the sizes of the compressed tiles, the tiles. The header with the sizes has a
checksum, and each tile is a zstd frame with its own, so that a damaged cache is an error and never a wrong pixel. The
header says from which file it was made: bytes, time and SHA-256. (Tiles of 64x256 and the level were measured: less than
half the time of blosc2, 20 % larger.)
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

from isaseg.files import replace_file, sha256

_MAGIC = b"isaseg-tiles-2\n"
_START = struct.Struct("<III")  # bytes of the header, number of tiles, CRC-32 of header and sizes
_TILE = (64, 256)
_LEVEL = -1

Window = tuple[slice, slice]


class CacheError(Exception):
    """A cache file that is damaged."""


@dataclass(frozen=True)
class LazyArray:
    """A picture of which `picture[rows, columns]` reads the window, as `picture[:, :]` does the whole."""

    shape: tuple[int, ...]
    read: Callable[[slice, slice], np.ndarray]

    def __getitem__(self, window: Window) -> np.ndarray:
        """Return the pixels of a window with steps of 1."""
        rows, columns = (slice(*w.indices(n)) for w, n in zip(window, self.shape, strict=False))
        return self.read(rows, columns)


def write_picture(path: Path, picture: np.ndarray, source: Path) -> None:
    """Write `picture`, uint8 or uint16, (H, W) or (H, W, C), which is what `source` holds decoded.

    The file appears whole or not at all.
    """
    picture = picture.astype(
        picture.dtype.newbyteorder("="), copy=False
    )  # MATLAB's may be those of another machine
    planes = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    height, width = planes.shape[1:]
    tiles = [
        compressor.compress(np.ascontiguousarray(planes[:, y : y + _TILE[0], x : x + _TILE[1]]).tobytes())
        for y in range(0, height, _TILE[0])
        for x in range(0, width, _TILE[1])
    ]
    made_from = source.stat()
    header = json.dumps(
        {
            "shape": picture.shape,
            "dtype": picture.dtype.name,
            "source": str(source),
            "bytes": made_from.st_size,
            "mtime_ns": made_from.st_mtime_ns,
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


class CachedPicture:
    """An open cache file.

    Raises:
        CacheError: If it is not whole.
        FileNotFoundError: If there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + _START.size)
            if len(start) < len(_MAGIC) + _START.size or not start.startswith(_MAGIC):
                raise CacheError(f"'{path}' is no cache file of this version")
            header_bytes, tiles, checksum = _START.unpack(start[len(_MAGIC) :])
            text, numbers = file.read(header_bytes), file.read(4 * tiles)
            if zlib.crc32(text + numbers) != checksum:
                raise CacheError(f"'{path}' has a damaged header")
            header, sizes = json.loads(text), np.frombuffer(numbers, "<u4")
            self.shape: tuple[int, ...] = tuple(header["shape"])
            self.dtype = np.dtype(header["dtype"])
            self.bytes, self.mtime_ns = int(header["bytes"]), int(header["mtime_ns"])
            self.source, self.sha256 = str(header["source"]), str(header["sha256"])
            self.offsets = file.tell() + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            if os.fstat(file.fileno()).st_size != self.offsets[-1]:
                raise CacheError(f"'{path}' is cut short")

    def is_of(self, source: Path) -> bool:
        """Tell whether `source` is still the file that this was made from.

        Place, bytes and time decide; where the bytes are as many but place or time differ (a copy), the SHA-256 does.
        """
        now = source.stat()
        if now.st_size != self.bytes:
            return False
        if now.st_mtime_ns == self.mtime_ns and str(source) == self.source:
            return True
        return _sha256_once(source, now.st_size, now.st_ctime_ns) == self.sha256

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
                offsets = self.offsets[ty * across + first : ty * across + last + 2]
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
                        raise CacheError(f"'{self.path}' is damaged: {error}") from error
                    ya, yb = max(top, y0), min(bottom, y0 + tile_height)
                    xa, xb = max(left, x0), min(right, x0 + tile.shape[2])
                    part = tile[:, ya - y0 : yb - y0, xa - x0 : xb - x0]
                    out[:, ya - top : yb - top, xa - left : xb - left] = part
        whole: np.ndarray = out[0] if len(self.shape) == 2 else cv2.merge(list(out))
        return whole
