"""Cityscapes, fine annotations: 19 classes of the 34 label ids, splits 2975 / 500; the test labels are not public."""

import numpy as np

from isaseg.data.dataset import FileSource, list_files, pair_files, require_root

# Name, label id in the files, colour; in the order of the train ids.
_CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
CLASSES = tuple(name for name, _, _ in _CLASSES)
PALETTE = np.array([colour for _, _, colour in _CLASSES], dtype=np.uint8)
IDS = {**dict.fromkeys(range(34), 255), **{label: train for train, (_, label, _) in enumerate(_CLASSES)}}
LAYOUT = """\
  leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
  gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png     (labels 0 to 33)"""


def cityscapes(split: str, root: str | None) -> FileSource | None:
    """Return a split of Cityscapes, None for test.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split == "test":
        return None
    folder = require_root(root, "Cityscapes", split, LAYOUT)
    images = list_files(folder / "leftImg8bit" / split, (".png",), "_leftImg8bit")
    masks = list_files(folder / "gtFine" / split, (".png",), "_gtFine_labelIds")
    pairs = pair_files(images, masks, root, "Cityscapes", split, LAYOUT)
    return FileSource("Cityscapes", split, pairs, CLASSES, PALETTE, IDS)
