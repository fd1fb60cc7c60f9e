"""What is known about a data set, from classes/NAME.json: class names, colours, label ids, split sizes, layout.

NAME is the name of the option in conf/data.
"""

import colorsys
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from isaseg.errors import ConfigError

# Names by which people call what belongs to no class, LabelMe's among them
_BACKGROUND = ("background", "_background_", "bg", "unlabelled", "unlabeled")


@dataclass(frozen=True)
class Remedies:
    """What messages advise.

    Attributes:
        file: For a file that cannot be read.
        mask: For a mask that does not hold indices.
        sizes: For an image and a mask of different sizes.
        ids: For an id that is not in the table.
    """

    file: str = "replace it with the file of the archive"
    mask: str = file
    sizes: str = "EXIF orientation is not applied: take the files of the official archive, or save image and mask upright"
    ids: str = "fix the file or the id table"


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about one data set.

    Attributes:
        title: The name that messages use.
        classes: Names of the K classes, in the order of the train ids.
        palette: Colours, uint8 (K, 3). They need not differ: labels are never decoded from colours.
        ids: Raw id in the label files to train id. An id that is missing here is an error.
        ignore_index: Train id that the loss and the scores leave out.
        flip_pairs: Classes that change places in a mirror image.
        splits: Published number of images of each split.
        layout: Where the files are below the root, for messages.
        png_ids: Like `ids`, for labels converted to PNG where the original label files are MATLAB files.
        remedies: What messages advise.
    """

    title: str
    classes: tuple[str, ...]
    palette: np.ndarray
    ids: Mapping[int, int]
    ignore_index: int = 255
    flip_pairs: tuple[tuple[int, int], ...] = ()
    splits: Mapping[str, int] = field(default_factory=dict)
    layout: str = ""
    png_ids: Mapping[int, int] | None = None
    remedies: Remedies = Remedies()


def dataset_info(name: str) -> DatasetInfo:
    """Return what classes/`name`.json holds."""
    raw = json.loads((files("isaseg.data") / "classes" / f"{name}.json").read_text(encoding="utf-8"))
    for key in {"ids", "png_ids"} & raw.keys():
        raw[key] = {int(label): train for label, train in raw[key].items()}  # JSON's keys are text
    return DatasetInfo(
        **{
            **raw,
            "classes": tuple(raw["classes"]),
            "palette": np.array(raw["palette"], np.uint8),
            "flip_pairs": tuple((a, b) for a, b in raw.get("flip_pairs", ())),
            "layout": "\n".join(f"  {line}" for line in raw["layout"]),
        }
    )


def dataset_names() -> tuple[str, ...]:
    """Return the names that `dataset_info` knows, sorted."""
    folder = files("isaseg.data") / "classes"
    return tuple(sorted(path.name.removesuffix(".json") for path in folder.iterdir()))


def backgrounds(classes: Sequence[str]) -> list[int]:
    """Return the classes that are a background by their names; pictures of labels leave them without a colour."""
    return [number for number, name in enumerate(classes) if name.lower() in _BACKGROUND]


def default_palette(classes: Sequence[str]) -> np.ndarray:
    """Return colours for K classes that have none, uint8 (K, 3): black for a background."""
    count = len(classes)
    # the golden ratio spreads the hues, however many there are
    hsv = [((0.61803 * i) % 1, 0.75 - 0.25 * (i % 2), 0.95 - 0.2 * (i % 3)) for i in range(count)]
    palette = np.array([[round(255 * c) for c in colorsys.hsv_to_rgb(*colour)] for colour in hsv], np.uint8)
    palette[backgrounds(classes)] = 0
    return palette


def as_palette(colours: Any, num_classes: int, key: str) -> np.ndarray:
    """Return colours, in any form, as uint8 (K, 3).

    Raises:
        ConfigError: If they are not K triples of integers from 0 to 255; the message begins with `key`.
    """
    try:
        palette = np.asarray(colours)
    except ValueError:  # rows of different lengths
        palette = np.empty(0)
    if (
        palette.shape != (num_classes, 3)
        or palette.dtype.kind not in "iu"
        or ((palette < 0) | (palette > 255)).any()
    ):
        raise ConfigError(
            f"expected {key} as one RGB triple of 0 to 255 for each of {num_classes} classes, got {colours}"
        )
    return palette.astype(np.uint8)
