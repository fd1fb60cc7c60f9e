"""Tiny data sets in the layouts of the real ones, with the peculiarities of real files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from isaseg.data.source import FileSource

COCO_IDS = [i for i in range(183) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]
VOC_IDS = range(21)


def make_fake_camvid(root: Path, n: int = 3) -> Path:
    """Write train, val and test of n pairs each: labels 0 to 11, train as JPEG as some copies are."""
    for split in ("train", "val", "test"):
        ending = "jpg" if split == "train" else "png"
        for i in range(n):
            _image(root / split / f"0001TP_{i:06d}.{ending}", (48, 64), i)
            _mask(root / f"{split}annot" / f"0001TP_{i:06d}.png", (48, 64), range(12), i)
    return root


def make_fake_folder(
    root: Path, n: int = 3, classes: int = 3, test: bool = False, deep: bool = False
) -> Path:
    """Write a user's folder: odd sizes that differ, a space in a name, a grey image; palette or 16-bit masks."""
    for split in ("train", "val", "test") if test else ("train", "val"):
        for i in range(n):
            size, ids = (37 + 2 * i, 51 + i), [*range(classes), 255]
            _image(root / "images" / split / f"a photo {i}.jpg", size, i, grey=i == 1)
            _mask(root / "masks" / split / f"a photo {i}.png", size, ids, i, "deep" if deep else "palette")
    return root


