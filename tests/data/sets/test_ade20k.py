"""ADE20K: 0 is ignored, label i is class i - 1; the test images have no labels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.ade20k import INFO, ade20k
from isaseg.errors import DataError
from tests.fakes import labels_of, make_fake_ade20k


def test_classes_and_colours() -> None:
    assert (INFO.classes[0], INFO.classes[12], INFO.classes[149]) == ("wall", "person", "flag")
    assert INFO.palette[0].tolist() == [120, 120, 120]


@pytest.mark.parametrize(("split", "name"), [("train", "ADE_train_00000001"), ("val", "ADE_val_00000001")])
def test_labels_are_shifted_once(tmp_path: Path, split: str, name: str) -> None:
    source = ade20k(split, str(make_fake_ade20k(tmp_path)))
    assert source is not None
    assert source.name(1) == name
    raw = np.asarray(Image.open(source.pairs[1].mask)).astype(int)
    assert np.array_equal(labels_of(source, 1), np.where(raw == 0, 255, raw - 1))
    assert set(np.unique(raw)) == set(range(151))
    check_files(source)


def test_the_folder_may_lie_inside_root(tmp_path: Path) -> None:
    make_fake_ade20k(tmp_path / "ADEChallengeData2016")
    source = ade20k("val", str(tmp_path))
    assert source is not None
    assert len(source) == 2


def test_the_test_images_have_no_labels(tmp_path: Path) -> None:
    assert ade20k("test", str(make_fake_ade20k(tmp_path))) is None
    source = ade20k("test", str(make_fake_ade20k(tmp_path, test=True)))
    assert source is not None
    assert not source.labelled
    assert [source.name(i) for i in range(2)] == ["ADE_test_00000000", "ADE_test_00000001"]
    image, mask, _ = source.load(1)
    assert (image.shape, mask) == ((41, 51, 3), None)
    check_files(source)


def test_a_missing_root_is_told() -> None:
    with pytest.raises(DataError, match=r"data set not found.*ADE20K.*'nowhere'.*data\.root=/path/to/it"):
        ade20k("val", "nowhere")
