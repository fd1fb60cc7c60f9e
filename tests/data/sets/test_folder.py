"""A user's own folder: names from the configuration, masks as indices, odd sizes and names."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.info import default_palette
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
    for palette in ([[1, 2, 3]], [[1, 2, 300]] * 3, [[1, 2], [1, 2, 3], [1, 2, 3]]):
        with pytest.raises(ConfigError, match="one RGB triple of 0 to 255 for each of 3"):
            folder("val", root, CLASSES, palette=palette)
    with pytest.raises(
        ConfigError, match=r"from 3, the .* to 65535 in data.source.ignore, got \[-1, 1, 70000\]"
    ):
        folder("val", root, CLASSES, ignore=[255, 70000, 1, -1])


def flat(root: Path, names: Sequence[str], masks: str = "masks", images: str = "images") -> Path:
    """Write small images and masks of these names."""
    for name in names:
        for place, pixels in ((images, np.zeros((8, 9, 3), np.uint8)), (masks, np.ones((8, 9), np.uint8))):
            (root / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / place / f"{name}.png")
    return root


def names_of(root: Path, split: str, share: float | None = None) -> set[str]:
    source = folder(split, str(root), CLASSES, share=share)
    assert source is not None
    return {pair.name for pair in source.pairs}


@pytest.mark.parametrize("place", ["", "/train"])
def test_without_val_a_share_is_for_validation_and_no_picture_moves(
    place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = [f"photo {i}" for i in range(12)]
    root = flat(tmp_path, first, f"masks{place}", f"images{place}")
    with caplog.at_level("INFO"):
        val, train = names_of(root, "val", 0.3), names_of(root, "train", 0.3)
    assert val and train and val | train == set(first) and not val & train
    assert (
        f"no images/val: {len(val)} of 12 images, chosen by their names, are for validation; data.split=0.3"
        in caplog.text
    )
    flat(root, [f"later {i}" for i in range(100)], f"masks{place}", f"images{place}")
    assert val < names_of(root, "val", 0.3) and train < names_of(root, "train", 0.3)
    assert 0.1 < len(names_of(root, "val")) / 112 < 0.3, "a fifth by default"
    assert names_of(root, "val") < names_of(root, "val", 0.4)
    assert folder("test", str(root), CLASSES) is None
    flat(root, ["t"], "masks/test", "images/test")
    assert names_of(root, "test") == {"t"} and not names_of(root, "train") & {"t", "test/t"}


def test_a_split_without_pictures_is_refused_with_one_that_has(tmp_path: Path) -> None:
    root = flat(tmp_path, ["a", "b", "c"])
    for share in (0.0001, 0.9999):
        with pytest.raises(
            DataError, match=r"for train and for val, got [03] of 3 in val .*; data\.split=0\.\d+ moves"
        ) as error:
            folder("val", str(root), CLASSES, share=share)
        assert len(names_of(root, "val", float(str(error.value).split("data.split=")[-1].split()[0]))) in (
            1,
            2,
        )
    with pytest.raises(DataError, match=r"of 1 in val .*; add images"):
        folder("train", str(flat(tmp_path / "one", ["a"])), CLASSES)
    flat(root, ["v"], "masks/val", "images/val")
    flat(root, ["t"], "masks/train", "images/train")
    with pytest.raises(
        DataError, match=r"in the folders train, val and test, .*got 6 elsewhere, e\.g\. '.*a\.png'"
    ):
        folder("train", str(root), CLASSES)
    for name in "abc":
        (root / "images" / f"{name}.png").unlink()
        (root / "masks" / f"{name}.png").unlink()
    assert names_of(root, "val") == {"v"} and names_of(root, "train") == {"t"}
    with pytest.raises(ConfigError, match=r"no data\.split where there is images/val, got data\.split=0\.2"):
        folder("val", str(root), CLASSES, share=0.2)


def test_a_background_is_black_and_others_are_not() -> None:
    palette = default_palette(["cat", "Background", "dog"])
    assert palette.any(1).tolist() == [True, False, True]
