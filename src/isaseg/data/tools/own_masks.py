"""Make a folder for `data=folder` of the user's own pictures and of masks in another form.

Masks may be images (colours, a palette, 1 to 16 bits) or what annotation tools export. All is converted in a temporary
folder in the root and moves into place when nothing is wrong.
"""

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from isaseg.data.index import IMAGE_ENDINGS, SplitFiles
from isaseg.data.info import DatasetInfo, backgrounds
from isaseg.data.parallel import in_threads
from isaseg.data.tools.annotations import read_annotations
from isaseg.data.tools.mask_values import MaskTables, mask_tables, refuse_unknown, relabel
from isaseg.data.tools.prepare import move_files
from isaseg.data.tools.shapes import Drawing, paint_shapes
from isaseg.data.upright import orientation, turns, upright
from isaseg.errors import ConfigError, DataError

_STAGING = ".converting"


@dataclass(frozen=True)
class OwnMasks:
    """What is to be converted.

    Attributes:
        images: Folder of pictures.
        masks: Folder of masks, or an export of an annotation tool, see `read_annotations`.
        root: Folder that gets images and masks.
        info: Classes, and the labels that files may have.
        palette: Colours of the classes in the masks, (K, 3); None: masks hold indices.
        ignored: Colours and names of labels that are left out.
        unannotated: Pictures without a mask: refuse, skip, or make them background.
        exif: As `data.source.exif`, see `upright.turns`.
        split: Subfolder of images and masks in the root; empty: none.
    """

    images: Path
    masks: Path
    root: Path
    info: DatasetInfo
    palette: Sequence[Sequence[int]] | None = None
    ignored: Sequence[str | Sequence[int]] = ()
    unannotated: str = "refuse"
    exif: str | None = None
    split: str = ""

    @property
    def void(self) -> int:
        """The label in files that is left out.

        Raises:
            ConfigError: If there is none.
        """
        labels = [
            raw for raw, train in self.info.ids.items() if train == self.info.ignore_index and raw < 256
        ]
        if not labels:
            raise ConfigError(
                "expected a label below 256 for what is left out, got none; give data.source.ignore=[255]"
            )
        return max(labels)

    @property
    def rest(self) -> int:
        """The label of what no annotation covers: a class that is a background by its name, or `void`."""
        return next(iter(backgrounds(self.info.classes)), self.void)


class _Done(NamedTuple):
    """Pixels of each label, (256,), unknown colours or labels with their pixels, whether the picture is turned."""

    pixels: np.ndarray
    unknown: Mapping[str, int]
    turned: bool


