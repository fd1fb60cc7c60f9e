"""ADE20K, the scene-parsing challenge: 150 classes, splits 20210 / 2000; the test labels are not public."""

import json
from importlib.resources import files

import numpy as np

from isaseg.data.dataset import FileSource, list_files, pair_files, require_root

_FACTS = json.loads(files("isaseg.data").joinpath("classes", "ade20k.json").read_text(encoding="utf-8"))
CLASSES = tuple(_FACTS["classes"])
PALETTE = np.array(_FACTS["palette"], dtype=np.uint8)
IDS = {0: 255, **{i + 1: i for i in range(150)}}  # 0 is everything else
FOLDERS = {"train": "training", "val": "validation"}
LAYOUT = """\
  images/{training,validation}/ADE_train_00000001.jpg
  annotations/{training,validation}/ADE_train_00000001.png     (labels 0 to 150)"""


def ade20k(split: str, root: str | None) -> FileSource | None:
    """Return a split of ADE20K, None for test.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split == "test":
        return None
    folder = require_root(root, "ADE20K", split, LAYOUT)
    images = list_files(folder / "images" / FOLDERS[split], (".jpg", ".jpeg"))
    masks = list_files(folder / "annotations" / FOLDERS[split], (".png",))
    pairs = pair_files(images, masks, root, "ADE20K", split, LAYOUT)
    return FileSource("ADE20K", split, pairs, CLASSES, PALETTE, IDS)
