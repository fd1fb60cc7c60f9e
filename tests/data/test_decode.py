"""Decoding: the pixels that were written, or an error that says what is wrong."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.decode import _FORMATS, DecodeError, read_image, read_labels
from isaseg.data.index import IMAGE_ENDINGS

SIZE = (37, 51)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (*SIZE, 3), np.uint8)
LABELS = RNG.integers(0, 34, SIZE, np.uint8)


def png(bits: int, kind: int, size: tuple[int, int], rows: bytes) -> bytes:
    """Return a PNG of any depth, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", size[1], size[0], bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_format_is_read_if_its_files_are_found() -> None:
    known = Image.registered_extensions()
    assert {known[ending] for ending in IMAGE_ENDINGS} == set(_FORMATS)


@pytest.mark.parametrize(
    "options", [{"quality": 75}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}]
)
def test_a_jpeg_is_as_pillow_decodes_it(tmp_path: Path, options: dict[str, Any]) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", **options)
    image = read_image(tmp_path / "a.jpg")
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.asarray(Image.open(tmp_path / "a.jpg")))


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp"])
def test_lossless_files_give_what_was_written(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(PIXELS).save(tmp_path / f"a.{ending}", **options)
    assert np.array_equal(read_image(tmp_path / f"a.{ending}"), PIXELS)


@pytest.mark.parametrize(
    ("mode", "ending"), [("L", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png"), ("CMYK", "tif")]
)
def test_other_images_become_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    picture = Image.fromarray(PIXELS).convert(mode)
    picture.save(tmp_path / f"a.{ending}")
    assert np.array_equal(read_image(tmp_path / f"a.{ending}"), np.asarray(picture.convert("RGB")))


def test_a_palette_image_and_a_transparent_colour_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(LABELS)
    picture.putpalette([(7 * c) % 256 for c in range(768)])
    picture.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png")[3, 4].tolist() == [
        (7 * (3 * int(LABELS[3, 4]) + c)) % 256 for c in range(3)
    ]
    Image.fromarray(PIXELS).save(tmp_path / "t.png", transparency=(0, 0, 0))
    assert np.array_equal(read_image(tmp_path / "t.png"), PIXELS)


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("turned.jpg", {"exif": exif}), ("straight.jpg", {})):
        Image.fromarray(PIXELS).save(tmp_path / name, **options)
    assert read_image(tmp_path / "turned.jpg").shape == (*SIZE, 3)
    assert np.array_equal(read_image(tmp_path / "turned.jpg"), read_image(tmp_path / "straight.jpg"))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_an_image_of_more_than_8_bits_is_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(LABELS.astype(dtype)).save(tmp_path / "a.tif")
    with pytest.raises(DecodeError, match="8 bits a channel"):
        read_image(tmp_path / "a.tif")


def test_a_colour_image_of_16_bits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(16, 2, (2, 3), 2 * (b"\0" + bytes(range(18)))))
    with pytest.raises(DecodeError, match="8 bits a channel, got RGB;16B"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("dtype", "mode", "palette"), [(np.uint8, "L", False), (np.uint8, "P", True), (np.uint16, "I;16", False)]
)
def test_d6_labels_are_the_indices_that_were_written(
    tmp_path: Path, dtype: type, mode: str, palette: bool
) -> None:
    picture = Image.fromarray(LABELS.astype(dtype))
    if palette:
        picture.putpalette([255 - c % 256 for c in range(768)])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(read_labels(tmp_path / "a.png", [mode]), LABELS)
    others = {"L", "P", "I;16"} - {mode}
    with pytest.raises(DecodeError, match=f"labels as indices of mode .* or .*, got mode='{mode}'"):
        read_labels(tmp_path / "a.png", sorted(others))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "1"])
def test_d6_colours_and_alpha_are_no_labels(tmp_path: Path, mode: str) -> None:
    Image.fromarray(LABELS).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(DecodeError, match=f"got mode='{mode}'"):
        read_labels(tmp_path / "a.png", ["L", "P", "I;16"])


def test_d6_palette_indices_below_8_bits_are_kept(tmp_path: Path) -> None:
    picture = Image.fromarray(LABELS % 3)
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(tmp_path / "a.png", bits=2)
    assert np.array_equal(read_labels(tmp_path / "a.png", ["P"]), LABELS % 3)