def convert_own(job: OwnMasks) -> list[str]:
    """Convert masks, and link or copy their pictures, into the layout of `data=folder`; return lines for people.

    Raises:
        ConfigError: If the settings do not agree.
        DataError: If pictures and masks do not belong together, a mask holds what is no class, or another file of a name
            is there already.
    """
    for key, place in (("images", job.images), ("masks", job.masks)):
        if not (place.is_dir() or (key == "masks" and place.is_file())):
            raise DataError(f"expected {key}= as a folder{' or file' * (key == 'masks')}, got '{place}'")
        if place.is_dir() and job.root.resolve().is_relative_to(place.resolve()):
            raise ConfigError(
                f"expected data.root outside of {key}='{place}', got '{job.root}'; give a new folder"
            )
    pictures = _find(job, "images", job.images)
    kind, masks = _masks(job)
    names = _paired(job, pictures, masks)
    files = [mask for mask in masks.values() if isinstance(mask, Path)]
    tables = mask_tables(job.info, job.void, job.palette, job.ignored, files)
    was_there, staging = job.root.exists(), job.root / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        work = partial(_convert, job, tables, pictures, masks)
        done = in_threads(work, names, f"converting {kind}")
        unknown = {name: result.unknown for name, result in zip(names, done, strict=True)}
        refuse_unknown(unknown, job.masks, job.info, has_palette=bool(job.palette), are_masks=bool(files))
        made = [path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()]
        _refuse_others(job.root, staging, made)
        move_files(made, staging, job.root)
    except OSError as error:
        raise DataError(
            f"expected to write below '{job.root}', got {error}; fix that and start again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not was_there and job.root.is_dir() and not any(job.root.iterdir()):
            job.root.rmdir()
    return [f"{kind}: {len(names)} pictures with masks in '{job.root}'", *_summary(job, done, len(pictures))]


def _find(job: OwnMasks, key: str, folder: Path) -> dict[str, Path]:
    return SplitFiles(job.info, "all", str(folder), key=key).find(".")


def _masks(job: OwnMasks) -> tuple[str, dict[str, Path | Drawing]]:
    """Return what the masks are, for people, and each by the name of its picture."""
    if job.masks.is_dir() and job.masks.resolve() != job.images.resolve():
        files = _find(job, "masks", job.masks)
        if files:
            return "masks", dict(files)
    if job.masks.suffix.lower() in IMAGE_ENDINGS:
        raise DataError(
            f"expected masks= as a folder of masks, got the one mask '{job.masks}'; give its folder"
        )
    kind, drawings = read_annotations(job.masks)
    named: dict[str, Path | Drawing] = {}
    for drawing in drawings:
        if drawing.name in named:
            raise DataError(
                f"expected each picture once in '{drawing.file}', got '{drawing.name}' twice; remove one"
            )
        named[drawing.name] = drawing
    return f"annotations of {kind}", named


def _paired(job: OwnMasks, pictures: Mapping[str, Path], masks: dict[str, Path | Drawing]) -> list[str]:
    """Return the names of the pictures to be written, sorted; those without a mask get an empty one if that is asked."""
    if strange := sorted(masks.keys() - pictures.keys()):
        raise DataError(
            f"expected a picture below images='{job.images}' for every mask, got none for {_listed(strange)} of "
            f"masks='{job.masks}'; give images= as the folder from which these names start"
        )
    has_rest = bool(backgrounds(job.info.classes))
    empty = [n for n, mask in masks.items() if isinstance(mask, Drawing) and not mask.shapes and not has_rest]
    lacking = sorted({*(pictures.keys() - masks.keys()), *empty})
    if lacking and job.unannotated == "refuse":
        raise DataError(
            f"expected a mask for every picture below images='{job.images}', got none for {len(lacking)}: "
            f"{_listed(lacking)}; draw them, or leave them out by unannotated=skip, or make them background by "
            "unannotated=background"
        )
    if job.unannotated == "background":
        if not has_rest:
            raise ConfigError(
                "expected a class background in data.classes for unannotated=background, got "
                f"{', '.join(job.info.classes)}"
            )
        masks.update({name: Drawing(name, None, [], job.masks) for name in lacking})
        lacking = []
    names = sorted(pictures.keys() - {*lacking})
    if not names:
        raise DataError(
            f"expected pictures with masks below images='{job.images}', got none; endings: {IMAGE_ENDINGS}"
        )
    return names


def _convert(
    job: OwnMasks,
    tables: MaskTables,
    pictures: Mapping[str, Path],
    masks: Mapping[str, Path | Drawing],
    name: str,
) -> _Done:
    """Write the mask of a picture, and the picture, into the temporary folder."""
    picture, mask = pictures[name], masks[name]
    flag, stored = orientation(picture)
    if not all(stored):
        raise DataError(
            f"expected a picture that can be read, got '{picture}'; replace it, or remove picture and mask"
        )
    unknown: dict[str, int] = {}
    if isinstance(mask, Path):
        labels, unknown = relabel(tables, mask)
        labels = labels if job.exif == "ignore" or flag == 1 else upright(labels, orientation(mask)[0])
    else:
        if other := Counter(shape.label for shape in mask.shapes if shape.label not in tables.names):
            return _Done(np.zeros(256, np.int64), other, False)
        shown = stored[::-1] if flag >= 5 and job.exif != "ignore" else stored
        width, height = mask.size or shown
        if (width, height) not in (shown, stored):
            raise DataError(
                f"expected the annotations of '{name}' in '{mask.file}' to be of the picture's size {_size(shown)}, got "
                f"{_size((width, height))}; export them again with '{picture}'"
            )
        labels = paint_shapes(mask, height, width, tables.names, job.rest)
    folder = job.root / _STAGING
    target = folder / "masks" / job.split / f"{name}.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(target)
    turned = _check_size(job, picture, mask if isinstance(mask, Path) else mask.file, target)
    copied = folder / "images" / job.split / picture.relative_to(job.images.resolve())
    copied.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(picture.resolve(), copied)
    except OSError:  # on another file system
        shutil.copy2(picture, copied)
    return _Done(np.bincount(labels.ravel(), minlength=256), unknown, turned)


def _check_size(job: OwnMasks, picture: Path, mask: Path, written: Path) -> bool:
    """Return whether the picture is turned by its EXIF flag; raise a DataError if the written mask does not fit it."""
    found = turns(picture, written, job.exif)
    if found is None:
        raise DataError(
            f"expected a picture whose mask fits in one way, got EXIF orientation {orientation(picture)[0]}, which keeps "
            f"the size, in '{picture}'; give data.source.exif=apply, here and in training, if the masks were drawn on "
            "upright pictures, as annotation tools show them, data.source.exif=ignore if on the pixels as stored"
        )
    (width, height), (w, h) = orientation(picture)[1], orientation(written)[1]
    size = (height, width) if found[0] >= 5 else (width, height)
    if size != ((h, w) if found[1] >= 5 else (w, h)):
        raise DataError(
            f"expected a mask of {_size(size)}, as '{picture}' is, got {_size((w, h))} in '{mask}'; draw it anew"
        )
    return found[0] != 1


def _refuse_others(root: Path, staging: Path, files: Iterable[str]) -> None:
    others = [
        path
        for path in files
        if (root / path).exists()
        and not (root / path).samefile(staging / path)
        and not filecmp.cmp(root / path, staging / path, shallow=False)
    ]
    if others:
        raise DataError(
            f"expected no other files of these names in data.root='{root}', got {_listed(sorted(others))}; give a new "
            "folder as data.root, or remove them"
        )


def _summary(job: OwnMasks, done: Sequence[_Done], pictures: int) -> Iterable[str]:
    if len(done) < pictures:
        yield f"left out: {pictures - len(done)} pictures without a mask"
    if turned := sum(result.turned for result in done):
        yield f"turned by their EXIF flag when they are read: {turned} pictures"
    pixels = sum((result.pixels for result in done), np.zeros(256, np.int64))
    classes = job.info.classes
    shares = [*zip(classes, pixels, strict=False), ("ignored", pixels[len(classes) :].sum())]
    yield "pixels: " + ", ".join(f"{name} {100 * count / pixels.sum():.2f} %" for name, count in shares)
    if absent := [name for name, count in shares[:-1] if not count]:
        yield f"classes that never occur: {', '.join(absent)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
