"""CamVid in the layout of the SegNet tutorial: 11 classes, 480x360, splits 367 / 101 / 233."""

import numpy as np

from isaseg.data.dataset import FileSource, list_files, pair_files, require_root
from isaseg.errors import ConfigError

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
PALETTE = np.array(
    [
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ],
    dtype=np.uint8,
)
IDS = {**{i: i for i in range(11)}, 11: 255}  # 11 is unlabelled
LAYOUT = """\
  train/NAME.png       trainannot/NAME.png     (images may be .jpg; labels 0 to 11)
  val/NAME.png         valannot/NAME.png
  test/NAME.png        testannot/NAME.png"""


def camvid(split: str, root: str | None) -> FileSource:
    """Return a split of CamVid; images and labels are paired by file name, list files are not needed.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split not in ("train", "val", "test"):
        raise ConfigError(f"expected a split of train, val, test, got {split=}")
    folder = require_root(root, "CamVid", split, LAYOUT)
    images, masks = list_files(folder / split), list_files(folder / f"{split}annot", (".png",))
    pairs = pair_files(images, masks, root, "CamVid", split, LAYOUT)
    return FileSource("CamVid", split, pairs, CLASSES, PALETTE, IDS)
