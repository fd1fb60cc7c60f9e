"""Facts of all data sets: every raw id against its train id, written down here a second time, and as published."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.index import Pair
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource
from isaseg.errors import DataError
from tests.fakes import labels_of

SPEC = Path(__file__).parents[2].parent / "shared" / "spec" / "classes"

CITYSCAPES = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
CONTEXT = [
    *(
        2,
        9,
        18,
        19,
        22,
        23,
        25,
        31,
        33,
        34,
        44,
        45,
        46,
        59,
        65,
        68,
        72,
        80,
        85,
        98,
        104,
        105,
        113,
        115,
        144,
        158,
    ),
    *(
        159,
        162,
        187,
        189,
        207,
        220,
        232,
        258,
        259,
        260,
        284,
        295,
        296,
        308,
        324,
        326,
        347,
        349,
        354,
        355,
        360,
    ),
    *(366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
]
COCO_ABSENT = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO = [i for i in range(1, 183) if i not in COCO_ABSENT]


@dataclass(frozen=True)
class Table:
    """Which raw ids there are, what they mean, and how the files are written."""

    name: str
    raw: list[int]
    rule: Callable[[int], int]
    classes: int
    splits: Mapping[str, int]
    ending: str = "png"
    converted: bool = False  # the table of `png_ids`
    spec: str | None = None


CONTEXT_SIZES = {"train": 4998, "val": 5105}
TABLES = [
    Table(
        "cityscapes",
        list(range(34)),
        lambda i: CITYSCAPES.index(i) if i in CITYSCAPES else 255,
        19,
        {"train": 2975, "val": 500, "test": 1525},
    ),
    Table(
        "ade20k",
        list(range(151)),
        lambda i: i - 1 if i else 255,
        150,
        {"train": 20210, "val": 2000, "test": 3352},
    ),
    Table(
        "camvid",
        list(range(12)),
        lambda i: i if i < 11 else 255,
        11,
        {"train": 367, "val": 101, "test": 233},
        spec="",
    ),
    Table("lip", list(range(20)), lambda i: i, 20, {"train": 30462, "val": 10000, "test": 10000}),
    Table(
        "pascal_voc",
        [*range(21), 255],
        lambda i: i,
        21,
        {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456, "trainaug": 10582},
        spec="pascal_voc2012",
    ),
    Table(
        "pascal_context",
        list(range(460)),
        lambda i: CONTEXT.index(i) if i in CONTEXT else 255,
        59,
        CONTEXT_SIZES,
        ending="mat",
    ),
    Table(
        "pascal_context", list(range(60)), lambda i: i - 1 if i else 255, 59, CONTEXT_SIZES, converted=True
    ),
    Table(
        "pascal_context_60",
        list(range(460)),
        lambda i: CONTEXT.index(i) + 1 if i in CONTEXT else 0,
        60,
        CONTEXT_SIZES,
        ending="mat",
    ),
    Table("pascal_context_60", list(range(60)), lambda i: i, 60, CONTEXT_SIZES, converted=True),
    Table(
        "coco_stuff",
        [0, *COCO],
        lambda i: COCO.index(i) if i else 255,
        171,
        {"train": 9000, "val": 1000},
        ending="mat",
    ),
    Table(
        "coco_stuff_164k",
        [*(i - 1 for i in COCO), 255],
        lambda i: COCO.index(i + 1) if i < 255 else 255,
        171,
        {"train": 118287, "val": 5000},
    ),
]
every_table = pytest.mark.parametrize("table", TABLES, ids=lambda t: f"{t.name}{'_png' * t.converted}")


class OneMask:
    """A data set of one pair whose labels are what the test says."""

    def __init__(self, folder: Path, table: Table) -> None:
        self.folder, self.table, self.facts = folder, table, dataset_info(table.name)

    def source(self, labels: np.ndarray, colours: list[int] | None = None) -> FileSource:
        labels = np.atleast_2d(labels)
        image, mask = self.folder / "image.png", self.folder / f"mask.{self.table.ending}"
        Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(image)
        if self.table.ending == "mat":
            scipy.io.savemat(mask, {"labels": labels})
        else:
            picture = Image.fromarray(labels)
            if colours is not None:
                picture.putpalette(colours)
            picture.save(mask)
        modes = ("L", "P", "I;16")
        ids = self.facts.png_ids if self.table.converted else self.facts.ids
        return FileSource(self.facts, "val", [Pair("it", image, mask)], modes, "labels", ids)


@every_table
def test_d7_every_raw_id_becomes_its_train_id(tmp_path: Path, table: Table) -> None:
    one = OneMask(tmp_path, table)
    dtypes = (np.uint8, np.uint16) if max(table.raw) < 256 else (np.uint16, np.int16)
    for dtype in dtypes:
        mask = labels_of(one.source(np.array(table.raw, dtype)), 0)
        assert mask.dtype == np.uint8
        assert mask[0].tolist() == [table.rule(i) for i in table.raw]
    assert set(mask[0].tolist()) - {255} == set(range(table.classes))  # no class without an id
    assert one.facts.ignore_index == 255


@every_table
def test_d5_every_other_id_is_refused(tmp_path: Path, table: Table) -> None:
    one = OneMask(tmp_path, table)
    for value in set(range(256)) - set(table.raw):
        with pytest.raises(
            DataError, match=rf"got the id {value} in 1 pixels of mask='.*/mask\.{table.ending}'"
        ):
            labels_of(one.source(np.array([table.raw[0], value, table.raw[-1]], np.uint8)), 0)
    wide = {300, 460, 2**15 - 1} - set(table.raw)
    for value, dtype in [*((v, np.uint16) for v in wide), *((v, np.int16) for v in wide | {-1, -256})]:
        if value < 0 and table.ending == "png":
            continue
        with pytest.raises(DataError, match=rf"got the id {value} in 1 pixels"):
            labels_of(
                one.source(np.array([table.raw[0], value], dtype if table.ending == "mat" else np.uint16)), 0
            )


@every_table
def test_labels_are_never_decoded_from_colours(tmp_path: Path, table: Table) -> None:
    if table.ending == "mat":
        return
    one = OneMask(tmp_path, table)
    labels = np.array(table.raw, np.uint8)
    grey = [c for i in range(256) for c in (i, i, i)]
    for colours in (grey, grey[::-1], [0] * 768, one.facts.palette.flatten().tolist()):
        mask = labels_of(one.source(labels, colours), 0)
        assert mask[0].tolist() == [table.rule(i) for i in table.raw]


@every_table
def test_names_colours_and_sizes(table: Table) -> None:
    known = dataset_info(table.name)
    assert len(set(known.classes)) == len(known.classes) == table.classes
    assert known.palette.shape == (table.classes, 3)
    assert known.palette.dtype == np.uint8
    assert not 0 <= known.ignore_index < table.classes
    assert {split: known.splits[split] for split in table.splits} == table.splits
    assert known.title
    assert known.layout.startswith("  ")


def test_only_lip_swaps_classes_in_a_mirror() -> None:
    pairs = {table.name: dataset_info(table.name).flip_pairs for table in TABLES}
    assert pairs.pop("lip") == ((14, 15), (16, 17), (18, 19))
    assert not any(pairs.values())


def test_an_ignored_id_is_never_a_class(tmp_path: Path) -> None:
    table = TABLES[3]
    known = dataset_info(table.name)
    pairs = [Pair("it", tmp_path / "image.png", None)]
    for ids, told in (({0: 20}, r"got \[20\]"), ({0: -1}, r"got \[-1\]")):
        with pytest.raises(DataError, match=told):
            FileSource(known, "val", pairs, ids=ids)


@every_table
def test_as_collected(table: Table) -> None:
    path = SPEC / f"{table.spec or table.name}.json"
    if table.spec == "" or not path.is_file():
        pytest.skip("not collected here")
    collected: dict[str, Any] = json.loads(path.read_text())
    known = dataset_info(table.name)
    key = "converted_png_id_map" if table.converted else "id_map"
    if table.converted and key not in collected:
        pytest.skip("this table is not in the collection")
    expected = {int(i): train for i, train in collected[key].items()}
    default = None if table.converted else collected.get("id_map_default")
    expected = {
        i: expected.get(i, default) for i in ([*range(460)] if default is not None else expected) if i >= 0
    }
    assert (known.png_ids if table.converted else known.ids) == expected
    assert list(known.classes) == collected["class_names"]
    assert known.palette.tolist() == collected["palette"]
    assert known.splits == collected["splits"]
    assert [list(pair) for pair in known.flip_pairs] == collected.get("flip_pairs", [])
    assert known.ignore_index == collected["ignore_index"]
