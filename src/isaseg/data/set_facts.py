"""What is known of a data set: class names, colours, label ids, split sizes, layout; from classes/*.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files

import numpy as np


@dataclass(frozen=True)
class Facts:
    """Facts of one data set.

    Attributes:
        title: Its name, for people.
        classes: Names of the K classes, in the order of the train ids.
        palette: Colours, uint8 (K, 3); not always K different ones: labels are never decoded from colours.
        ids: Raw id in the label files to train id; every id that is not here is an error.
        ignore_index: Train id that is left out.
        flip_pairs: Classes that change places in a mirror.
        splits: Published number of images of each split.
        layout: Where the files are below the root, for people.
        png_ids: Like `ids`, of converted PNG labels where the raw ids are those of another format.
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


def facts(name: str) -> Facts:
    """Read classes/<name>.json."""
    text = files("isaseg.data").joinpath("classes", f"{name}.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    png_ids = raw.get("png_ids")
    return Facts(
        title=raw["title"],
        classes=tuple(raw["classes"]),
        palette=np.array(raw["palette"], np.uint8),
        ids=_ids(raw["ids"]),
        ignore_index=raw["ignore_index"],
        flip_pairs=tuple((a, b) for a, b in raw.get("flip_pairs", ())),
        splits=raw["splits"],
        layout="\n".join(f"  {line}" for line in raw["layout"]),
        png_ids=None if png_ids is None else _ids(png_ids),
    )


def _ids(raw: Mapping[str, int]) -> dict[int, int]:
    return {int(label): train for label, train in raw.items()}
