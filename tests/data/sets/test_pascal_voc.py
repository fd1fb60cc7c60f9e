"""PASCAL VOC: palette masks, what train is, the masks of SBD."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.pascal_voc import INFO, pascal_voc
from isaseg.errors import ConfigError, DataError
from tests.fakes import labels_of, make_fake_pascal_voc

trainaug = partial(pascal_voc, "train", train="trainaug")


def test_classes() -> None:
    assert (INFO.classes[0], INFO.classes[15], INFO.classes[20]) == ("background", "person", "tvmonitor")


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_palette_indices_are_labels_and_the_border_is_ignored(tmp_path: Path, inside: str) -> None:
    source = pascal_voc("val", str(make_fake_pascal_voc(tmp_path) / inside))
    assert source is not None
    assert [source.name(i) for i in range(len(source))] == ["2008_000000", "2008_000001"]
    with Image.open(source.pairs[0].mask) as picture:
        assert picture.mode == "P"
        raw = np.asarray(picture)
    mask = labels_of(source, 0)
    assert np.array_equal(mask, raw)
    assert (mask[0, :] == 255).all()
    assert set(np.unique(mask[1:-1, 1:-1])) == set(range(21))
    check_files(source)


@pytest.mark.parametrize(
    ("train", "years", "size"),
    [("train", ["2007"], 1464), ("trainval", ["2007", "2008"], 2913), ("trainaug", ["2007", "2009"], 10582)],
)
def test_what_train_is(tmp_path: Path, train: str, years: list[str], size: int) -> None:
    source = pascal_voc("train", str(make_fake_pascal_voc(tmp_path)), train)
    assert source is not None
    assert [p.name for p in source.pairs] == [f"{year}_{i:06d}" for year in years for i in range(2)]
    assert source.split == train
    assert source.info.splits[source.split] == size
    check_files(source)


def test_voc_masks_come_before_those_of_sbd(tmp_path: Path) -> None:
    source = trainaug(root=str(make_fake_pascal_voc(tmp_path)))
    assert source is not None
    folders = [pair.mask.parent.name for pair in source.pairs if pair.mask]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    for pair, mode in zip(source.pairs, "PPPL", strict=True):
        with Image.open(pair.mask) as picture:
            assert picture.mode == mode
    assert 255 not in np.unique(labels_of(source, 3))


def test_trainaug_without_its_list_is_train_and_aug(tmp_path: Path) -> None:
    lists = make_fake_pascal_voc(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "aug.txt").write_text("2009_000001\n2007_000001\n")
    (lists / "trainaug.txt").unlink()
    source = trainaug(root=str(tmp_path))
    assert source is not None
    assert [p.name for p in source.pairs] == ["2007_000000", "2007_000001", "2009_000001"]


def test_without_sbd_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    make_fake_pascal_voc(tmp_path)
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2012/SegmentationClassAug")
    with pytest.raises(
        DataError,
        match=r"SBD .*'.*SegmentationClassAug'.*src/data\.py prepare data=pascal_voc.*source\.train=train",
    ):
        trainaug(root=str(tmp_path))
    assert pascal_voc("train", str(tmp_path)) is not None
    with pytest.raises(DataError, match=r"(?s)trainaug.*trainaug\.txt.*JPEGImages"):
        trainaug(root=str(make_fake_pascal_voc(tmp_path / "empty", n=0, aug=False)))


def test_test_images_have_no_labels(tmp_path: Path) -> None:
    root = make_fake_pascal_voc(tmp_path, test=True)
    source = pascal_voc("test", str(root))
    assert source is not None
    assert (len(source), source.labelled) == (2, False)
    images = root / "VOCdevkit/VOC2012/JPEGImages"
    (images / "2010_000000.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pairs .*image of '2010_000000'"):
        pascal_voc("test", str(root))
    (images / "2010_000001.jpg").unlink()
    assert pascal_voc("test", str(root)) is None
    assert pascal_voc("test", str(make_fake_pascal_voc(tmp_path / "none"))) is None


def test_an_unknown_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.source\.train as one of train, trainval, trainaug, got 'all'"
    ):
        pascal_voc("train", str(tmp_path), "all")
