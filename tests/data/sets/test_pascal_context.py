"""PASCAL-Context: 59 or 60 classes, converted PNG or the original MATLAB files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.pascal_context import pascal_context
from isaseg.errors import DataError
from tests.fakes import labels_of, make_fake_pascal_context

VOC = "VOCdevkit/VOC2010"


@pytest.mark.parametrize("inside", ["", "VOCdevkit", VOC])
@pytest.mark.parametrize("background", [False, True])
def test_png_labels(tmp_path: Path, inside: str, background: bool) -> None:
    root = make_fake_pascal_context(tmp_path) / inside
    for split, year in (("train", 2008), ("val", 2010)):
        source = pascal_context(split, str(root), background)
        assert source is not None
        assert [p.name for p in source.pairs] == [f"{year}_{i:06d}" for i in range(2)]
        for i in range(2):
            raw = np.asarray(Image.open(source.pairs[i].mask)).astype(int)
            expected = raw if background else np.where(raw == 0, 255, raw - 1)
            assert np.array_equal(labels_of(source, i), expected)
        check_files(source)


def test_classes_with_and_without_background(tmp_path: Path) -> None:
    root = str(make_fake_pascal_context(tmp_path))
    without, with_background = pascal_context("val", root), pascal_context("val", root, True)
    assert without is not None
    assert with_background is not None
    assert with_background.classes == ("background", *without.classes)
    assert without.classes == tuple(sorted(without.classes))
    assert (len(without.classes), without.classes[0], without.classes[58]) == (59, "aeroplane", "wood")


@pytest.mark.parametrize("place", ["", "VOCdevkit", VOC])
@pytest.mark.parametrize("background", [False, True])
def test_mat_labels_of_459_ids(tmp_path: Path, place: str, background: bool) -> None:
    root = make_fake_pascal_context(tmp_path, labels="mat")
    (root / "trainval").rename(root / place / "trainval")
    source = pascal_context("val", str(root), background)
    assert source is not None
    raw = scipy.io.loadmat(source.pairs[1].mask)["LabelMap"]
    mask = labels_of(source, 1)
    # aeroplane is 2 of 459, wood 458, accordion (1) and unknown (0) are none of the 59
    first = 1 if background else 0
    for label, train in (
        (2, first),
        (458, first + 58),
        (1, 0 if background else 255),
        (0, 0 if background else 255),
    ):
        assert (mask[raw == label] == train).all()
    check_files(source)


def test_png_labels_come_first(tmp_path: Path) -> None:
    make_fake_pascal_context(tmp_path, labels="mat")
    make_fake_pascal_context(tmp_path)
    source = pascal_context("train", str(tmp_path))
    assert source is not None
    assert {pair.mask.suffix for pair in source.pairs if pair.mask} == {".png"}


def test_labels_beside_root_are_outside_it(tmp_path: Path) -> None:
    make_fake_pascal_context(tmp_path, labels="mat")
    with pytest.raises(DataError, match=r"SegmentationClassContext or trainval below data\.root='.*VOC2010'"):
        pascal_context("val", str(tmp_path / VOC))


def test_what_prepare_makes_is_told(tmp_path: Path) -> None:
    make_fake_pascal_context(tmp_path)
    (tmp_path / VOC / "ImageSets/SegmentationContext/val.txt").unlink()
    with pytest.raises(
        DataError,
        match=r"list of split 'val'.*SegmentationContext/val\.txt'.*src/data\.py prepare data=pascal_context",
    ):
        pascal_context("val", str(tmp_path))
    shutil.rmtree(tmp_path / VOC / "SegmentationClassContext")
    with pytest.raises(DataError, match=r"(?s)got neither.*JPEGImages"):
        pascal_context("val", str(tmp_path))
    (tmp_path / VOC / "trainval_merged.json").write_text("{}")
    with pytest.raises(
        DataError,
        match=r"got only '.*trainval_merged\.json'; `python src/data\.py prepare data=pascal_context ",
    ):
        pascal_context("val", str(tmp_path))


def test_there_is_no_test_split() -> None:
    assert pascal_context("test", None) is None
