"""EXIF orientation: the flag of a file, pixels turned by it, and which of an image and its mask are turned."""

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image

_TAG, _SHORT = 0x0112, 3  # EXIF 2.32, table 4: Orientation, an unsigned integer of two bytes
_TAIL = 2**16  # bytes at the end of a PNG in which an eXIf chunk is looked for


def upright(pixels: np.ndarray, flag: int) -> np.ndarray:
    """Return pixels (H, W) or (H, W, C) as a viewer shows them; flags 5 to 8 swap height and width.

    Args:
        pixels: As they are stored.
        flag: EXIF orientation, 1 to 8; 1: they are returned as they are.
    """
    if flag == 1:
        return pixels
    if flag >= 5:
        pixels = pixels.swapaxes(0, 1)
    if flag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if flag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def orientation(path: Path) -> tuple[int, tuple[int, int]]:
    """Return the EXIF flag of an image file, 1 to 8, and its stored width and height; only the header is read.

    It is 1 where there is none, or the file cannot be read, which decoding reports. Pillow turns TIFF files by itself.
    """
    try:
        with path.open("rb") as file, Image.open(file) as picture:
            block = picture.info.get("exif", b"")
            if picture.format == "PNG" and not block:  # a chunk after the pixels, which Pillow has not read
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
                block = file.read().partition(b"eXIf")[2]
            return _flag(block), picture.size
    except Exception:  # decoders raise anything
        return 1, (0, 0)


def turns(image: Path, mask: Path | None, exif: str | None) -> tuple[int, int] | None:
    """Return the flags by which an image and its mask are turned upright, 1 for neither; None if it is ambiguous.

    Args:
        image: The image file; if it has no flag, neither is turned.
        mask: The mask file, whose own flag holds, if it has one; None: the image is turned.
        exif: apply: the masks were drawn on upright images, which are turned; ignore: on the stored pixels, and neither
            is turned; None: the size of the mask decides, which it cannot where turning keeps that of the image.
    """
    if exif == "ignore":
        return 1, 1
    flag, (width, height) = orientation(image)
    if flag == 1 or mask is None:
        return flag, 1
    own, stored = orientation(mask)
    if exif == "apply" or own != 1:
        return flag, own
    if flag < 5 or width == height:
        return None
    return flag, flag if stored == (width, height) else 1


def _flag(block: bytes) -> int:
    """Return the orientation in a block of EXIF: a TIFF header and a directory of entries of 12 bytes."""
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for place in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", block, place)
            if (tag, kind) == (_TAG, _SHORT):
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # damaged, on which no pixel depends
        pass
    return 1
