"""The file source refuses whatever would train on wrong labels, and says which file, what and why."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isaseg.data.check import check_files
from isaseg.data.dataset import SegmentationDataset
from isaseg.data.index import Pair
from isaseg.data.info import DatasetInfo
from isaseg.data.sets.lamps import Lamps
from isaseg.data.source import FileSource, Loaded
from isaseg.data.transforms import TrainTransform
from isaseg.errors import DataError

SIZE = (12, 16)
INFO = DatasetInfo("toy", ("road", "car"), np.zeros((2, 3), np.uint8), {0: 255, 7: 0, 8: 1})


def source(
    tmp_path: Path, mask: np.ndarray, modes: tuple[str, ...] = ("L",), palette: bool = False
) -> FileSource:
    Image.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(tmp_path / "image.png")
    picture = Image.fromarray(mask)
    if palette:
        picture.putpalette([255 - c % 256 for c in range(768)])
    picture.save(tmp_path / "mask.png")
    pair = Pair("it", tmp_path / "image.png", tmp_path / "mask.png")
    return FileSource(INFO, "train", [pair], modes)


def labels(dtype: type = np.uint8) -> np.ndarray:
    return np.resize(np.array([0, 7, 8], dtype), SIZE)


@pytest.mark.parametrize(
    ("mode", "dtype", "palette"), [("L", np.uint8, False), ("P", np.uint8, True), ("I;16", np.uint16, False)]
)
def test_raw_ids_become_train_ids_in_every_declared_mode(
    tmp_path: Path, mode: str, dtype: type, palette: bool
) -> None:
    loaded = source(tmp_path, labels(dtype), (mode,), palette)
    with Image.open(tmp_path / "mask.png") as saved:
        assert saved.mode == mode
    image, mask, far = loaded.load(0)
    assert mask.tolist() == np.resize(np.array([255, 0, 1]), SIZE).tolist()
    assert image.shape == (*SIZE, 3)
    assert mask.dtype == image.dtype == np.uint8
    assert far is None


@pytest.mark.parametrize(
    ("value", "dtype", "mode"), [(34, np.uint8, "L"), (254, np.uint8, "L"), (300, np.uint16, "I;16")]
)
def test_an_unknown_id_names_file_id_count_and_allowed_ids(
    tmp_path: Path, value: int, dtype: type, mode: str
) -> None:
    mask = labels(dtype)
    mask[3, 4:9] = value
    with pytest.raises(
        DataError, match=rf"labels 0, 7 to 8 in toy, got the id {value} in 5 pixels .*mask\.png.*train"
    ):
        source(tmp_path, mask, (mode,)).load(0)


def test_a_mask_of_another_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"indices of mode L or P, got mode='RGB' in '.*mask\.png' \(toy, train\)"
    ):
        source(tmp_path, np.zeros((*SIZE, 3), np.uint8), ("L", "P")).load(0)
    with pytest.raises(DataError, match="mode='P'"):
        source(tmp_path, labels(), ("L",), palette=True).load(0)


def test_sizes_must_agree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"16x12 in image='.*image\.png' and 15x12 in mask='.*mask\.png'"):
        source(tmp_path, labels()[:, :15]).load(0)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zeros(path: Path) -> None:
    path.write_bytes(b"\0" * 200)


@pytest.mark.parametrize("spoil", [_truncate, _empty, _zeros])
@pytest.mark.parametrize("name", ["image.png", "mask.png"])
def test_a_damaged_file_is_named(tmp_path: Path, spoil: Callable[[Path], None], name: str) -> None:
    loaded = source(tmp_path, labels())
    spoil(tmp_path / name)
    with pytest.raises(DataError, match=rf"readable file: .* in '.*{name}' \(toy, train\)"):
        check_files(loaded)


def test_half_a_jpeg_and_a_bomb_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = source(tmp_path, labels())
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="readable file"):
        loaded.load(0)
    loaded = source(tmp_path, labels())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="readable file"):
        loaded.load(0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_become_rgb(tmp_path: Path, mode: str) -> None:
    loaded = source(tmp_path, labels())
    red = Image.new("RGB", (SIZE[1], SIZE[0]), (200, 10, 30)).convert(mode)
    red.save(tmp_path / "image.png", format="TIFF")
    image = loaded.load(0)[0]
    assert image.shape == (*SIZE, 3)
    assert np.ptp(image[0, 0].astype(int)) < 3 if mode == "L" else image[0, 0, 0] > 150


def test_a_16_bit_image_is_refused(tmp_path: Path) -> None:
    loaded = source(tmp_path, labels())
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(tmp_path / "image.png")
    with pytest.raises(DataError, match="8 bits a channel"):
        loaded.load(0)


def test_check_decodes_all_of_a_small_split_and_some_of_a_large_one(tmp_path: Path) -> None:
    small = source(tmp_path, labels())
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
    with pytest.raises(DataError, match=r"train ids 0 to 1, .*got \[2\]"):
        FileSource(INFO, "train", [], ids={0: 2})
    many = DatasetInfo("many", tuple(map(str, range(255))), np.zeros((255, 3), np.uint8), {0: 255})
    with pytest.raises(DataError, match="at most 254"):
        FileSource(many, "train", [])


def test_ids_out_of_range_of_any_integer_type_are_refused(tmp_path: Path) -> None:
    loaded = source(tmp_path, labels())
    for value in (-1, 2**16, 2**40):
        raw = labels(np.int64)
        raw[2, 3] = value
        with pytest.raises(DataError, match=f"got the id {value} in 1 pixels"):
            loaded.to_train_ids(raw, 0)


def test_without_labels_there_is_an_image_alone(tmp_path: Path) -> None:
    pair = source(tmp_path, labels()).pairs[0]
    unlabelled = FileSource(INFO, "test", [Pair("it", pair.image, None)])
    assert not unlabelled.labelled
    sample = SegmentationDataset(unlabelled)[0]
    assert sample.keys() == {"image", "id", "size"}
    assert sample["size"] == SIZE
    assert sample["image"].shape == (3, *SIZE)


def test_only_the_image_is_resized_for_evaluation(tmp_path: Path) -> None:
    sample = SegmentationDataset(source(tmp_path, labels()), resize={"short_side": 24})[0]
    assert sample["image"].shape == (3, 24, 32)
    assert sample["mask"].shape == SIZE


def _good_and_bad(tmp_path: Path) -> FileSource:
    good = source(tmp_path, labels()).pairs[0]
    (tmp_path / "bad.png").write_bytes(b"")
    pairs = [good] * 5 + [Pair("broken", tmp_path / "bad.png", good.mask)] + [good] * 2
    return FileSource(INFO, "train", pairs)


def test_d3_a_bad_training_sample_is_replaced_only_where_that_is_allowed(tmp_path: Path) -> None:
    loaded, cut = _good_and_bad(tmp_path), TrainTransform((8, 8))
    with pytest.raises(DataError, match=r"bad\.png"):
        SegmentationDataset(loaded, cut)[(5, 3)]
    with pytest.raises(DataError, match=r"bad\.png"):
        SegmentationDataset(loaded, None, max_bad=2)[5]
    first = SegmentationDataset(loaded, cut, max_bad=2)[(5, 3)]
    again = SegmentationDataset(loaded, cut, max_bad=2)[(5, 3)]
    assert first["id"] == "it"
    assert len(first["bad"]) == 1
    assert re.match(r"broken: .*bad\.png", first["bad"][5])
    assert torch.equal(first["image"], again["image"])
    assert "bad" not in SegmentationDataset(loaded, cut, max_bad=2)[(4, 3)]
    all_bad = FileSource(INFO, "train", [loaded.pairs[5]])
    with pytest.raises(DataError, match=r"bad\.png"):
        SegmentationDataset(all_bad, cut, max_bad=2)[(0, 0)]


def test_d3_the_check_counts_what_may_be_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = _good_and_bad(tmp_path)
    check_files(loaded, max_bad=1)
    assert "bad.png" in caplog.text
    with pytest.raises(DataError, match=r"bad\.png"):
        check_files(loaded)


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
