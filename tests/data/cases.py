"""Every data set in files: how it is loaded, a fake of it, where real samples are, and its ids written down again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.sets.ade20k import ade20k
from isaseg.data.sets.camvid import camvid
from isaseg.data.sets.cityscapes import cityscapes
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.sets.folder import folder
from isaseg.data.sets.lip import lip
from isaseg.data.sets.pascal_context import pascal_context
from isaseg.data.sets.pascal_voc import pascal_voc
from isaseg.data.source import FileSource
from tests import fakes

SHARED = Path(__file__).parents[2].parent / "shared"
CITYSCAPES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CONTEXT = [
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
]  # fmt: skip
COCO = [i for i in range(1, 183) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)]


@dataclass(frozen=True)
class Table:
    """The raw ids of a data set's label files, the train id of each, and the published sizes.

    `spec` is its name in the collection of published facts, None if it is not there.
    """

    name: str
    raw: Sequence[int]
    rule: Callable[[int], int]
    classes: int
    splits: Mapping[str, int]
    matlab: bool = False
    converted: bool = False  # the table of `png_ids`
    spec: str | None = None

    def __str__(self) -> str:
        return f"{self.name}{'_png' * self.converted}"


def first_ignored(raw: int) -> int:
    return raw - 1 if raw else 255


def same(raw: int) -> int:
    return raw


_CONTEXT_SIZES = {"train": 4998, "val": 5105}
_VOC_SIZES = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "trainaug": 10582}
TABLES = [
    Table("cityscapes", range(34), lambda i: CITYSCAPES.index(i) if i in CITYSCAPES else 255, 19,
          {"train": 2975, "val": 500, "test": 1525}, spec="cityscapes"),
    Table("ade20k", range(151), first_ignored, 150, {"train": 20210, "val": 2000, "test": 3352}, spec="ade20k"),
    Table("camvid", range(12), lambda i: i if i < 11 else 255, 11, {"train": 367, "val": 101, "test": 233}),
    Table("lip", range(20), same, 20, {"train": 30462, "val": 10000, "test": 10000}, spec="lip"),
    Table("pascal_voc", [*range(21), 255], same, 21, _VOC_SIZES, spec="pascal_voc2012"),
    Table("pascal_context", range(460), lambda i: CONTEXT.index(i) if i in CONTEXT else 255, 59, _CONTEXT_SIZES,
          matlab=True, spec="pascal_context"),
    Table("pascal_context", range(60), first_ignored, 59, _CONTEXT_SIZES, converted=True, spec="pascal_context"),
    Table("pascal_context_60", range(460), lambda i: CONTEXT.index(i) + 1 if i in CONTEXT else 0, 60,
          _CONTEXT_SIZES, matlab=True, spec="pascal_context_60"),
    Table("pascal_context_60", range(60), same, 60, _CONTEXT_SIZES, converted=True, spec="pascal_context_60"),
    Table("coco_stuff", [0, *COCO], lambda i: COCO.index(i) if i else 255, 171, {"train": 9000, "val": 1000},
          matlab=True, spec="coco_stuff_10k"),
    Table("coco_stuff_164k", [*(i - 1 for i in COCO), 255], lambda i: COCO.index(i + 1) if i < 255 else 255, 171,
          {"train": 118287, "val": 5000}, spec="coco_stuff_164k"),
]  # fmt: skip
_RULES = {str(table): table.rule for table in TABLES}


@dataclass(frozen=True)
class Case:
    """A data set: its source, a fake of it, where real samples of it are, an id that it has not, the rule of ids."""

    name: str
    source: Callable[..., FileSource | None]
    fake: Callable[..., Path]
    real: str | None = None
    wrong_id: int = 254
    rule: Callable[[int], int] = same

    def __str__(self) -> str:
        return self.name

    def load(self, root: Path, split: str = "train") -> FileSource:
        source = self.source(split=split, root=str(root))
        assert source is not None
        return source


_folder = partial(folder, classes=["a", "b", "c"])
CASES = [
    Case("ade20k", ade20k, fakes.make_fake_ade20k, "ade20k/ADEChallengeData2016", 151, first_ignored),
    Case("camvid", camvid, fakes.make_fake_camvid, "camvid/CamVid", 12, _RULES["camvid"]),
    Case("cityscapes", cityscapes, fakes.make_fake_cityscapes, "cityscapes", 34, _RULES["cityscapes"]),
    Case("coco_stuff", coco_stuff, fakes.make_fake_coco_stuff, "coco_stuff10k", 12, _RULES["coco_stuff"]),
    Case("coco_stuff_164k", partial(coco_stuff, release="164k"),
         partial(fakes.make_fake_coco_stuff, release="164k"), "coco_stuff164k", 182, _RULES["coco_stuff_164k"]),
    Case("folder", _folder, fakes.make_fake_folder, None, 3),
    Case("folder16", _folder, partial(fakes.make_fake_folder, deep=True), None, 258),
    Case("lip", lip, fakes.make_fake_lip, "lip", 20),
    Case("lip_flat", lip, partial(fakes.make_fake_lip, flat=True), None, 20),
    Case("pascal_context", pascal_context, fakes.make_fake_pascal_context, "pascal_context", 60, first_ignored),
    Case("pascal_context_mat", pascal_context, partial(fakes.make_fake_pascal_context, labels="mat"), None, 460,
         _RULES["pascal_context"]),
    Case("pascal_context_60", partial(pascal_context, background=True), fakes.make_fake_pascal_context, None, 60),
    Case("pascal_context_60_mat", partial(pascal_context, background=True),
         partial(fakes.make_fake_pascal_context, labels="mat"), None, 460, _RULES["pascal_context_60"]),
    Case("pascal_voc", pascal_voc, fakes.make_fake_pascal_voc, "voc2012", 21),
    Case("pascal_voc_sbd", partial(pascal_voc, train="trainaug"), fakes.make_fake_pascal_voc, "voc2012", 21),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def mask_of(source: FileSource, index: int = 0) -> Path:
    mask = source.pairs[index].mask
    assert mask is not None
    return mask


def raw_labels(path: Path) -> np.ndarray:
    """Return the labels of a file as they are in it."""
    if path.suffix == ".mat":
        content = scipy.io.loadmat(path)
        return np.asarray(content["S"] if "S" in content else content["LabelMap"])
    with Image.open(path) as picture:
        return np.asarray(picture)
