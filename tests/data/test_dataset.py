"""Samples as tensors, from any source, and what is checked before a bad one is trained on."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.dataset import SegmentationDataset
from isaseg.data.index import Pair
from isaseg.data.info import DatasetInfo
from isaseg.data.sampler import BatchPlan
from isaseg.data.sets.lamps import Lamps
from isaseg.data.source import FileSource, Loaded
from isaseg.data.transforms import HorizontalFlip, PhotometricDistortion, RandomRotate90, TrainTransform
from isaseg.errors import DataError

SIZE = (12, 16)
AUGMENT = [PhotometricDistortion(), HorizontalFlip(p=0.5), RandomRotate90()]
INFO = DatasetInfo("toy", ("road", "car"), np.zeros((2, 3), np.uint8), {0: 255, 7: 0, 8: 1})


def source(tmp_path: Path) -> FileSource:
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(tmp_path / "image.png")
    Image.fromarray(labels(np.uint8)).save(tmp_path / "mask.png")
    return FileSource(INFO, "train", [Pair("it", tmp_path / "image.png", tmp_path / "mask.png")])


def labels(dtype: type) -> np.ndarray:
    return np.resize(np.array([0, 7, 8], dtype), SIZE)


def test_check_decodes_all_of_a_small_split_and_some_of_a_large_one(tmp_path: Path) -> None:
    small = source(tmp_path)
    decoded: list[int] = []

    class Counting(FileSource):
        def load(self, index: int) -> Loaded:
            decoded.append(index)
            return Loaded(np.zeros((1, 1, 3)), None)

    for count, expected in ((5000, 5000), (5001, 455), (20210, 493)):
        decoded.clear()
        check_files(Counting(INFO, "train", small.pairs * count))
        assert len(decoded) == expected
        assert max(decoded) > count - 50


def test_an_id_table_must_lead_to_classes() -> None:
    for train in (2, -1):
        with pytest.raises(DataError, match=rf"train ids 0 to 1, .*got \[{train}\]"):
            FileSource(INFO, "train", [], ids={0: train})
    many = DatasetInfo("many", tuple(map(str, range(255))), np.zeros((255, 3), np.uint8), {0: 255})
    with pytest.raises(DataError, match="at most 254"):
        FileSource(many, "train", [])


def test_ids_out_of_range_of_any_integer_type_are_refused(tmp_path: Path) -> None:
    loaded = source(tmp_path)
    for value in (-1, 2**16, 2**40):
        raw = labels(np.int64)
        raw[2, 3] = value
        with pytest.raises(
            DataError, match=rf"labels 0, 7 to 8 in toy, got the id {value} in 1 pixels of .*mask\.png"
        ):
            loaded.to_train_ids(raw, 0)


def test_without_labels_there_is_an_image_alone(tmp_path: Path) -> None:
    pair = source(tmp_path).pairs[0]
    unlabelled = FileSource(INFO, "test", [Pair("it", pair.image, None)])
    assert not unlabelled.labelled
    sample = SegmentationDataset(unlabelled)[0]
    assert sample.keys() == {"image", "id", "size"}
    assert sample["size"] == SIZE
    assert sample["image"].shape == (3, *SIZE)


def test_only_the_image_is_resized_for_evaluation(tmp_path: Path) -> None:
    sample = SegmentationDataset(source(tmp_path), resize={"short_side": 24})[0]
    assert sample["image"].shape == (3, 24, 32)
    assert sample["mask"].shape == SIZE


def test_d3_a_bad_sample_is_an_error_and_never_replaced(tmp_path: Path) -> None:
    loaded = source(tmp_path)
    loaded.pairs[0].image.write_bytes(b"")
    for transform in (None, TrainTransform((8, 8))):
        with pytest.raises(DataError, match=r"image\.png"):
            SegmentationDataset(loaded, transform)[(0, 3)]


def test_samples_are_tensors() -> None:
    sample = SegmentationDataset(Lamps("val"), length=2)[1]
    image, mask, far = Lamps("val").load(1)
    assert mask is not None
    assert sample["image"].dtype == torch.uint8
    assert sample["mask"].dtype == torch.uint8
    assert sample["far"].dtype == torch.bool
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image[:, :])
    assert np.array_equal(sample["mask"].numpy(), mask[:, :])
    assert sample["id"] == "val_00001"
    assert far is not None


@pytest.mark.parametrize("crop", [(1, 1), (6, 1)])
def test_a_crop_one_pixel_wide_may_be_flipped_and_turned(crop: tuple[int, int]) -> None:
    transform = TrainTransform(crop, augment=AUGMENT[: 3 if crop[0] == crop[1] else 2])
    dataset = SegmentationDataset(Lamps("train", train_length=4), transform)
    for step in range(8):
        sample = dataset[step % 4, step]
        assert [sample[name].shape for name in ("mask", "far")] == [crop, crop]
        assert sample["image"].shape == (3, *crop)


class Ramp(Lamps):
    """Pictures of diagonal stripes of five classes, two of which change places in a mirror."""

    flip_pairs = ((1, 2),)

    def load(self, index: int) -> Loaded:
        y, x = np.mgrid[: 60 + index, :90]
        mask = ((7 * y + 13 * x + index) // 40 % 5).astype(np.uint8)
        return Loaded(np.stack([mask] * 3, axis=2), mask)


def test_order_and_geometry_of_samples_stay_as_they_are() -> None:
    """Every draw of a sample but those of its colours: another digest means other batches for the same seed."""
    digest = hashlib.sha256()
    for transform in (
        TrainTransform((48, 48), pad="corner", cat_max_ratio=0.5, augment=AUGMENT[:2]),
        TrainTransform((48, 48), None, {"short_side": 80}, (0.9, 1.1), pad="random", augment=AUGMENT),
    ):
        dataset = SegmentationDataset(Ramp("train", train_length=7), transform, seed=3)
        for batch in BatchPlan(7, 4, 20, seed=3):
            for key in batch:
                digest.update(dataset[key]["mask"].numpy().tobytes())
    assert digest.hexdigest() == "0cfd3e984a630d3b63c82b8238aae4f44f0a36aa51e6334be7686e72a7cfb101"
