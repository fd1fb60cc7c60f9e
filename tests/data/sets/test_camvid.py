"""CamVid: files of the SegNet tutorial's layout, 11 classes, 11 is unlabelled."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.camvid import INFO, camvid
from isaseg.errors import DataError
from tests.fakes import labels_of, make_fake_camvid


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_pairs_and_ids(tmp_path: Path, split: str) -> None:
    source = camvid(split, str(make_fake_camvid(tmp_path)))
    assert [source.name(i) for i in range(len(source))] == [f"0001TP_{i:06d}" for i in range(3)]
    raw = np.asarray(Image.open(tmp_path / f"{split}annot" / "0001TP_000001.png"))
    assert np.array_equal(labels_of(source, 1), np.where(raw == 11, 255, raw))
    check_files(source)


def test_classes_and_colours() -> None:
    assert INFO.classes[0] == "sky"
    assert INFO.palette[3].tolist() == [128, 64, 128]


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_without_a_root_the_error_says_what_to_pass(root: str | None) -> None:
    with pytest.raises(DataError, match=r"data set not found.*data\.root=") as error:
        camvid("train", root)
    for part in (repr(root), "'train'", "trainannot/NAME.png"):
        assert part in str(error.value)


def test_a_wrong_layout_and_a_missing_mask_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 of 0 pairs"):
        camvid("train", str(tmp_path))
    make_fake_camvid(tmp_path)
    (tmp_path / "trainannot" / "0001TP_000001.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 pairs .*mask of '.*train/0001TP_000001\.jpg'"):
        camvid("train", str(tmp_path))
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match="0 of 3 pairs"):
        camvid("val", str(tmp_path))
