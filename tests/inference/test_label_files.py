"""Label files: the ids and colours of each data set, modes, what a reader gets back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg import config
from isaseg.data.decode import read_labels
from isaseg.data.info import DatasetInfo, dataset_info, default_palette
from isaseg.errors import ConfigError
from isaseg.inference.label_files import (
    KNOWN,
    known_format,
    label_format,
    own_ids,
    write_label_file,
)

CITYSCAPES = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]  # cityscapesScripts' labels.py
STUFF = set(range(1, 183)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # COCO's objects that have no masks


def voc_colour(index: int) -> list[int]:
    """VOClabelcolormap.m, step by step."""
    colour = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            colour[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return colour


def test_known_data_sets_are_options_of_the_configuration() -> None:
    options = {path.stem for path in (config.conf_dir() / "data").glob("[!_]*.yaml")}
    assert set(KNOWN) <= options


@pytest.mark.parametrize("data", KNOWN)
def test_ids_become_the_same_classes_when_they_are_read(data: str) -> None:
    form, known = known_format(data), dataset_info(data)
    ids = known.png_ids or known.ids
    assert [ids[int(raw)] for raw in form.ids] == list(range(len(known.classes)))
    assert all(
        min(raw for raw, train in ids.items() if train == k) == form.ids[k] for k in range(len(form.ids))
    )


def test_of_several_ids_of_a_class_the_least_is_written() -> None:
    known = DatasetInfo("", ("a", "b"), np.zeros((2, 3), np.uint8), {9: 0, 3: 1, 7: 0, 0: 255, 5: 1})
    assert own_ids(known).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        ("cityscapes", CITYSCAPES),
        ("ade20k", range(1, 151)),
        ("coco_stuff", sorted(STUFF)),
        ("coco_stuff_164k", [raw - 1 for raw in sorted(STUFF)]),
        ("pascal_context", range(1, 60)),
        ("pascal_context_60", range(60)),
        ("pascal_voc", range(21)),
        ("lip", range(20)),
        ("camvid", range(11)),
    ],
)
def test_ids_are_the_official_ones(data: str, ids: list[int]) -> None:
    assert known_format(data).ids.tolist() == list(ids)


@pytest.mark.parametrize("data", KNOWN)
def test_a_file_holds_ids_and_colours(data: str, tmp_path: Path) -> None:
    form = known_format(data)
    count = len(form.classes)
    labels = np.arange(count * 6, dtype=np.uint16).reshape(6, count).astype(np.uint8) % count
    path = tmp_path / "below" / "a.png"
    write_label_file(path, labels, form)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as picture:
        assert picture.mode == ("L" if data == "cityscapes" else "P") and picture.size == (count, 6)
        assert np.array_equal(np.asarray(picture), form.ids[labels])
        if picture.mode == "P":
            assert np.array_equal(np.asarray(picture.convert("RGB")), form.colours[labels])
    assert np.array_equal(read_labels(path, ("L", "P")), form.ids[labels])


def test_the_colours_of_pascal_voc_are_the_official_ones() -> None:
    assert known_format("pascal_voc").colours.tolist() == [voc_colour(index) for index in range(21)]


def test_a_few_classes_are_written_with_eight_bits_too(tmp_path: Path) -> None:
    form = label_format({"num_classes": 2})
    write_label_file(tmp_path / "a.png", np.array([[0, 1, 1]], np.uint8), form)
    content = (tmp_path / "a.png").read_bytes()
    assert content[24:26] == bytes([8, 3])  # IHDR: bits, colour type


def test_a_network_says_what_it_was_trained_on() -> None:
    assert label_format({"num_classes": 19, "data": "cityscapes"}).ids.tolist() == CITYSCAPES
    assert label_format({"num_classes": 150, "data": None}, "ade20k").ids[0] == 1
    assert label_format({"num_classes": 171, "data": "coco_stuff_164k"}, "coco_stuff").ids[0] == 1
    mine = {
        "num_classes": 2,
        "data": "folder",
        "classes": ["sky", "ground"],
        "palette": [[1, 2, 3], [4, 5, 6]],
    }
    form = label_format(mine)
    assert (form.ids.tolist(), form.classes, form.mode) == ([0, 1], ("sky", "ground"), "P")
    assert form.colours.tolist() == mine["palette"]
    unknown = label_format({"num_classes": 256})
    assert unknown.classes[255] == "255" and np.array_equal(unknown.colours, default_palette(unknown.classes))
    assert label_format({**mine, "data": "pascal_voc"}, "folder").ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("description", "data", "message"),
    [
        (
            {"num_classes": 7},
            "cityscapes",
            "expected a network of the 19 classes of Cityscapes, got one of 7; give the",
        ),
        ({"num_classes": 7, "data": "ade20k"}, None, "the 150 classes of ADE20K, got one of 7"),
        ({"num_classes": 257}, None, "at most 256 classes, as a palette holds, got 257"),
    ],
)
def test_classes_that_do_not_fit_are_reported(
    description: dict[str, int], data: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        label_format(description, data)
