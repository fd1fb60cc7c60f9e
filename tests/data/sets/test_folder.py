"""A user's own folder: names from the configuration, masks as indices, odd sizes and names."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.folder import folder
from isaseg.errors import ConfigError, DataError
from tests.fakes import labels_of, make_fake_folder

CLASSES = ["sky", "ground", "thing"]


def test_test_may_be_absent(tmp_path: Path) -> None:
    assert folder("test", str(make_fake_folder(tmp_path / "a")), CLASSES) is None
    root = make_fake_folder(tmp_path / "b", test=True)
    labelled = folder("test", str(root), CLASSES)
    assert labelled is not None
    assert labelled.labelled
    shutil.rmtree(root / "masks" / "test")
    unlabelled = folder("test", str(root), CLASSES)
    assert unlabelled is not None
    assert unlabelled.load(0).mask is None


def test_masks_may_have_16_bits(tmp_path: Path) -> None:
    source = folder(
        "val", str(make_fake_folder(tmp_path, classes=200, deep=True)), [f"c{i}" for i in range(200)]
    )
    assert source is not None
    raw = np.asarray(Image.open(tmp_path / "masks/val/a photo 0.png"))
    assert raw.dtype == np.uint16
    assert np.array_equal(labels_of(source, 0), raw)
    path = tmp_path / "masks/val/a photo 1.png"
    wrong = np.asarray(Image.open(path)).copy()
    wrong[2, 3:5] = 256  # class 0 in the lower byte
    Image.fromarray(wrong).save(path)
    with pytest.raises(DataError, match=r"got the id 256 in 2 pixels .*a photo 1\.png"):
        check_files(source)


def test_a_label_without_a_class_is_refused_unless_ignored(tmp_path: Path) -> None:
    root = str(make_fake_folder(tmp_path))
    short = folder("val", root, CLASSES[:2])
    assert short is not None
    with pytest.raises(DataError, match=r"labels 0 to 1, 255 .*got the id 2 .*a photo 0\.png"):
        check_files(short)
    ignoring = folder("val", root, CLASSES[:2], ignore=(2, 255))
    assert ignoring is not None
    assert set(np.unique(labels_of(ignoring, 0))) == {0, 1, 255}


def test_numbers_are_names_too(tmp_path: Path) -> None:
    source = folder("val", str(make_fake_folder(tmp_path)), [0, 1, 2])  # type: ignore[list-item]
    assert source is not None
    assert source.classes == ("0", "1", "2")


def test_colours_are_given_or_made(tmp_path: Path) -> None:
    root = str(make_fake_folder(tmp_path))
    made = folder("val", root, [f"c{i}" for i in range(30)])
    assert made is not None
    assert len({tuple(c) for c in made.palette.tolist()}) == 30
    given = folder("val", root, CLASSES, palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert given is not None
    assert given.palette[2].tolist() == [7, 8, 9]


def test_names_colours_and_ignored_labels_must_agree(tmp_path: Path) -> None:
    root = str(make_fake_folder(tmp_path))
    with pytest.raises(ConfigError, match="data.classes as different names"):
        folder("val", root, ["a", "a"])
    with pytest.raises(ConfigError, match=r"as different names, got sky; write \[sky,ground\]"):
        folder("val", root, "sky")
    with pytest.raises(ConfigError, match="one RGB triple for each of 3"):
        folder("val", root, CLASSES, palette=[[1, 2, 3]])
    with pytest.raises(ConfigError, match=r"got \[1\] in data.source.ignore"):
        folder("val", root, CLASSES, ignore=[1])
