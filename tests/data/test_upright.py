"""EXIF orientation 1 to 8: image and mask of a user's folder agree pixel by pixel, wherever the mask was drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from isaseg.data.check import check_files
from isaseg.data.sets.folder import folder
from isaseg.data.source import FileSource
from isaseg.data.tools.build_cache import build_cache
from isaseg.data.tools.inspection import inspect_split
from isaseg.data.upright import orientation
from isaseg.errors import DataError
from isaseg.inference.photographs import Picture, read_picture

COLOURS = np.array([[250, 10, 10], [20, 240, 30], [30, 40, 230]], np.uint8)
SCENE = np.random.default_rng(0).integers(
    0, 3, (20, 28)
)  # of no symmetry; the mask is a function of its colours
FLAGS = range(1, 9)


def photograph(root: Path, name: str, flag: int, drawn: str, scene: np.ndarray = SCENE) -> None:
    """Write an image and its mask, drawn on the stored pixels or on what a viewer shows, as Pillow turns it."""
    exif = Image.Exif()
    exif[0x0112] = flag
    stored = Image.fromarray(COLOURS[scene])
    labels = scene
    if drawn == "upright":
        stored.getexif()[0x0112] = flag
        labels = (
            (np.asarray(ImageOps.exif_transpose(stored)).astype(int)[:, :, None] == COLOURS).all(3).argmax(2)
        )
    for folder_name, picture, options in (
        ("images", stored, {"exif": exif} if flag > 1 else {}),
        ("masks", Image.fromarray(labels.astype(np.uint8)), {}),
    ):
        (root / folder_name / "val").mkdir(parents=True, exist_ok=True)
        picture.save(root / folder_name / "val" / f"{name}.png", **options)


def val(root: Path, exif: str | None = None) -> FileSource:
    source = folder("val", str(root), ["r", "g", "b"], exif=exif)  # type: ignore[arg-type]
    assert source is not None
    return source


def agree(source: FileSource, index: int) -> bool:
    image, mask, _ = source.load(index)
    assert mask is not None
    return np.array_equal(image[:, :], COLOURS[mask[:, :]])


@pytest.mark.parametrize("drawn", ["upright", "stored"])
def test_image_and_mask_agree_for_every_flag(drawn: str, tmp_path: Path) -> None:
    for flag in FLAGS:
        photograph(tmp_path, str(flag), flag, drawn)
    source, told = val(tmp_path), val(tmp_path, "apply" if drawn == "upright" else "ignore")
    check_files(told)
    for index, flag in enumerate(FLAGS):
        assert orientation(source.pairs[index].image)[0] == flag
        assert agree(told, index), "told where masks were drawn"
        if 2 <= flag <= 4:
            with pytest.raises(
                DataError,
                match=rf"orientation {flag}, which keeps the size, in '.*{flag}\.png'.*exif=apply if",
            ):
                source.load(index)
        else:
            assert agree(source, index), "the size of the mask says where it was drawn"
            size = source.load(index).image.shape[:2]
            assert size == (SCENE.shape if flag == 1 else SCENE.shape[::-1]), "turned upright"
    faults = inspect_split(source).faults
    assert [fault.name for fault in faults] == ["2", "3", "4"], "each file once"


def test_the_wrong_choice_is_refused_where_the_size_shows_it(tmp_path: Path) -> None:
    photograph(tmp_path, "a", 6, "stored")
    with pytest.raises(
        DataError, match=r"one size, got 20x28 in image='.*a\.png' and 28x20.*data\.source\.exif"
    ):
        val(tmp_path, "apply").load(0)
    square = SCENE[:, :20]
    photograph(tmp_path, "a", 6, "upright", square)
    with pytest.raises(DataError, match="orientation 6, which keeps the size"):
        val(tmp_path).load(0)
    assert agree(val(tmp_path, "apply"), 0)


def test_a_mask_with_a_flag_of_its_own_is_turned_by_it(tmp_path: Path) -> None:
    photograph(tmp_path, "a", 3, "stored")
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "masks/val/a.png") as mask:
        mask.load()
        mask.save(tmp_path / "masks/val/a.png", exif=exif)
    assert agree(val(tmp_path), 0)
    assert np.array_equal(val(tmp_path).load(0).image[:, :], COLOURS[SCENE[::-1, ::-1]])


def test_a_cache_of_another_choice_or_of_other_files_is_not_used(tmp_path: Path) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    photograph(root, "a", 3, "upright")
    for exif, turned in (("apply", True), ("ignore", False), ("apply", True)):
        source = val(root, exif)
        source.cache = cache
        build_cache(source)
        source = val(root, exif)
        source.cache = cache
        image, mask, _ = source.load(0)
        assert not isinstance(image, np.ndarray) and not isinstance(mask, np.ndarray), "from the cache"
        assert agree(source, 0) is turned
    other = val(root, "ignore")
    other.cache = cache
    assert np.array_equal(other.load(0).image[:, :], COLOURS[SCENE]), "decoded anew"
    source = val(root)
    photograph(root, "a", 6, "stored")
    source.cache = cache
    build_cache(source)
    with Image.open(root / "images/val/a.png") as picture:
        ImageOps.exif_transpose(picture).save(
            root / "images/val/a.png"
        )  # the image alone: the mask must follow
    again = val(root)
    again.cache = cache
    with pytest.raises(DataError, match="one size"):
        again.load(0)


def test_images_without_masks_and_predict_are_upright(tmp_path: Path) -> None:
    upright = {}
    for flag in FLAGS:
        path = tmp_path / "images" / "test" / f"{flag}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = flag
        Image.fromarray(np.kron(COLOURS[SCENE], np.ones((8, 8, 1), np.uint8))).save(
            path, exif=exif, quality=95
        )
        with Image.open(path) as picture:
            upright[flag] = np.asarray(ImageOps.exif_transpose(picture))
    source = folder("test", str(tmp_path), ["r", "g", "b"])
    assert source is not None
    for index, flag in enumerate(FLAGS):
        assert np.array_equal(source.load(index).image[:, :], upright[flag])
        picture = Picture(source.pairs[index].image, "")
        assert np.array_equal(read_picture(picture), upright[flag])
        assert read_picture(picture, turned=False).shape == (160, 224, 3)


def test_a_flag_after_the_pixels_counts_and_a_damaged_one_does_not(tmp_path: Path) -> None:
    photograph(tmp_path, "a", 6, "upright")
    path = tmp_path / "images/val/a.png"
    content = path.read_bytes()
    at = content.index(b"eXIf") - 4
    chunk = content[at : at + 12 + int.from_bytes(content[at : at + 4])]
    end = len(content) - 12
    path.write_bytes(content[:at] + content[at + len(chunk) : end] + chunk + content[end:])
    assert orientation(path)[0] == 6 and agree(val(tmp_path), 0)
    for block in (
        b"",
        b"MM",
        b"XX\0*\0\0\0\x08",
        b"MM\0*\0\0\0\xff",
        b"MM\0*\0\0\0\x08\0\x05\1\x12\0\3\0\0\0\1\0\x09\0\0",
    ):
        Image.fromarray(COLOURS[SCENE]).save(path, exif=b"Exif\0\0" + block)
        assert orientation(path)[0] == 1
    assert orientation(tmp_path / "none.jpg") == (1, (0, 0))
