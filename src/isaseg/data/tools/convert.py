"""Labels of other formats made into PNG: MATLAB files, the run lengths of PASCAL in Detail, the masks of SBD.

A conversion is a function of the data set's folder and of the files that were not unpacked; it returns what it made.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from isaseg.data.decode import DecodeError, read_labels
from isaseg.data.info import dataset_info
from isaseg.data.parallel import Item, Result, in_threads
from isaseg.data.tools.detail import DETAIL, DetailImage, paint, read_detail
from isaseg.data.tools.unpack import whole_file
from isaseg.errors import DataError


def write_labels(path: Path, labels: np.ndarray, palette: np.ndarray | None = None) -> None:
    """Write label ids, whole numbers (H, W), as PNG: 8 bits, or 16 where an id is above 255.

    Args:
        path: The file, which appears whole or not at all.
        labels: Ids from 0 to 65535.
        palette: Colours, uint8 (K, 3) with K of at most 256, to show the ids in; ids are then at most 255.

    Raises:
        ValueError: If an id is out of range.
    """
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    if low < 0 or high > (65535 if palette is None else 255):
        raise ValueError(f"labels from {low} to {high} do not fit")
    picture = Image.fromarray(labels.astype(np.uint8 if high < 256 else np.uint16))
    if palette is not None:
        picture.putpalette(palette.tobytes())
    with whole_file(path) as file:
        picture.save(file, format="png")


def mat_to_png(
    source: Path,
    target: Path,
    variable: str,
    ids: Mapping[int, int] | None = None,
    palette: np.ndarray | None = None,
) -> None:
    """Write the label matrix of a MATLAB file as PNG.

    Args:
        source: The MATLAB file.
        target: The PNG.
        variable: The matrix; `a.b` is field b of struct a.
        ids: What is written for each id; an id that is not here is an error. None: the ids themselves.
        palette: As for `write_labels`.

    Raises:
        DataError: If the file cannot be read, or an id is unknown.
    """
    try:
        labels = read_labels(source, (), variable)
        write_labels(target, labels if ids is None else _mapped(labels, ids), palette)
    except (DecodeError, ValueError) as error:
        raise DataError(
            f"expected labels that can be converted in '{source}': {error}; fetch it again"
        ) from error


def convert_context(folder: Path, inputs: Mapping[str, Path]) -> list[Path]:
    """Make SegmentationClassContext, 0 to 59, and its lists in VOC2010, from the merged JSON, else from trainval/*.mat.

    Of the MATLAB files the splits are those of VOC2010, which are the same images.

    Raises:
        DataError: If a file is missing or damaged.
    """
    if DETAIL in inputs:
        return _convert_detail(folder, inputs[DETAIL])
    mats = folder / "trainval"
    if not mats.is_dir():
        return []
    ids = dataset_info("pascal_context_60").ids
    splits = {s: read_names(folder / "ImageSets" / "Main" / f"{s}.txt") for s in ("train", "val")}

    def convert(name: str) -> Path:
        target = _context_png(folder, name)
        mat_to_png(mats / f"{name}.mat", target, "LabelMap", ids)
        return target

    names = sorted({name for split in splits.values() for name in split})
    return _each(convert, names, "PASCAL-Context") + _context_lists(folder, splits)


def convert_coco_10k(folder: Path, inputs: Mapping[str, Path]) -> list[Path]:
    """Make annotations_png, the ids 0 to 182 as they are, from annotations/*.mat.

    Raises:
        DataError: If a file is damaged.
    """

    def convert(source: Path) -> Path:
        target = folder / "annotations_png" / f"{source.stem}.png"
        mat_to_png(source, target, "S", {i: i for i in range(183)})
        return target

    return _each(convert, sorted((folder / "annotations").glob("*.mat")), "COCO-Stuff")


def convert_sbd(folder: Path, inputs: Mapping[str, Path]) -> list[Path]:
    """Make SegmentationClassAug and trainaug.txt in VOC2012 from the files of SBD in `folder`/SBD.

    trainaug is train of VOC with train and val of SBD, without val of VOC; VOC's own masks, which mark borders, stay.

    Raises:
        DataError: If a file is missing or damaged.
    """
    sbd, lists = folder / "SBD", folder / "ImageSets" / "Segmentation"
    if not sbd.is_dir():
        return []
    train, val = set(read_names(lists / "train.txt")), set(read_names(lists / "val.txt"))
    names = sorted((train | set(read_names(sbd / "train.txt")) | set(read_names(sbd / "val.txt"))) - val)
    known = dataset_info("pascal_voc")
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(known.palette)] = known.palette

    def convert(name: str) -> list[Path]:
        mask = folder / "SegmentationClassAug" / f"{name}.png"
        if name in train:
            _copy(folder / "SegmentationClass" / f"{name}.png", mask)
        else:
            mat_to_png(sbd / "cls" / f"{name}.mat", mask, "GTcls.Segmentation", known.ids, palette)
        image = folder / "JPEGImages" / f"{name}.jpg"
        if not image.is_file():
            _copy(sbd / "img" / f"{name}.jpg", image)
        return [mask, image]

    made = [path for paths in _each(convert, names, "SBD") for path in paths]
    return [*made, _write_names(lists / "trainaug.txt", names)]


def read_names(path: Path) -> list[str]:
    """Return the names of images in a list, one a line.

    Raises:
        DataError: If there is no such list, or a line is not the name of an image.
    """
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"expected a list of images in '{path}', got {error}; unpack the archives again"
        ) from error
    strange = next((name for name in names if not re.fullmatch(r"\w+", name, re.ASCII)), None)
    if strange is not None or not names:
        raise DataError(f"expected names of images in '{path}', got {strange!r}; unpack the archives again")
    return names


def _convert_detail(folder: Path, source: Path) -> list[Path]:
    ids = dataset_info("pascal_context_60").ids
    images = read_detail(source)

    def convert(image: DetailImage) -> Path:
        target = _context_png(folder, image.name)
        try:
            write_labels(target, paint(image, ids))
        except ValueError as error:
            raise DataError(f"image {image.name} in '{source}': {error}; fetch it again") from error
        return target

    splits = {s: [image.name for image in images if image.split == s] for s in ("train", "val")}
    return _each(convert, images, "PASCAL-Context") + _context_lists(folder, splits)


def _context_png(folder: Path, name: str) -> Path:
    return folder / "SegmentationClassContext" / f"{name}.png"


def _context_lists(folder: Path, splits: Mapping[str, Iterable[str]]) -> list[Path]:
    lists = folder / "ImageSets" / "SegmentationContext"
    return [_write_names(lists / f"{split}.txt", names) for split, names in splits.items()]


def _mapped(labels: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    table: np.ndarray = np.full(65536, -1, np.int64)
    table[list(ids)] = list(ids.values())
    if labels.min(initial=0) < 0 or labels.max(initial=0) > 65535 or (table[labels] < 0).any():
        strange = sorted(set(np.unique(labels).tolist()) - set(ids))
        raise ValueError(f"expected label ids from {min(ids)} to {max(ids)}, got {strange[:5]}")
    mapped: np.ndarray = table[labels]
    return mapped


def _write_names(path: Path, names: Iterable[str]) -> Path:
    with whole_file(path) as file:
        file.write("".join(f"{name}\n" for name in sorted(names)).encode())
    return path


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as original, whole_file(target) as file:
            shutil.copyfileobj(original, file)
    except OSError as error:
        raise DataError(f"expected to copy '{source}' to '{target}', got {error}; unpack it again") from error


def _each(work: Callable[[Item], Result], items: Sequence[Item], text: str) -> list[Result]:
    with in_threads(work, items, f"converting {text}") as results:
        return list(results)
