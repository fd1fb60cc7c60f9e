"""A user's own data set: images and label images in two folders, class names in the configuration."""

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from isaseg.data.index import JPEG, SplitFiles
from isaseg.data.info import DatasetInfo, Remedies, as_palette, default_palette
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError, DataError

log = logging.getLogger(__name__)

LAYOUT = """\
  images/{train,val,test}/NAME.jpg     (or .png, ...; test may be absent)
  masks/{train,val,test}/NAME.png      (labels 0 to K - 1 and 255)
or, for a random split, images/NAME.jpg and masks/NAME.png, or train alone"""
SHARE = 0.2  # for validation, where data.split is null
_CONVERT = (
    "convert it by `python src/data.py prepare data=folder images=... masks=... data.root=NEW`, "
    "see docs/your-own-data.md"
)
_REMEDIES = Remedies(
    file="replace it, or remove image and mask",
    mask=_CONVERT,
    sizes="save both in one size; EXIF orientation is applied as data.source.exif says",
    ids="correct the mask or data.classes, or name the label in data.source.ignore",
)

Files = tuple[dict[str, Path], dict[str, Path]]  # images and masks by name


def folder(
    split: str,
    root: str | None,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None,
    ignore: Sequence[int] = (255,),
    ignore_index: int = 255,
    exif: Literal["apply", "ignore"] | None = None,
    share: float | None = None,
) -> FileSource | None:
    """Return a split of a folder; None for test where it has no files.

    Args:
        split: train, val or test.
        root: Folder that holds images and masks.
        classes: Names; label i in the masks is class i.
        palette: One RGB triple for each class; None: black for a background, different hues.
        ignore: Labels in the masks that are left out.
        ignore_index: Train id for them.
        exif: What EXIF orientation turns, see `upright.turns`.
        share: Of the images that are for validation, where there is no val; None: `SHARE`.

    Raises:
        ConfigError: If names, colours and ignored labels do not agree, or there is both val and `share`.
        DataError: If the data are absent or incomplete, masks are no index images, or are too few for `share`.
    """
    info = folder_info(classes, palette, ignore, ignore_index)
    files = SplitFiles(info, split, root)
    images, masks = _find(files, split, share)
    if split == "test" and not masks:
        return FileSource(info, split, files.pairs(images, None), exif=exif) if images else None
    _check_masks(files, images, masks)
    return FileSource(info, split, files.pairs(images, masks), modes=("L", "P", "I;16"), exif=exif)


def folder_info(
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None,
    ignore: Sequence[int] = (255,),
    ignore_index: int = 255,
) -> DatasetInfo:
    """Return what is known about a folder, with the arguments of `folder`.

    Raises:
        ConfigError: If names, colours and ignored labels do not agree.
    """
    if not isinstance(classes, list | tuple) or len({str(c) for c in classes}) != max(len(classes), 1):
        raise ConfigError(f"expected data.classes as different names, got {classes}; write [sky,ground]")
    classes = [str(c) for c in classes]  # YAML reads [0,1] as numbers
    strange = sorted(set(ignore) - set(range(len(classes), 2**16)), key=str)
    if strange:
        raise ConfigError(
            f"expected labels from {len(classes)}, the first that is no class, to 65535 in data.source.ignore, got "
            f"{strange}"
        )
    colours = (
        default_palette(classes)
        if palette is None
        else as_palette(palette, len(classes), "data.source.palette")
    )
    ids = {**{i: i for i in range(len(classes))}, **dict.fromkeys(ignore, ignore_index)}
    return DatasetInfo(
        "own images", tuple(classes), colours, ids, ignore_index, layout=LAYOUT, remedies=_REMEDIES
    )


def _find(files: SplitFiles, split: str, share: float | None) -> Files:
    """Return the images and masks of a split; where there is no val, it is a share of train, or of all that there is."""

    def both(place: str) -> Files:
        return files.find(f"images{place}"), files.find(f"masks{place}")

    if split == "test":
        return both("/test")
    if split == "train":
        _refuse_strays(both(""), files)
    val = both("/val")
    if any(val):
        if share is not None:
            raise ConfigError(
                f"expected no data.split where there is images/val, got data.split={share}; leave it out, or move the "
                "files of images/val and masks/val to train"
            )
        return val if split == "val" else both("/train")
    found = both("/train")
    if not any(found):
        images, masks = ({n: p for n, p in part.items() if not n.startswith("test/")} for part in both(""))
        found = images, masks
    every = sorted(found[0].keys() | found[1].keys())
    names = _of_split(every, split, share or SHARE)
    if split == "val" and names:
        _announce(files.root, len(names), len(every), share or SHARE)
    images, masks = ({name: part[name] for name in names if name in part} for part in found)
    return images, masks


def _refuse_strays(found: Files, files: SplitFiles) -> None:
    """Raise a DataError if there are images or masks beside the folders of the splits, which nothing would read."""
    if not any((files.folder / part / s).is_dir() for part in ("images", "masks") for s in ("train", "val")):
        return
    parts = ("train/", "val/", "test/")
    strays = [str(path) for part in found for name, path in part.items() if not name.startswith(parts)]
    if strays:
        raise DataError(
            f"expected all images and masks in the folders train, val and test, since data.root='{files.root}' has some "
            f"of these, got {len(strays)} elsewhere, e.g. '{strays[0]}'; move them to train, or remove them"
        )


def _of_split(names: Sequence[str], split: str, share: float) -> list[str]:
    """Return the names of train or val: in val are those whose hash is below a share of all hashes.

    So a name stays where it is when others come and go.

    Raises:
        DataError: If one of both would be empty.
    """
    if not names:
        return []
    places = {n: int.from_bytes(hashlib.sha256(os.fsencode(n)).digest()[:8]) / 2**64 for n in names}
    val = [name for name in names if places[name] < share]
    if not 0 < len(val) < len(names):
        ends = sorted(places.values())[:2] if not val else sorted(places.values())[-2:]
        advice = f"data.split={sum(ends) / 2:.3g} moves one" if len(names) > 1 else "add images"
        raise DataError(
            f"expected data.split to leave images for train and for val, got {len(val)} of {len(names)} in val with "
            f"data.split={share}; {advice}, or make images/val and masks/val"
        )
    return val if split == "val" else [name for name in names if places[name] >= share]


@cache  # once, however often a split is looked for
def _announce(root: Path, val: int, count: int, share: float) -> None:
    text = "no images/val: %s of %s images, chosen by their names, are for validation; data.split=%s"
    log.info(text, val, count, share)


def _check_masks(files: SplitFiles, images: dict[str, Path], masks: dict[str, Path]) -> None:
    """Refuse masks that are JPEG, and annotations in the place of masks."""
    for path in masks.values():
        if path.suffix.lower() in JPEG:
            raise DataError(
                f"expected masks as PNG, got '{path}': JPEG changes labels; save it as PNG from where it was drawn"
            )
    if images.keys() - masks.keys():
        for path in (*files.find("", (".json",)).values(), *files.find("", (".xml",)).values()):
            raise DataError(f"expected a mask for every image, got the annotations '{path}'; {_CONVERT}")
