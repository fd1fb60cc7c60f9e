"""Tiny data sets in the layouts of the real ones, with the oddities of real files."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_fake_camvid(root: Path, n: int = 3) -> Path:
    """Write train, val and test of n pairs each: labels 0 to 11, train as JPEG as some copies are."""
    for split in ("train", "val", "test"):
        ending = "jpg" if split == "train" else "png"
        for i in range(n):
            _image(root / split / f"0001TP_{i:06d}.{ending}", (48, 64), i)
            _mask(root / f"{split}annot" / f"0001TP_{i:06d}.png", (48, 64), range(12), i)
    return root


def make_fake_folder(root: Path, n: int = 3, classes: int = 3, test: bool = False) -> Path:
    """Write a user's folder: odd sizes that differ, a space in a name, palette masks, a grey image."""
    for split in ("train", "val", "test") if test else ("train", "val"):
        for i in range(n):
            size = (37 + 2 * i, 51 + i)
            _image(root / "images" / split / f"a photo {i}.jpg", size, i, grey=i == 1)
            _mask(root / "masks" / split / f"a photo {i}.png", size, [*range(classes), 255], i, palette=True)
    return root


def make_fake_cityscapes(root: Path, n: int = 2) -> Path:
    """Write train and val of n pairs each, all label ids 0 to 33, with the other label files beside them."""
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        for i in range(n):
            stem = f"{city}_{i:06d}_000019"
            _image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", (32, 64), i)
            labels = root / "gtFine" / split / city
            _mask(labels / f"{stem}_gtFine_labelIds.png", (32, 64), range(34), i)
            _mask(labels / f"{stem}_gtFine_instanceIds.png", (32, 64), range(34), i)
            _image(labels / f"{stem}_gtFine_color.png", (32, 64), i)
    return root


def make_fake_ade20k(root: Path, n: int = 2) -> Path:
    """Write training and validation of n pairs each, labels 0 to 150, every image of another size."""
    for split, prefix in (("training", "ADE_train"), ("validation", "ADE_val")):
        for i in range(n):
            size = (40 + 3 * i, 55 - i)
            _image(root / "images" / split / f"{prefix}_{i:08d}.jpg", size, i)
            _mask(root / "annotations" / split / f"{prefix}_{i:08d}.png", size, range(151), i)
    (root / "objectInfo150.txt").write_text("Idx\n")
    return root


def _image(path: Path, size: tuple[int, int], seed: int, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size if grey else (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _mask(
    path: Path, size: tuple[int, int], ids: "list[int] | range", seed: int, palette: bool = False
) -> None:
    """Write labels of which every id occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.resize(np.array(list(ids), np.uint8), size)
    picture = Image.fromarray(np.random.default_rng(seed).permuted(values))
    if palette:
        picture.putpalette([(97 * c) % 256 for c in range(768)])
    picture.save(path)
