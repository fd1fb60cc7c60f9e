"""What is peculiar to the files of a data set: second places, lists, labels in two formats, what to do without them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg import config
from isaseg.data.check import check_files
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.sets.lip import lip
from isaseg.data.sets.pascal_context import pascal_context
from isaseg.data.sets.pascal_voc import pascal_voc
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError, DataError
from tests.conftest import compose_overrides
from tests.data.cases import mask_of, raw_labels
from tests.fakes import (
    labels_of,
    make_fake_coco_stuff,
    make_fake_lip,
    make_fake_pascal_context,
    make_fake_pascal_voc,
)

CONTEXT, VOC = "VOCdevkit/VOC2010", "VOCdevkit/VOC2012"


def found(source: FileSource | None) -> FileSource:
    assert source is not None
    return source


def names(source: FileSource | None) -> list[str]:
    return [pair.name for pair in found(source).pairs]


# ---------------------------------------------------------------- COCO-Stuff


def test_only_coco_164k_has_test_images_and_they_have_no_labels(tmp_path: Path) -> None:
    assert coco_stuff("test", str(tmp_path)) is None
    root = make_fake_coco_stuff(tmp_path, release="164k")
    assert coco_stuff("test", str(root), "164k") is None
    (root / "images" / "val2017").rename(root / "images" / "test2017")
    source = found(coco_stuff("test", str(root), "164k"))
    assert (len(source), source.load(0).mask) == (2, None)


def test_the_wrong_release_of_coco_is_named(tmp_path: Path) -> None:
    make_fake_coco_stuff(tmp_path, release="164k")
    with pytest.raises(DataError, match=r"list of the images of split 'val' of COCO-Stuff 10k.*test\.txt"):
        coco_stuff("val", str(tmp_path))


# ---------------------------------------------------------------- LIP


def test_lip_labels_may_have_a_palette_and_are_not_the_mirrored_ones(tmp_path: Path) -> None:
    source = found(lip("train", str(make_fake_lip(tmp_path))))
    path = mask_of(source)
    assert path.parent.name == "train_segmentations"
    raw = raw_labels(path)
    picture = Image.fromarray(raw)
    picture.putpalette([(97 * c) % 256 for c in range(768)])
    picture.save(path)
    assert np.array_equal(labels_of(source, 0), raw)


def test_the_list_of_lip_decides_and_keeps_its_order(tmp_path: Path) -> None:
    make_fake_lip(tmp_path, n=3)
    ids = tmp_path / "LIP" / "TrainVal_images" / "val_id.txt"
    ids.write_text("36 471477\r\n36_471474\r\n\r\n")
    assert names(lip("val", str(tmp_path))) == ["36 471477", "36_471474"]
    ids.unlink()
    with pytest.raises(DataError, match=r"3 of 4 pairs .*mask of '.*not in the list\.jpg'"):
        lip("val", str(tmp_path))


def test_other_places_of_lip(tmp_path: Path) -> None:
    make_fake_lip(tmp_path, test=True)
    labels = tmp_path / "LIP" / "TrainVal_parsing_annotations"
    labels.rename(labels.with_name("Trainval_parsing_annotations"))
    assert len(names(lip("train", str(tmp_path)))) == 2
    images = tmp_path / "LIP/Testing_images/testing_images"
    for path in images.iterdir():
        path.rename(images.parent / path.name)
    images.rmdir()
    assert names(lip("test", str(tmp_path))) == ["315_0", "315_1"]


# ---------------------------------------------------------------- PASCAL-Context


@pytest.mark.parametrize("place", ["", "VOCdevkit", CONTEXT])
def test_matlab_labels_of_context_may_lie_anywhere_between_root_and_voc(tmp_path: Path, place: str) -> None:
    root = make_fake_pascal_context(tmp_path, labels="mat")
    (root / "trainval").rename(root / place / "trainval")
    check_files(found(pascal_context("val", str(root))))


def test_png_labels_of_context_come_first(tmp_path: Path) -> None:
    make_fake_pascal_context(tmp_path, labels="mat")
    make_fake_pascal_context(tmp_path)
    source = found(pascal_context("train", str(tmp_path)))
    assert {mask_of(source, i).suffix for i in range(len(source))} == {".png"}


def test_classes_of_context_with_and_without_background(tmp_path: Path) -> None:
    root = str(make_fake_pascal_context(tmp_path))
    without, background = found(pascal_context("val", root)), found(pascal_context("val", root, True))
    assert background.classes == ("background", *without.classes)
    assert without.classes == tuple(sorted(without.classes))
    assert pascal_context("test", None) is None


def test_context_labels_beside_root_are_outside_it(tmp_path: Path) -> None:
    make_fake_pascal_context(tmp_path, labels="mat")
    with pytest.raises(DataError, match=r"(?s)got 0 of 2 pairs .*src/data\.py prepare data=pascal_context "):
        pascal_context("val", str(tmp_path / CONTEXT))


# ---------------------------------------------------------------- PASCAL VOC


@pytest.mark.parametrize(
    ("train", "years", "size"),
    [("train", ["2007"], 1464), ("trainval", ["2007", "2008"], 2913), ("trainaug", ["2007", "2009"], 10582)],
)
def test_what_train_of_voc_is(tmp_path: Path, train: str, years: list[str], size: int) -> None:
    source = found(pascal_voc("train", str(make_fake_pascal_voc(tmp_path)), train))
    assert names(source) == [f"{year}_{i:06d}" for year in years for i in range(2)]
    assert source.split == train
    assert source.info.splits[source.split] == size
    check_files(source)


def test_masks_of_voc_come_before_those_of_sbd(tmp_path: Path) -> None:
    source = found(pascal_voc("train", str(make_fake_pascal_voc(tmp_path)), "trainaug"))
    folders = [mask_of(source, i).parent.name for i in range(4)]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    for pair, mode in zip(source.pairs, "PPPL", strict=True):
        with Image.open(pair.mask) as picture:
            assert picture.mode == mode
    assert (labels_of(source, 0)[0] == 255).all(), "the border of VOC"
    assert 255 not in np.unique(labels_of(source, 3))


def test_trainaug_without_its_list_is_train_and_aug(tmp_path: Path) -> None:
    lists = make_fake_pascal_voc(tmp_path) / VOC / "ImageSets/Segmentation"
    (lists / "aug.txt").write_text("2009_000001\n2007_000001\n")
    (lists / "trainaug.txt").unlink()
    source = pascal_voc("train", str(tmp_path), "trainaug")
    assert names(source) == ["2007_000000", "2007_000001", "2009_000001"]


def test_without_sbd_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    make_fake_pascal_voc(tmp_path)
    shutil.rmtree(tmp_path / VOC / "SegmentationClassAug")
    with pytest.raises(DataError, match=r"(?s)split 'trainaug'.*src/data\.py prepare data=pascal_voc"):
        pascal_voc("train", str(tmp_path), "trainaug")
    assert pascal_voc("train", str(tmp_path)) is not None


def test_a_missing_test_image_of_voc_is_named_unless_all_are(tmp_path: Path) -> None:
    images = make_fake_pascal_voc(tmp_path, test=True) / VOC / "JPEGImages"
    (images / "2010_000000.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pairs .*image of '2010_000000'"):
        pascal_voc("test", str(tmp_path))
    (images / "2010_000001.jpg").unlink()
    assert pascal_voc("test", str(tmp_path)) is None


@pytest.mark.parametrize(
    ("data", "key", "value"), [("coco_stuff", "release", "9k"), ("pascal_voc", "train", "all")]
)
def test_an_unknown_part_of_a_data_set_is_refused(data: str, key: str, value: str) -> None:
    cfg = compose_overrides(f"data={data}", f"data.source.{key}={value}")
    with pytest.raises(
        ConfigError, match=rf"data\.source\.{key} to be .* or .*, got data\.source\.{key}={value}"
    ):
        config.build(cfg.data, "data")
