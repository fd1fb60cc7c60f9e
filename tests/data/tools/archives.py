"""Small archives as the official sites publish them."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from isaseg.data.sets.ade20k import ade20k
from isaseg.data.sets.cityscapes import cityscapes
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.sets.lip import lip
from isaseg.data.sets.pascal_context import pascal_context
from isaseg.data.sets.pascal_voc import pascal_voc
from tests import fakes


def pack(
    archive: Path, folder: Path, prefix: str = "", only: Callable[[str], bool] = lambda name: True
) -> Path:
    """Pack the files below a folder."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in filter(only, names):
                file.write(folder / name, prefix + name)
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
            for name in filter(only, names):
                file.add(folder / name, prefix + name)
    return archive


def encode_rle(mask: np.ndarray) -> str:
    """Write COCO's compressed run lengths, a number and a digit at a time."""
    runs, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            runs.append(0)
            value = not value
        runs[-1] += 1
    text = ""
    for i, run in enumerate(runs):
        number = run - (runs[i - 2] if i > 2 else 0)
        while True:
            digit, number = number & 31, number >> 5
            last = number == (-1 if digit & 16 else 0)
            text += chr(48 + digit + (0 if last else 32))
            if last:
                break
    return text


def begins(*starts: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(starts)


def archives_of_cityscapes(made: Path, to: Path) -> None:
    fakes.make_fake_cityscapes(made, test=True)
    (made / "license.txt").write_text("none\n")
    pack(to / "leftImg8bit_trainvaltest.zip", made, only=begins("leftImg8bit/", "license"))
    pack(to / "gtFine_trainvaltest.zip", made, only=begins("gtFine/", "license"))


def archives_of_ade20k(made: Path, to: Path) -> None:
    fakes.make_fake_ade20k(made, test=True)
    pack(
        to / "ADEChallengeData2016.zip",
        made,
        "ADEChallengeData2016/",
        begins("images/", "annotations/", "obj"),
    )
    (made / "list.txt").write_text("ADE_test_00000001.jpg\n")
    pack(to / "release_test.zip", made, "release_test/", begins("testing/", "list.txt"))


def archives_of_lip(made: Path, to: Path) -> None:
    """One zip of zips, of which one is a zip of a zip again, as they are published."""
    fakes.make_fake_lip(made, test=True)
    inner = made / "zips"
    for name in ("TrainVal_images", "TrainVal_parsing_annotations", "Testing_images"):
        pack(inner / f"{name}.zip", made / "LIP", only=begins(f"{name}/"))
    (inner / "again").mkdir()
    os.replace(inner / "TrainVal_images.zip", inner / "again" / "TrainVal_images.zip")
    pack(inner / "TrainVal_images.zip", inner / "again")
    shutil.rmtree(inner / "again")
    (inner / "TrainVal_pose_annotations.zip").write_bytes(b"left out")
    pack(to / "LIP.zip", inner, "LIP/")


def archives_of_lip_apart(made: Path, to: Path) -> None:
    archives_of_lip(made, to)
    (to / "LIP.zip").unlink()
    for name in ("TrainVal_images", "TrainVal_parsing_annotations", "Testing_images"):
        shutil.copy(made / "zips" / f"{name}.zip", to)


def archives_of_voc(made: Path, to: Path) -> None:
    """VOC, its test, and SBD, in which a training image of VOC, one of val, and two more are; one JPEG is SBD's alone."""
    fakes.make_fake_pascal_voc(made, aug=False, test=True)
    voc, sbd = made / "VOCdevkit" / "VOC2012", made / "sbd"
    names = ["2007_000000", "2008_000000", "2009_000000", "2009_000001"]
    rng = np.random.default_rng(1)
    for name in names:
        labels = rng.permutation(np.resize(np.arange(21, dtype=np.uint8), 300)).reshape(15, 20)
        scipy.io.savemat(
            _parent(sbd / "cls" / f"{name}.mat"), {"GTcls": {"Segmentation": labels, "Boundaries": [1]}}
        )
        Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).save(
            _parent(sbd / "img" / f"{name}.jpg")
        )
    shutil.copy(sbd / "img" / "2009_000000.jpg", voc / "JPEGImages")
    (sbd / "train.txt").write_text("\n".join(names[:3]))
    (sbd / "val.txt").write_text(names[3] + "\n")
    _parent(sbd / "inst" / "2009_000000.mat").write_bytes(b"")
    tests = begins("VOCdevkit/VOC2012/JPEGImages/2010", "VOCdevkit/VOC2012/ImageSets/Segmentation/test")
    pack(to / "VOC2012test.tar", made, only=tests)
    pack(to / "VOCtrainval_11-May-2012.tar", made, only=lambda n: n.startswith("VOCdevkit/") and not tests(n))
    pack(to / "benchmark.tgz", sbd, "benchmark_RELEASE/dataset/")


