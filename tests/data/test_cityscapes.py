"""Cityscapes: label ids, never instance or colour files; 19 classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.cityscapes import CLASSES, IDS, PALETTE, cityscapes
from isaseg.errors import DataError
from tests.fakes import make_fake_cityscapes

LABELS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_every_label_id_has_its_train_id() -> None:
    assert {i: IDS[i] for i in LABELS} == dict(zip(LABELS, range(19), strict=True))
    assert {IDS[i] for i in set(range(34)) - set(LABELS)} == {255}
    assert sorted(IDS) == list(range(34))
    assert (CLASSES[0], CLASSES[13], CLASSES[18]) == ("road", "car", "bicycle")
    assert PALETTE[13].tolist() == [0, 0, 142]
    assert len(PALETTE) == len(CLASSES) == 19


def test_files_of_the_official_layout(tmp_path: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "frankfurt")):
        source = cityscapes(split, str(make_fake_cityscapes(tmp_path)))
        assert source is not None
        assert [source.name(i) for i in range(len(source))] == [
            f"{city}/{city}_{i:06d}_000019" for i in range(2)
        ]
        source.check()
        raw = np.asarray(Image.open(source.pairs[0].mask))
        assert np.array_equal(source.load(0)[1], np.vectorize(IDS.get)(raw))
    assert cityscapes("test", str(tmp_path)) is None


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data set not found"):
        cityscapes("val", None)
    make_fake_cityscapes(tmp_path)
    next(tmp_path.rglob("*val*/**/*labelIds.png")).unlink()
    with pytest.raises(DataError, match="1 of 2 pairs"):
        cityscapes("val", str(tmp_path))
