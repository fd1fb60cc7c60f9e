"""What every data set keeps, found by itself: an option of `data`, a JSON of facts, a module of `data.sets`.

A new data set needs no entry here; one in `tests/data/cases.py`, with a fake, has its files tested too.
"""

import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from isaseg import config
from isaseg.data import sets
from isaseg.data.check import check_files
from isaseg.data.info import dataset_info, dataset_names
from isaseg.data.module import SegmentationDataModule
from isaseg.data.source import FileSource
from isaseg.errors import DataError
from tests import fakes
from tests.conftest import compose_overrides
from tests.data.cases import BY_NAME, Case, every_case, mask_of, raw_labels
from tests.fakes import labels_of

OPTIONS = sorted(path.stem for path in (config.conf_dir() / "data").glob("[!_]*.yaml"))
MORE = {"folder": ["data.classes=[sky,ground]"]}


def composed(option: str, root: Path | str = "nowhere") -> DictConfig:
    data: DictConfig = compose_overrides(f"data={option}", f"data.root='{root}'", *MORE.get(option, [])).data
    return data


def test_every_module_and_every_json_has_an_option() -> None:
    targets = [composed(option).source._target_.split(".") for option in OPTIONS]
    assert {tuple(target[:3]) for target in targets} == {("isaseg", "data", "sets")}
    modules = {found.name for found in pkgutil.iter_modules(sets.__path__)} - {"scene"}
    assert {target[3] for target in targets} == modules
    assert set(dataset_names()) <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_builds_and_a_missing_root_is_named(option: str, tmp_path: Path) -> None:
    data: SegmentationDataModule = config.build(composed(option), "data")
    if "root" not in composed(option).source:  # generated
        assert len(data.source("train").classes) == data.num_classes == len(data.source("train").palette)
        return
    (tmp_path / "empty").mkdir()
    for root in ("nowhere", tmp_path / "empty"):
        data = config.build(composed(option, root), "data")
        for split in ("train", "val"):
            with pytest.raises(DataError, match=rf"split '{split}") as error:
                data.find(split)
            assert str(root) in str(error.value)
            if option in dataset_names():
                info = dataset_info(option)
                assert info.title in str(error.value)
                assert info.layout in str(error.value)
                assert len(info.classes) == data.num_classes


@pytest.mark.parametrize("name", dataset_names())
def test_the_facts_of_a_json_are_whole(name: str) -> None:
    info = dataset_info(name)
    count = len(info.classes)
    assert info.title and info.layout.startswith("  ")
    assert len(set(info.classes)) == count > 1
    assert info.palette.shape == (count, 3) and info.palette.dtype == np.uint8
    assert count <= info.ignore_index <= 255
    for ids in filter(None, (info.ids, info.png_ids)):
        assert set(ids.values()) - {info.ignore_index} == set(range(count)), "each class has an id"
        assert all(0 <= raw < 2**16 for raw in ids)
    paired = [label for pair in info.flip_pairs for label in pair]
    assert len(set(paired)) == len(paired) and set(paired) <= set(range(count))
    assert info.splits.keys() >= {"train", "val"} and min(info.splits.values()) > 0
    FileSource(info, "train", [])
    assert (composed(name).name, composed(name).num_classes) == (name, count)


@every_case
@pytest.mark.parametrize("split", ["train", "val"])
def test_pairs_and_train_ids(case: Case, split: str, tmp_path: Path) -> None:
    source = case.load(case.fake(tmp_path), split)
    check_files(source)
    assert len({source.name(i) for i in range(len(source))}) == len(source) >= 2
    for index in range(len(source)):
        raw = raw_labels(mask_of(source, index)).astype(int)
        mask = labels_of(source, index)
        assert np.array_equal(mask, np.vectorize(case.rule)(raw))
        image = source.load(index).image[:, :]
        assert image.shape == (*mask.shape, 3)
        assert source.pairs[index].image.stem.startswith(mask_of(source, index).stem.split("_gtFine")[0])


@pytest.mark.parametrize(
    ("name", "split", "names"),
    [
        ("ade20k", "train", ["ADE_train_00000000", "ADE_train_00000001"]),
        ("camvid", "test", ["0001TP_000000", "0001TP_000001", "0001TP_000002"]),
        ("cityscapes", "val", ["frankfurt/frankfurt_000000_000019", "frankfurt/frankfurt_000001_000019"]),
        ("coco_stuff", "val", ["COCO_train2014_000000000002", "COCO_train2014_000000000003"]),
        ("coco_stuff_164k", "val", ["000000000000", "000000000001"]),
        ("folder", "val", ["a photo 0", "a photo 1", "a photo 2"]),
        ("lip", "val", ["36_471474", "36 471476"]),
        ("lip_flat", "train", ["77 471476", "77_471474"]),
        ("pascal_context", "train", ["2008_000000", "2008_000001"]),
        ("pascal_voc", "val", ["2008_000000", "2008_000001"]),
        ("pascal_voc_sbd", "train", ["2007_000000", "2007_000001", "2009_000000", "2009_000001"]),
    ],
)
def test_names_and_their_order(name: str, split: str, names: list[str], tmp_path: Path) -> None:
    case = BY_NAME[name]
    assert [pair.name for pair in case.load(case.fake(tmp_path), split).pairs] == names


@pytest.mark.parametrize(
    ("name", "made_in", "root"),
    [
        ("ade20k", "ADEChallengeData2016", ""),
        ("camvid", "CamVid", ""),
        ("cityscapes", "cityscapes", ""),
        ("coco_stuff", "coco_stuff10k", ""),
        ("coco_stuff", "cocostuff-10k-v1.1", ""),
        ("coco_stuff_164k", "coco_stuff164k", ""),
        ("lip", "", "LIP"),
        ("lip_flat", "", "LIP"),
        *(
            (name, "", f"VOCdevkit{sub}")
            for name in ("pascal_voc", "pascal_voc_sbd")
            for sub in ("", "/VOC2012")
        ),
        *(
            (name, "", f"VOCdevkit{sub}")
            for name in ("pascal_context", "pascal_context_60")
            for sub in ("", "/VOC2010")
        ),
    ],
)
def test_root_may_be_the_data_set_or_hold_it(name: str, made_in: str, root: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    plain = case.load(case.fake(tmp_path / "plain"))
    case.fake(tmp_path / "other" / made_in)
    names = [pair.name for pair in case.load(tmp_path / "other" / root).pairs]
    assert names == [pair.name for pair in plain.pairs]


@pytest.mark.parametrize(
    ("name", "fake", "names"),
    [
        ("ade20k", fakes.make_fake_ade20k, ["ADE_test_00000000", "ADE_test_00000001"]),
        ("cityscapes", fakes.make_fake_cityscapes, [f"berlin/berlin_{i:06d}_000019" for i in range(2)]),
        ("lip", fakes.make_fake_lip, ["315_0", "315_1"]),
        ("lip", partial(fakes.make_fake_lip, flat=True), ["315_0", "315_1"]),
        ("pascal_voc", fakes.make_fake_pascal_voc, ["2010_000000", "2010_000001"]),
    ],
)
def test_test_images_have_no_labels(
    name: str, fake: Callable[..., Path], names: list[str], tmp_path: Path
) -> None:
    case = BY_NAME[name]
    assert case.source(split="test", root=str(fake(tmp_path / "without"))) is None
    source = case.load(fake(tmp_path / "with", test=True), "test")
    assert [source.name(i) for i in range(len(source))] == names
    assert not source.labelled
    image, mask, _ = source.load(1)
    assert image.shape[2] == 3 and mask is None
    check_files(source)
