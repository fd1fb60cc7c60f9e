"""COCO-Stuff: the 10k release with its MATLAB files and lists, the 164k release with PNG."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError, DataError
from tests.fakes import labels_of, make_fake_coco_stuff


def make_png_labels(root: Path) -> None:
    """Write what prepare writes: S as PNG."""
    (root / "annotations_png").mkdir()
    for path in (root / "annotations").iterdir():
        Image.fromarray(scipy.io.loadmat(path)["S"]).save(root / "annotations_png" / f"{path.stem}.png")


def names(source: FileSource | None) -> list[str]:
    assert source is not None
    check_files(source)
    return [pair.name for pair in source.pairs]


def test_10k_calls_val_test(tmp_path: Path) -> None:
    root = str(make_fake_coco_stuff(tmp_path))
    assert names(coco_stuff("train", root)) == ["COCO_train2014_000000000000", "COCO_train2014_000000000001"]
    assert names(coco_stuff("val", root)) == ["COCO_train2014_000000000002", "COCO_train2014_000000000003"]
    assert coco_stuff("test", root) is None
    source = coco_stuff("val", root)
    assert source is not None
    assert source.info.splits[source.split] == 1000


def test_10k_labels_begin_at_1(tmp_path: Path) -> None:
    source = coco_stuff("train", str(make_fake_coco_stuff(tmp_path)))
    assert source is not None
    raw = scipy.io.loadmat(source.pairs[0].mask)["S"]
    mask = labels_of(source, 0)
    for label, train in ((0, 255), (1, 0), (11, 10), (13, 11), (90, 79), (92, 80), (182, 170)):
        assert (mask[raw == label] == train).all()
    assert source.classes[:2] + source.classes[170:] == ("person", "bicycle", "wood")


def test_10k_takes_png_labels_only_if_all_are_there(tmp_path: Path) -> None:
    root = make_fake_coco_stuff(tmp_path)
    before = coco_stuff("train", str(root))
    make_png_labels(root)
    after = coco_stuff("train", str(root))
    assert before is not None
    assert after is not None
    assert [p.mask.suffix for p in after.pairs if p.mask] == [".png"] * 2
    assert np.array_equal(labels_of(before, 1), labels_of(after, 1))
    (root / "annotations_png" / "COCO_train2014_000000000001.png").unlink()
    partly = coco_stuff("train", str(root))
    assert partly is not None
    assert [p.mask.suffix for p in partly.pairs if p.mask] == [".mat"] * 2


def test_164k_labels_begin_at_0_and_mmseg_files_are_left_alone(tmp_path: Path) -> None:
    root = make_fake_coco_stuff(tmp_path, release="164k")
    for split in ("train", "val"):
        source = coco_stuff(split, str(root), "164k")
        assert names(source) == ["000000000000", "000000000001"]
        assert source is not None
        raw = np.asarray(Image.open(source.pairs[0].mask))
        mask = labels_of(source, 0)
        for label, train in ((255, 255), (0, 0), (10, 10), (12, 11), (89, 79), (91, 80), (181, 170)):
            assert (mask[raw == label] == train).all()
        assert source.info.title == "COCO-Stuff 164k"


def test_164k_test_images_have_no_labels(tmp_path: Path) -> None:
    root = make_fake_coco_stuff(tmp_path, release="164k")
    assert coco_stuff("test", str(root), "164k") is None
    (root / "images" / "val2017").rename(root / "images" / "test2017")
    source = coco_stuff("test", str(root), "164k")
    assert source is not None
    assert (len(source), source.load(0).mask) == (2, None)


@pytest.mark.parametrize(("release", "inside"), [("10k", "coco_stuff10k"), ("164k", "coco_stuff164k")])
def test_the_folder_may_lie_inside_root(tmp_path: Path, release: str, inside: str) -> None:
    make_fake_coco_stuff(tmp_path / inside, release=release)
    assert len(names(coco_stuff("val", str(tmp_path), release))) == 2


def test_the_wrong_release_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source\.release as one of 10k, 164k, got '9k'"):
        coco_stuff("val", str(tmp_path), "9k")
    make_fake_coco_stuff(tmp_path, release="164k")
    with pytest.raises(DataError, match=r"list of the images of split 'val' of COCO-Stuff 10k.*test\.txt"):
        coco_stuff("val", str(tmp_path))
