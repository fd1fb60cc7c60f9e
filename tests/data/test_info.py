"""What is known about the data sets: every raw id against its train id, written down a second time, and as published."""

import json
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
from tests.data.cases import SHARED, TABLES, Table
from tests.fakes import labels_of

every_table = pytest.mark.parametrize("table", TABLES, ids=str)


class OneMask:
    """A data set of one pair whose labels are what the test says."""

    def __init__(self, folder: Path, table: Table) -> None:
        self.folder, self.table, self.info = folder, table, dataset_info(table.name)

    def source(self, labels: np.ndarray, colours: list[int] | None = None) -> FileSource:
        labels = np.atleast_2d(labels)
        image, mask = self.folder / "image.png", self.folder / f"mask.{'mat' if self.table.matlab else 'png'}"
        Image.fromarray(np.zeros((*labels.shape, 3), np.uint8)).save(image)
        if self.table.matlab:
            scipy.io.savemat(mask, {"labels": labels})
        else:
            picture = Image.fromarray(labels)
            if colours is not None:
                picture.putpalette(colours)
            picture.save(mask)
        ids = self.info.png_ids if self.table.converted else self.info.ids
        return FileSource(self.info, "val", [Pair("it", image, mask)], ("L", "P", "I;16"), "labels", ids)


@every_table
def test_d7_every_raw_id_becomes_its_train_id(tmp_path: Path, table: Table) -> None:
    one = OneMask(tmp_path, table)
    dtypes = (np.uint8, np.uint16) if max(table.raw) < 256 else (np.uint16, np.int16)
    for dtype in dtypes:
        mask = labels_of(one.source(np.array(table.raw, dtype)), 0)
        assert mask.dtype == np.uint8
        assert mask[0].tolist() == [table.rule(i) for i in table.raw]
    assert len(one.info.classes) == table.classes
    assert {split: one.info.splits[split] for split in table.splits} == table.splits


@every_table
def test_d5_every_other_id_is_refused(tmp_path: Path, table: Table) -> None:
    one = OneMask(tmp_path, table)
    for value in set(range(256)) - set(table.raw):
        with pytest.raises(DataError, match=rf"got the id {value} in 1 pixels of mask='.*/mask\....'"):
            labels_of(one.source(np.array([table.raw[0], value, table.raw[-1]], np.uint8)), 0)
    wide = {300, 460, 2**15 - 1} - set(table.raw)
    for value, dtype in [*((v, np.uint16) for v in wide), *((v, np.int16) for v in wide | {-1, -256})]:
        if value < 0 and not table.matlab:
            continue
        with pytest.raises(DataError, match=rf"got the id {value} in 1 pixels"):
            labels_of(one.source(np.array([table.raw[0], value], dtype if table.matlab else np.uint16)), 0)


@pytest.mark.parametrize("table", [table for table in TABLES if not table.matlab], ids=str)
def test_labels_are_never_decoded_from_colours(tmp_path: Path, table: Table) -> None:
    one = OneMask(tmp_path, table)
    labels = np.array(table.raw, np.uint8)
    grey = [c for i in range(256) for c in (i, i, i)]
    for colours in (grey, grey[::-1], [0] * 768, one.info.palette.flatten().tolist()):
        mask = labels_of(one.source(labels, colours), 0)
        assert mask[0].tolist() == [table.rule(i) for i in table.raw]


def test_classes_and_colours_of_camvid() -> None:
    """Those of the others are compared with a collection, see `test_as_collected`."""
    info = dataset_info("camvid")
    assert info.classes[0] == "sky" and info.palette[3].tolist() == [128, 64, 128]


def test_only_lip_swaps_classes_in_a_mirror() -> None:
    infos = {table.name: dataset_info(table.name) for table in TABLES}
    lip = infos.pop("lip")
    pairs = [(lip.classes[a], lip.classes[b]) for a, b in lip.flip_pairs]
    assert pairs == [("Left-arm", "Right-arm"), ("Left-leg", "Right-leg"), ("Left-shoe", "Right-shoe")]
    assert not any(info.flip_pairs for info in infos.values())


@every_table
def test_as_collected(table: Table) -> None:
    path = SHARED / "spec" / "classes" / f"{table.spec}.json"
    if table.spec is None or not path.is_file():
        pytest.skip("not collected here")
    collected: dict[str, Any] = json.loads(path.read_text())
    info = dataset_info(table.name)
    key = "converted_png_id_map" if table.converted else "id_map"
    if table.converted and key not in collected:
        pytest.skip("this table is not in the collection")
    expected = {int(i): train for i, train in collected[key].items() if int(i) >= 0}
    default = None if table.converted else collected.get("id_map_default")
    if default is not None:
        expected = {i: expected.get(i, default) for i in range(460)}
    assert (info.png_ids if table.converted else info.ids) == expected
    assert list(info.classes) == collected["class_names"]
    assert info.palette.tolist() == collected["palette"]
    assert info.splits == collected["splits"]
    assert [list(pair) for pair in info.flip_pairs] == collected.get("flip_pairs", [])
    assert info.ignore_index == collected["ignore_index"]