def archives_of_context(made: Path, to: Path) -> None:
    """VOC 2010, whose lists are the splits, and the MATLAB files."""
    fakes.make_fake_pascal_context(made, labels="mat")
    lists = made / "VOCdevkit" / "VOC2010" / "ImageSets"
    os.replace(lists / "SegmentationContext", lists / "Main")
    pack(to / "VOCtrainval_03-May-2010.tar", made, only=begins("VOCdevkit/"))
    pack(to / "trainval.tar.gz", made, "./", begins("trainval/"))


def archives_of_context_json(made: Path, to: Path) -> None:
    """VOC 2010 without lists, and the JSON: all is bag, but the first pixel; an image of test."""
    archives_of_context(made, to)
    (to / "trainval.tar.gz").unlink()
    images, regions = [], []
    for path in sorted((made / "VOCdevkit" / "VOC2010" / "JPEGImages").iterdir()):
        with Image.open(path) as picture:
            width, height = picture.size
        i = int(path.stem.replace("_", ""))
        phase = "train" if path.stem.startswith("2008") else "val"
        images.append(
            {"image_id": i, "file_name": path.name, "height": height, "width": width, "phase": phase}
        )
        mask = np.ones((height, width), bool)
        mask[0, 0] = False
        code = {"size": [height, width], "counts": encode_rle(mask)}
        regions.append({"image_id": i, "category_id": 9, "segmentation": code, "id": i})
    images.append(images[0] | {"image_id": 1, "file_name": "test.jpg", "phase": "test"})
    (to / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": regions}))


def archives_of_10k(made: Path, to: Path) -> None:
    pack(to / "cocostuff-10k-v1.1.zip", fakes.make_fake_coco_stuff(made))


def archives_of_164k(made: Path, to: Path) -> None:
    fakes.make_fake_coco_stuff(made, release="164k")
    for split in ("train2017", "val2017"):
        pack(to / f"{split}.zip", made / "images", only=begins(split))
    pack(to / "stuffthingmaps_trainval2017.zip", made / "annotations", only=lambda n: "TrainIds" not in n)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


voc_aug = partial(pascal_voc, train="trainaug")
CASES: dict[str, tuple[str, Callable[[Path, Path], None], Callable[..., Any], dict[str, int]]] = {
    "cityscapes": ("cityscapes", archives_of_cityscapes, cityscapes, {"train": 2, "val": 2, "test": 2}),
    "ade20k": ("ade20k", archives_of_ade20k, ade20k, {"train": 2, "val": 2, "test": 2}),
    "lip": ("lip", archives_of_lip, lip, {"train": 2, "val": 2, "test": 2}),
    "lip apart": ("lip", archives_of_lip_apart, lip, {"train": 2, "val": 2, "test": 2}),
    "voc": ("pascal_voc", archives_of_voc, voc_aug, {"train": 4, "val": 2, "test": 2}),
    "context": ("pascal_context", archives_of_context, pascal_context, {"train": 2, "val": 2}),
    "context json": ("pascal_context_60", archives_of_context_json, pascal_context, {"train": 2, "val": 2}),
    "10k": ("coco_stuff", archives_of_10k, coco_stuff, {"train": 2, "val": 2}),
    "164k": (
        "coco_stuff_164k",
        archives_of_164k,
        partial(coco_stuff, release="164k"),
        {"train": 2, "val": 2},
    ),
}
