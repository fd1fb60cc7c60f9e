"""Predicted labels as files: with the ids of a data set's own label files and its colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from isaseg.data.info import DatasetInfo, dataset_info, dataset_names, default_palette
from isaseg.errors import ConfigError
from isaseg.files import replace_file

KNOWN = dataset_names()  # data sets with ids of their own; generated sets and a user's folder have none


@dataclass(frozen=True)
class LabelFormat:
    """How the labels of a network with K classes are written.

    Attributes:
        title: Whose ids they are, for people.
        classes: Names of the K classes.
        colours: Their colours, uint8 (K, 3).
        ids: What is written for each, uint8 (K,).
        mode: Pillow's mode of the PNG: P with a palette; L, without one, for Cityscapes, as in its own files.
        flip_pairs: Classes that swap places in a mirror image.
    """

    title: str
    classes: tuple[str, ...]
    colours: np.ndarray
    ids: np.ndarray
    mode: str = "P"
    flip_pairs: tuple[tuple[int, int], ...] = ()


def own_ids(known: DatasetInfo) -> np.ndarray:
    """Return the id of each class in the data set's label files, uint8 (K,).

    If a class has several ids (PASCAL-Context's background has 401), it is the smallest. If a data set has two kinds of
    label files, they are the 8-bit ones: PASCAL-Context's SegmentationClassContext, 1 to 59, and 0 for the background.
    """
    ids = known.ids if known.png_ids is None else known.png_ids
    least: dict[int, int] = {}
    for raw, train in sorted(ids.items()):
        least.setdefault(train, raw)
    return np.array([least[train] for train in range(len(known.classes))], np.uint8)


def label_format(description: Mapping[str, Any], data: str | None = None) -> LabelFormat:
    """Return the format for a network: that of `data`, or of the data set it was trained on.

    Args:
        description: Of the network: num_classes, data, classes, palette; see `isaseg.checkpoints.loading.load_model`.
        data: An option of `data` in the configuration; None: the description's. If it is not in `KNOWN`, train ids are
            written.

    Raises:
        ConfigError: If network and data set differ in their number of classes, or the network has more than 256.
    """
    count = int(description["num_classes"])
    data = description.get("data") if data is None else data
    if data in KNOWN:
        form = known_format(data)
        if len(form.classes) != count:
            raise ConfigError(
                f"expected a network of the {len(form.classes)} classes of {form.title}, got one of {count}; give the "
                "data set it was trained on as data=NAME"
            )
        return form
    if count > 256:
        raise ConfigError(f"expected a network of at most 256 classes, as a palette holds, got {count}")
    names, palette = description.get("classes"), description.get("palette")
    classes = tuple(str(name) for name in (range(count) if names is None else names))
    colours = default_palette(classes) if palette is None else np.array(palette, np.uint8)
    return LabelFormat("the network's classes", classes, colours, np.arange(count, dtype=np.uint8))


def known_format(data: str) -> LabelFormat:
    """Return the format of a data set in `KNOWN`."""
    known = dataset_info(data)
    mode = "L" if data == "cityscapes" else "P"
    return LabelFormat(known.title, known.classes, known.palette, own_ids(known), mode, known.flip_pairs)


def write_label_file(path: Path, labels: np.ndarray, form: LabelFormat) -> None:
    """Write train ids (H, W), uint8, as an index PNG of 8 bits in the ids of `form`; whole or not at all."""
    table = np.zeros(256, np.uint8)
    table[: len(form.ids)] = form.ids
    picture = Image.fromarray(cv2.LUT(labels, table))
    if form.mode == "P":
        palette = np.zeros((256, 3), np.uint8)  # all 256, or Pillow would write fewer bits
        palette[form.ids] = form.colours
        picture.putpalette(palette.tobytes())
    with replace_file(path) as file:
        # within a tenth of the default's size on labels, in a third of its time
        picture.save(file, "PNG", compress_level=1)