@pytest.mark.parametrize("bits", [2, 4])
def test_d6_grey_labels_below_8_bits_are_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "a.png").write_bytes(png(bits, 0, (1, 2), bytes([0, 0x12])))  # a reader makes 17 of a 1
    with pytest.raises(DecodeError, match=rf"labels of 8 bits, got L;{bits}: .*save the labels with 8 bits"):
        read_labels(tmp_path / "a.png", ["L"])


def test_a_transparent_label_is_a_label(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "a.png", transparency=3)
    assert np.array_equal(read_labels(tmp_path / "a.png", ["L"]), LABELS)


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda content: content[: len(content) // 2],
    "almost whole": lambda content: content[:-200],
    "empty": lambda content: b"",
    "zeros": lambda content: b"\0" * 200,
    "text": lambda content: b"<html>404</html>" * 20,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "p.png", "l.png", "a.mat"])
def test_d3_damaged_files_are_refused(tmp_path: Path, name: str, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    if name == "a.mat":
        scipy.io.savemat(path, {"S": LABELS}, do_compression=True)
    else:
        _save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DecodeError, match="readable file"):
        _read(path)


@pytest.mark.parametrize("name", ["a.png", "l.png", "p.png"])
def test_d3_a_flipped_byte_in_the_pixels_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _save(path)
    whole = path.read_bytes()
    checksum = len(whole) - 14  # of the pixels; decoders do not compare it
    for place in [*range(60, len(whole) - 20, len(whole) // 7), *([] if name == "a.png" else [checksum])]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DecodeError):
            _read(path)


def test_d3_a_png_cut_in_its_trailer_still_has_all_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    path.write_bytes(path.read_bytes()[:-12])
    assert np.array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "l.png"])
def test_d3_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="decompression bomb"):
        _read(tmp_path / name)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float64])
def test_matrices_of_matlab_files(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"S": LABELS.astype(dtype), "names": np.array(["a", "b"], object), "other": 3})
    labels = read_labels(path, ["L"], "S")
    assert np.array_equal(labels, LABELS)
    assert labels.dtype.kind in "ui"


def test_a_field_of_a_matlab_struct(tmp_path: Path) -> None:
    inner = {"Boundaries": np.array([1, 2]), "Segmentation": LABELS, "CategoriesPresent": np.array([1, 2])}
    scipy.io.savemat(tmp_path / "a.mat", {"GTcls": inner})
    assert np.array_equal(read_labels(tmp_path / "a.mat", ["L"], "GTcls.Segmentation"), LABELS)
    with pytest.raises(DecodeError, match=r"expected the matrix GTcls\.Masks"):
        read_labels(tmp_path / "a.mat", ["L"], "GTcls.Masks")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"T": LABELS}, "expected the matrix S in the MATLAB file, got nothing"),
        ({"S": LABELS + 0.5}, "whole numbers in S, got fractions"),
        ({"S": np.full(SIZE, np.nan)}, "whole numbers in S"),
        ({"S": np.zeros((3, 4, 5))}, "S as a matrix of labels"),
        ({"S": "a cat"}, "S as a matrix of labels"),
        ({"S": {"a": 1}}, "S as a matrix of labels"),
        ({"S": np.array([["a", 1]], object)}, "S as a matrix of labels"),
        ({"S": np.full((2, 2), 1j)}, "S as a matrix of labels"),
    ],
)
def test_what_is_no_matrix_of_labels_is_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    scipy.io.savemat(tmp_path / "a.mat", content)
    with pytest.raises(DecodeError, match=message):
        read_labels(tmp_path / "a.mat", ["L"], "S")


def test_a_matlab_file_where_images_are_expected_is_refused(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"S": LABELS})
    with pytest.raises(DecodeError, match="labels as an image, got a MATLAB file"):
        read_labels(tmp_path / "a.mat", ["L"])


def _save(path: Path) -> None:
    """Save an image (a), labels (l) or labels with a palette (p)."""
    picture = Image.fromarray(PIXELS if path.name[0] == "a" else LABELS)
    if path.name[0] == "p":
        picture.putpalette([0] * 768)
    picture.save(path)


def _read(path: Path) -> np.ndarray:
    if path.name.startswith("a") and path.suffix != ".mat":
        return read_image(path)
    return read_labels(path, ["L", "P"], "S")
