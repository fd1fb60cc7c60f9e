"""Cityscapes: label ids, never instance or colour files; the labels of test are dummies."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.cityscapes import INFO, cityscapes
from isaseg.errors import DataError
from tests.fakes import labels_of, make_fake_cityscapes


def test_classes_and_colours() -> None:
    assert (INFO.classes[0], INFO.classes[13], INFO.classes[18]) == ("road", "car", "bicycle")
    assert INFO.palette[13].tolist() == [0, 0, 142]


@pytest.mark.parametrize(("split", "city"), [("train", "aachen"), ("val", "frankfurt")])
def test_files_of_the_official_layout(tmp_path: Path, split: str, city: str) -> None:
    source = cityscapes(split, str(make_fake_cityscapes(tmp_path)))
    assert source is not None
    assert [source.name(i) for i in range(len(source))] == [f"{city}/{city}_{i:06d}_000019" for i in range(2)]
    check_files(source)
    raw = np.asarray(Image.open(source.pairs[0].mask))
    assert np.array_equal(labels_of(source, 0), np.vectorize(INFO.ids.get)(raw))


def test_the_test_images_have_no_labels(tmp_path: Path) -> None:
    assert cityscapes("test", str(make_fake_cityscapes(tmp_path))) is None
    source = cityscapes("test", str(make_fake_cityscapes(tmp_path, test=True)))
    assert source is not None
    assert source.name(0) == "berlin/berlin_000000_000019"
    assert source.load(0).mask is None


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set not found"):
        cityscapes("val", None)
    make_fake_cityscapes(tmp_path)
    next(tmp_path.rglob("*val*/**/*labelIds.png")).unlink()
    with pytest.raises(DataError, match="1 of 2 pairs"):
        cityscapes("val", str(tmp_path))
