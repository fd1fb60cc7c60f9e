"""Make what no archive holds in a form that is read: labels of PASCAL in Detail and of SBD as PNG, and their lists.

A conversion reads the folder of the data set and the inputs that were not unpacked, and writes below another folder of
the same layout.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from isaseg.data.decode import DecodeError, read_labels
from isaseg.data.info import dataset_info
from isaseg.data.parallel import in_threads
from isaseg.data.tools.detail import DETAIL, DetailImage, Region, paint, read_detail
from isaseg.errors import DataError


def mat_to_png(source: Path, target: Path, variable: str, ids: Mapping[int, int]) -> None:
    """Write the label matrix of a MATLAB file as PNG of 8 bits: for each id what `ids` has, 0 to 255.

    `variable` is the name of the matrix, as of `read_labels`.

    Raises:
        DataError: If the file cannot be read, or an id is not in `ids`.
    """
    try:
        labels = read_labels(source, (), variable)
        if strange := sorted(set(np.unique(labels).tolist()) - ids.keys()):
            raise ValueError(f"expected label ids from {min(ids)} to {max(ids)}, got {strange[:5]}")
    except (DecodeError, ValueError) as error:
        raise DataError(
            f"expected labels that can be converted in '{source}': {error}; fetch it again"
        ) from error
    table = np.zeros(max(ids) + 1, np.uint8)
    table[list(ids)] = list(ids.values())
    Image.fromarray(table[labels]).save(_ready(target))


def convert_context(folder: Path, out: Path, inputs: Mapping[str, Path]) -> None:
    """Make the lists of PASCAL-Context, and from the merged JSON SegmentationClassContext with the ids 0 to 59.

    Without the JSON, trainval/*.mat are read as they are. They come without splits; theirs are those of VOC 2010, whose
    images are the same.

    Raises:
        DataError: If a file is missing or damaged.
    """
    if DETAIL in inputs:
        splits = _paint_detail(inputs[DETAIL], out / "SegmentationClassContext")
    elif (folder / "trainval").is_dir():
        splits = {s: _read_names(folder / "ImageSets" / "Main" / f"{s}.txt") for s in ("train", "val")}
    else:
        splits = {}
    for split, names in splits.items():
        _write_names(out / "ImageSets" / "SegmentationContext" / f"{split}.txt", names)


def _paint_detail(source: Path, out: Path) -> dict[str, list[str]]:
    """Paint all images; return their names by split."""
    ids = dataset_info("pascal_context_60").ids
    images = read_detail(source)

    def convert(entry: tuple[DetailImage, list[Region]]) -> None:
        image, regions = entry
        try:
            labels = paint(image.height, image.width, regions, ids)
        except ValueError as error:
            raise DataError(f"image {image.name} in '{source}': {error}; fetch it again") from error
        Image.fromarray(labels).save(_ready(out / f"{image.name}.png"))

    in_threads(convert, images, "converting PASCAL-Context")
    return {split: [image.name for image, _ in images if image.phase == split] for split in ("train", "val")}


def convert_sbd(folder: Path, out: Path, inputs: Mapping[str, Path]) -> None:
    """Make SegmentationClassAug and trainaug.txt in VOC2012 from the files of SBD in `folder`/SBD.

    trainaug is train of VOC with train and val of SBD, without val of VOC. VOC's own masks, which mark borders, stay.

    Raises:
        DataError: If a file is missing or damaged.
    """
    sbd, lists = folder / "SBD", Path("ImageSets", "Segmentation")
    if not sbd.is_dir():
        return
    train, val = (set(_read_names(folder / lists / f"{split}.txt")) for split in ("train", "val"))
    names = sorted((train | set(_read_names(sbd / "train.txt")) | set(_read_names(sbd / "val.txt"))) - val)
    ids = dataset_info("pascal_voc").ids

    def convert(name: str) -> None:
        mask, image = out / "SegmentationClassAug" / f"{name}.png", Path("JPEGImages", f"{name}.jpg")
        if name in train:
            shutil.copyfile(folder / "SegmentationClass" / f"{name}.png", _ready(mask))
        else:
            mat_to_png(sbd / "cls" / f"{name}.mat", mask, "GTcls.Segmentation", ids)
        if not (folder / image).is_file():
            shutil.copyfile(sbd / "img" / f"{name}.jpg", _ready(out / image))

    in_threads(convert, names, "converting SBD")
    _write_names(out / lists / "trainaug.txt", names)


def _read_names(path: Path) -> list[str]:
    names = path.read_text(encoding="utf-8", errors="replace").split()
    strange = next((name for name in names if not re.fullmatch(r"\w+", name, re.ASCII)), None)
    if strange is not None or not names:
        raise DataError(f"expected names of images in '{path}', got {strange!r}; unpack the archives again")
    return names


def _write_names(path: Path, names: Iterable[str]) -> None:
    _ready(path).write_text("".join(f"{name}\n" for name in sorted(names)), encoding="utf-8")


def _ready(path: Path) -> Path:
    """Make the folder of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
