"""The folders that people have: each trains as it should, or is refused with the name of the file and what to do."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.folder import folder
from isaseg.errors import DataError
from tests import forked

CLASSES = ["background", "thing", "nowhere"]
SIZE = (37, 51)  # width, height
TINY = [
    "backbone=tiny",
    "backbone.pretrained=false",
    "head.channels=8",
    "head.aux_channels=null",
    "trainer.max_steps=2",
    "data.crop_size=[32,32]",
]
TINY += ["data.batch_size=2", "data.num_workers=0", "trainer.accelerator=cpu", "logger=csv", "pictures=1"]


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def labels(value: int = 1) -> Image.Image:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[10:30, 5:20] = value
    return Image.fromarray(mask)


def put(
    root: Path,
    name: str,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    split: str = "",
    **options: Any,
) -> None:
    """Write an image NAME.ENDING and its mask."""
    images, masks = root / "images" / split, root / "masks" / split
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(images / name, **options)
    (mask or labels()).save(masks / f"{Path(name).stem}.png")


def test_what_can_be_read_trains(tmp_path: Path) -> None:
    """RGBA, grey, EXIF, upper-case endings, spaces, odd sizes, no val, an empty class, nothing but background."""
    root = tmp_path / "my photos"
    put(root, "with alpha.png", picture("RGBA"))
    put(root, "grey.JPG", picture("L"))
    put(root, "two words.JPEG", mask=labels(0))
    exif = Image.Exif()
    for flag in (5, 6, 7, 8):
        exif[0x0112] = flag
        put(root, f"turned {flag}.jpg", mask=labels().transpose(Image.Transpose.ROTATE_270), exif=exif)
    for number in range(6):
        put(
            root,
            f"IMG {number}.JPG",
            picture().resize((20 + number, 31)),
            labels().resize((20 + number, 31), 0),
        )
    (root / "masks" / "IMG 0.png").rename(root / "masks" / "IMG 0.PNG")
    words = [
        "data=folder",
        f"data.root='{root}'",
        "data.classes=[background,thing,nowhere]",
        "output_dir=out",
    ]
    done = forked.run("train.py", *words, *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "of 13 images, chosen by their names, are for validation; data.split=0.2" in done.stderr + done.stdout
    )
    (metrics,) = (tmp_path / "out").rglob("metrics.json")
    assert metrics.parent.parent.name in ("folder", "finetune"), "not lamps_isa"
    assert json.loads(metrics.read_text())["val/IoU"].keys() >= {"background", "thing"}


put_val = partial(put, split="val")


def sixteen_bits(root: Path) -> str:
    put_val(root, "deep.png", Image.fromarray(np.full(SIZE[::-1], 60_000, np.uint16)))
    return r"8 bits a channel, got I;16.*deep\.png.*replace it, or remove image and mask"


def colours(root: Path) -> str:
    put_val(root, "a.png", mask=labels().convert("RGB"))
    return r"got mode='RGB' in '.*masks.val.a\.png'.*convert it by `python src/data\.py prepare data=folder"


def one_bit(root: Path) -> str:
    put_val(root, "a.png", mask=labels(255).convert("1"))
    return r"got mode='1' in '.*masks.val.a\.png'.*prepare data=folder"


def polygons(root: Path) -> str:
    put_val(root, "a.jpg")
    (root / "masks/val/a.png").unlink()
    (root / "images/val/a.json").write_text("{}")
    return r"a mask for every image, got the annotations '.*a\.json'; convert it by .*prepare data=folder"


def run_lengths(root: Path) -> str:
    polygons(root)
    (root / "images/val/a.json").unlink()
    (root / "annotations").mkdir()
    (root / "annotations/instances.json").write_text("{}")
    return r"got the annotations '.*instances\.json'; convert it by .*prepare data=folder"


def jpeg_masks(root: Path) -> str:
    put_val(root, "a.jpg")
    (root / "masks/val/a.png").unlink()
    labels().save(root / "masks/val/a.jpg")
    return r"masks as PNG, got '.*masks.val.a\.jpg': JPEG changes labels"


def one_name_twice(root: Path) -> str:
    put_val(root, "a.jpg")
    put_val(root, "a.png")
    return r"one file for each name, got '.*a\.jpg' and '.*a\.png'; remove one"


def half_turn(root: Path) -> str:
    exif = Image.Exif()
    exif[0x0112] = 3
    put_val(root, "a.jpg", exif=exif)
    return r"orientation 3, which keeps the size, in '.*a\.jpg'"


def no_mask(root: Path) -> str:
    put_val(root, "a.jpg")
    (root / "masks/val/a.png").unlink()
    return r"mask of '.*a\.jpg'"


@pytest.mark.parametrize(
    "make",
    [sixteen_bits, colours, one_bit, polygons, run_lengths, jpeg_masks, one_name_twice, half_turn, no_mask],
    ids=lambda make: make.__name__,
)
def test_what_cannot_be_read_is_refused_by_its_name(make: Callable[[Path], str], tmp_path: Path) -> None:
    message = make(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        source = folder("val", str(tmp_path), CLASSES)
        assert source is not None
        check_files(source)
    assert "archive" not in str(error.value) and "published" not in str(error.value)
