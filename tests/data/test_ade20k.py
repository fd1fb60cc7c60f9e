"""ADE20K: 0 is ignored, label i is class i - 1."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.ade20k import CLASSES, PALETTE, ade20k
from isaseg.errors import DataError
from tests.fakes import make_fake_ade20k


def test_facts() -> None:
    assert len(CLASSES) == len(PALETTE) == 150
    assert (CLASSES[0], CLASSES[12], CLASSES[149]) == ("wall", "person", "flag")
    assert PALETTE.shape == (150, 3)
    assert PALETTE[0].tolist() == [120, 120, 120]


@pytest.mark.parametrize(("split", "name"), [("train", "ADE_train_00000001"), ("val", "ADE_val_00000001")])
def test_labels_are_shifted_once(tmp_path: Path, split: str, name: str) -> None:
    source = ade20k(split, str(make_fake_ade20k(tmp_path)))
    assert source is not None
    assert source.name(1) == name
    raw = np.asarray(Image.open(source.pairs[1].mask)).astype(int)
    mask = source.load(1)[1].astype(int)
    assert np.array_equal(mask, np.where(raw == 0, 255, raw - 1))
    assert set(np.unique(raw)) == set(range(151))
    source.check()


def test_there_is_no_test_split_and_a_missing_root_is_told() -> None:
    assert ade20k("test", None) is None
    with pytest.raises(DataError, match=r"data set not found.*ADE20K"):
        ade20k("val", "nowhere")
