"""Pixels from files: images as RGB, labels as the raw indices that were written, never converted."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scipy.io
from PIL import Image, ImageFile, UnidentifiedImageError

# Pillow decodes others by programs, as PostScript by Ghostscript, whatever the file is called
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_WIDE = ("I;16", "I;16B")
_MASKS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", *_WIDE)  # Pillow's modes
_RGB = np.array([1 << 16, 1 << 8, 1], np.int32)


class DecodeError(Exception):
    """A file that cannot be decoded; the message says why."""


class NoIndicesError(DecodeError):
    """A mask that holds no indices, or not as they were written."""


def read_image(path: Path) -> np.ndarray:
    """Return an image as uint8 RGB (H, W, 3); grey, palette and CMYK become RGB, EXIF orientation is not applied.

    Raises:
        DecodeError: If the file is not an image, damaged, too large, or has more than 8 bits a channel.
    """
    with _opened(path) as (content, picture):
        if picture.mode.startswith(("I", "F")) or ";16" in _layout(picture):
            raise DecodeError(
                f"expected an image of 8 bits a channel, got {_layout(picture) or picture.mode}"
            )
        if picture.mode == "RGB" and _is_plain(content, picture):
            return _fast(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        return np.array(picture.convert("RGB"))  # a copy, which torch may write to


def read_labels(path: Path, modes: Sequence[str], variable: str | None = None) -> np.ndarray:
    """Return the raw ids of a label file, integers (H, W).

    Args:
        path: An image, or a MATLAB file.
        modes: Pillow modes that an image may have: L, P, I;16.
        variable: Name of the matrix in a MATLAB file; `a.b` is field b of struct a.

    Raises:
        DecodeError: If the file is damaged, has another mode, or lacks the matrix.
    """
    if path.suffix.lower() == ".mat":
        return _read_mat(path, variable)
    with _opened(path) as (content, picture):
        if picture.mode not in modes:
            raise NoIndicesError(
                f"expected labels as indices of mode {' or '.join(modes)}, got mode={picture.mode!r}"
            )
        if _layout(picture).startswith("L;"):
            raise NoIndicesError(
                f"expected labels of 8 bits, got {_layout(picture)}: decoders scale grey of fewer bits to 0 to 255; "
                "save the labels with 8 bits or with a palette"
            )
        plain = picture.mode == "L" and _is_plain(content, picture)
        picture.verify()  # compares the checksums of a PNG; decoders do not, and labels would be silently wrong
        if plain:
            return _fast(content, cv2.IMREAD_UNCHANGED)
    with _opened(path) as (_, picture):  # `verify` leaves nothing to decode
        return np.asarray(picture)


def read_mask(path: Path, only_indices: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the pixels of a mask of any kind: integers (H, W), and the colour of each index.

    A colour is the number 0xRRGGBB; transparency is left out. The pixels are indices (of 16 bits: of colour -1),
    or they are colours, with None beside them. Grey of 1, 2 or 4 bits is not scaled.

    Args:
        path: An image.
        only_indices: Whether a mask in colours is not decoded: (0, 0) pixels are returned.

    Raises:
        DecodeError: If the file is damaged, has another mode, or is a JPEG, whose colours are not those that were saved.
    """
    with _opened(path) as (_, picture):
        mode, layout = picture.mode, _layout(picture)
        reduced = ";16" in layout and mode not in _WIDE
        if picture.format in ("JPEG", "MPO") or mode not in _MASKS or reduced:
            raise DecodeError(
                f"expected indices, or colours of 8 bits, as PNG, got mode={mode!r} in a {picture.format}"
            )
        if only_indices and mode in ("RGB", "RGBA"):
            return np.zeros((0, 0), np.int64), None
        picture.verify()
    with _opened(path) as (_, picture):
        pixels = np.asarray(picture)
        if mode in ("RGB", "RGBA"):
            return pixels[..., :3].astype(np.int32) @ _RGB, None
        if mode in _WIDE:
            return pixels.astype(np.int64), np.array([-1])
        if mode in ("P", "PA"):
            palette = np.reshape(picture.getpalette() or [0, 0, 0], (-1, 3)).astype(np.int32)
            return pixels if mode == "P" else pixels[..., 0], palette @ _RGB
    bits = 1 if mode == "1" else int(layout[2:]) if layout.startswith("L;") and layout[2:].isdigit() else 8
    step = 255 // (2**bits - 1)
    grey = pixels.astype(np.uint8) if mode == "1" else (pixels if mode == "L" else pixels[..., 0]) // step
    return grey, np.arange(2**bits) * step * 0x010101


@contextmanager
def _opened(path: Path) -> Iterator[tuple[bytes, ImageFile.ImageFile]]:
    """Give the bytes of a file and the picture in it, whose pixels are not decoded yet."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
            yield content, picture
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(error) from error


def _layout(picture: ImageFile.ImageFile) -> str:
    """Return how the pixels are stored, in Pillow's words: RGB, RGB;16B (16 bits), L;4 (4 bits)."""
    arguments = picture.tile[0].args if picture.tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_plain(content: bytes, picture: ImageFile.ImageFile) -> bool:
    """Return whether this is a whole PNG or JPEG without a transparent colour.

    OpenCV decodes it to the same pixels as Pillow, in a third less time. It fills up a truncated JPEG without an error,
    so the end of the file must be there.
    """
    end = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}.get(picture.format or "")
    return end is not None and content.endswith(end) and "transparency" not in picture.info


def _fast(content: bytes, flag: int) -> np.ndarray:
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    if pixels is None:
        raise DecodeError("expected a readable file: damaged data")
    return pixels


def _read_mat(path: Path, variable: str | None) -> np.ndarray:
    if variable is None:
        raise DecodeError("expected labels as an image, got a MATLAB file")
    name, *fields = variable.split(".")
    try:
        content: Any = scipy.io.loadmat(path, variable_names=[name], squeeze_me=bool(fields))
    except Exception as error:  # of a damaged file, scipy raises ValueError, TypeError, KeyError, ...
        raise _unreadable(error) from error
    try:
        matrix = content[name]
        for part in fields:
            matrix = matrix[part].item()
    except (KeyError, ValueError, IndexError, AttributeError):
        found = ", ".join(k for k in content if not k.startswith("__")) or "nothing of that name"
        raise DecodeError(f"expected the matrix {variable} in the MATLAB file, got {found}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind not in "uif":
        raise DecodeError(f"expected {variable} as a matrix of labels, got {type(matrix).__name__}")
    if matrix.dtype.kind == "f":  # MATLAB's numbers are doubles unless cast
        with np.errstate(invalid="ignore"):  # of NaN
            whole = matrix.astype(np.int64)
        if not np.array_equal(whole, matrix):
            raise DecodeError(f"expected whole numbers in {variable}, got fractions")
        return whole
    return matrix


def _unreadable(error: Exception) -> DecodeError:
    if isinstance(error, UnidentifiedImageError):  # its text holds an address in memory
        return DecodeError("expected a readable file: no image")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DecodeError(f"expected a readable file: {reason}")