def make_fake_cityscapes(root: Path, n: int = 2, test: bool = False) -> Path:
    """Write train and val of n pairs each, all label ids 0 to 33, with the other label files beside them.

    With `test`, the test images and the dummies that stand for their labels.
    """
    cities = {"train": "aachen", "val": "frankfurt", **({"test": "berlin"} if test else {})}
    for split, city in cities.items():
        for i in range(n):
            stem = f"{city}_{i:06d}_000019"
            _image(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", (32, 64), i)
            labels = root / "gtFine" / split / city
            _mask(labels / f"{stem}_gtFine_labelIds.png", (32, 64), [3] if split == "test" else range(34), i)
            _mask(labels / f"{stem}_gtFine_instanceIds.png", (32, 64), range(34), i, "deep")
            _image(labels / f"{stem}_gtFine_color.png", (32, 64), i)
    return root


def make_fake_ade20k(root: Path, n: int = 2, test: bool = False) -> Path:
    """Write training and validation of n pairs each, labels 0 to 150, every image of another size.

    With `test`, n images of release_test.zip.
    """
    for split, prefix in (("training", "ADE_train"), ("validation", "ADE_val")):
        for i in range(n):
            size = (40 + 3 * i, 55 - i)
            _image(root / "images" / split / f"{prefix}_{i:08d}.jpg", size, i)
            _mask(root / "annotations" / split / f"{prefix}_{i:08d}.png", size, range(151), i)
    for i in range(n if test else 0):
        _image(root / "testing" / f"ADE_test_{i:08d}.jpg", (41, 50 + i), i)
    (root / "objectInfo150.txt").write_text("Idx\n")
    return root


def make_fake_lip(root: Path, n: int = 2, flat: bool = False, test: bool = False) -> Path:
    """Write train and val of n pairs each, labels 0 to 19: a grey JPEG, a space in a name, mirrored labels beside.

    With `flat`, as the copies have it whose folders were moved up, without lists; with `test`, n test images.
    """
    lip = root / "LIP"
    for split, first in (("train", 77), ("val", 36)):
        images = lip / ("" if flat else "TrainVal_images") / f"{split}_images"
        labels = lip / ("" if flat else "TrainVal_parsing_annotations") / f"{split}_segmentations"
        names = [f"{first}_{471474 + i}" for i in range(n - 1)] + [f"{first} {471474 + n}"]
        for i, name in enumerate(names):
            size = (61 + 4 * i, 33 - i)
            _image(images / f"{name}.jpg", size, i, grey=i == 1)
            _mask(labels / f"{name}.png", size, range(20), i)
            _mask(labels.with_name(f"{split}_segmentations_reversed") / f"{name}.png", size, range(20), i + 1)
        if not flat:
            _list(images.parent / f"{split}_id.txt", names)
            _image(images / "not in the list.jpg", (20, 20), 0)
    for i in range(n if test else 0):
        folder = lip / "testing_images" if flat else lip / "Testing_images" / "testing_images"
        _image(folder / f"315_{i}.jpg", (50, 31 + i), i)
    return root


def make_fake_pascal_voc(root: Path, n: int = 2, aug: bool = True, test: bool = False) -> Path:
    """Write train and val of n pairs each, palette masks 0 to 20 with a border of 255, and images without masks.

    With `aug`, n more of SBD, without the border and one of them grey; with `test`, n test images.
    """
    voc = root / "VOCdevkit" / "VOC2012"
    lists = {"train": [f"2007_{i:06d}" for i in range(n)], "val": [f"2008_{i:06d}" for i in range(n)]}
    lists["trainval"] = sorted(lists["train"] + lists["val"])
    extra = [f"2009_{i:06d}" for i in range(n)]
    for i, name in enumerate(lists["trainval"]):
        size = (45 + 2 * i, 60 - i)
        _image(voc / "JPEGImages" / f"{name}.jpg", size, i, grey=i == 1)
        _mask(voc / "SegmentationClass" / f"{name}.png", size, VOC_IDS, i, "palette", border=255)
    _image(voc / "JPEGImages" / "2012_000001.jpg", (40, 40), 0)
    if aug:
        lists |= {"aug": extra, "trainaug": lists["train"] + extra}
        for i, name in enumerate(lists["trainaug"]):  # SBD has VOC's images too
            size = (45 + 2 * (i % n), 60 - i % n)
            _image(voc / "JPEGImages" / f"{name}.jpg", size, i)
            kind = "grey" if i % 2 else "palette"
            _mask(voc / "SegmentationClassAug" / f"{name}.png", size, VOC_IDS, i + 9, kind)
    if test:
        lists["test"] = [f"2010_{i:06d}" for i in range(n)]
        for i, name in enumerate(lists["test"]):
            _image(voc / "JPEGImages" / f"{name}.jpg", (45, 60), i)
    for key, names in lists.items():
        _list(voc / "ImageSets" / "Segmentation" / f"{key}.txt", names)
    return root


def make_fake_pascal_context(root: Path, n: int = 2, labels: str = "png") -> Path:
    """Write train and val of n pairs each: labels as png (0 to 59) or mat (LabelMap, 459 ids, in trainval)."""
    voc = root / "VOCdevkit" / "VOC2010"
    for split, year in (("train", 2008), ("val", 2010)):
        names = [f"{year}_{i:06d}" for i in range(n)]
        _list(voc / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)
        for i, name in enumerate(names):
            size = (37 + 2 * i, 50 - i)
            _image(voc / "JPEGImages" / f"{name}.jpg", size, i, grey=i == 1)
            if labels == "png":
                kind = "palette" if i % 2 else "grey"
                _mask(voc / "SegmentationClassContext" / f"{name}.png", size, range(60), i, kind)
            else:
                _mat(root / "trainval" / f"{name}.mat", size, range(460), i, "LabelMap", np.uint16)
    return root


def make_fake_coco_stuff(root: Path, n: int = 2, release: str = "10k") -> Path:
    """Write train and val of n pairs each: 10k with MATLAB files and lists, or 164k with PNG."""
    if release == "10k":
        lists = {"train": [f"COCO_train2014_{i:012d}" for i in range(n)]}
        lists["test"] = [f"COCO_train2014_{i + n:012d}" for i in range(n)]
        lists["all"] = lists["train"] + lists["test"]
        for i, name in enumerate(lists["all"]):
            size = (30 + i, 41 - i)
            _image(root / "images" / f"{name}.jpg", size, i, grey=i == 1)
            _mat(root / "annotations" / f"{name}.mat", size, COCO_IDS, i, "S", np.uint8)
        for key, names in lists.items():
            _list(root / "imageLists" / f"{key}.txt", names)
        return root
    for split in ("train2017", "val2017"):
        for i in range(n):
            size, name = (30 + i, 41 - i), f"{i:012d}"
            _image(root / "images" / split / f"{name}.jpg", size, i, grey=i == 1)
            ids = [(label - 1) % 256 for label in COCO_IDS]  # 0, unlabelled, became 255
            _mask(root / "annotations" / split / f"{name}.png", size, ids, i)
            _mask(root / "annotations" / split / f"{name}_labelTrainIds.png", size, range(171), i)
    return root


def labels_of(source: FileSource | None, index: int) -> np.ndarray:
    """Return all train ids of a sample."""
    assert source is not None
    mask = source.load(index).mask
    assert mask is not None
    return mask[:, :]


def _image(path: Path, size: tuple[int, int], seed: int, grey: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size if grey else (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def _mask(
    path: Path,
    size: tuple[int, int],
    ids: Iterable[int],
    seed: int,
    kind: str = "grey",
    border: int | None = None,
) -> None:
    """Write labels in which every id occurs, as a grey, palette or deep (16 bits) image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    edge = int(border is not None)
    inside = _labels((size[0] - 2 * edge, size[1] - 2 * edge), ids, seed)
    labels = np.pad(inside, edge, constant_values=border or 0)
    picture = Image.fromarray(labels.astype(np.uint16 if kind == "deep" else np.uint8))
    if kind == "palette":
        picture.putpalette([(97 * c) % 256 for c in range(768)])
    picture.save(path)


def _mat(path: Path, size: tuple[int, int], ids: Iterable[int], seed: int, name: str, dtype: type) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    others = {"names": np.array([["unlabeled"], ["person"]], object), "captions": "a cat"}
    scipy.io.savemat(path, {name: _labels(size, ids, seed).astype(dtype), **others}, do_compression=True)


def _labels(size: tuple[int, int], ids: Iterable[int], seed: int) -> np.ndarray:
    every = np.array(list(ids))
    assert len(every) <= size[0] * size[1]
    return np.random.default_rng(seed).permutation(np.resize(every, size[0] * size[1])).reshape(size)


def _list(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
