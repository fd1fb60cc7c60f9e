"""The cache of decoded pictures: the same pixels as the files, or an error."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isaseg.data.cache import CachedPicture, CacheError, LazyArray, cached_picture, write_picture
from isaseg.data.dataset import SegmentationDataset
from isaseg.data.source import FileSource
from isaseg.data.tools.build_cache import build_cache
from isaseg.data.transforms import HorizontalFlip, PhotometricDistortion, TrainTransform
from isaseg.errors import DataError
from tests.data.cases import BY_NAME


def picture(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """Noise with flat areas, so that tiles differ in size."""
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    pixels[: shape[0] // 2, : shape[1] // 2] = 7
    return pixels


def written(tmp_path: Path, pixels: np.ndarray) -> tuple[Path, Path]:
    """Return a cache file of `pixels`, and the file that it was made from."""
    source = tmp_path / "source.png"
    source.write_bytes(b"what it was made from")
    write_picture(tmp_path / "a" / "picture.image", pixels, source)
    return tmp_path / "a" / "picture.image", source


def whole(path: Path, source: Path) -> np.ndarray:
    found = cached_picture(path, source)
    assert found is not None
    return found[:, :]


def cached(name: str, tmp_path: Path) -> FileSource:
    """Return the training split of a fake data set with its whole cache."""
    source = BY_NAME[name].load(BY_NAME[name].fake(tmp_path / "data"))
    source.cache = tmp_path / "cache"
    assert build_cache(source, 1).errors == []
    return source


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_a_window_of_the_cache_is_that_of_the_array(work: Path, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 600))
    kinds = [((), "uint8"), ((), "uint16"), ((), ">u2"), ((), "int64"), ((3,), "uint8"), ((4,), "uint16")]
    channels, dtype = data.draw(st.sampled_from(kinds))
    pixels = picture((height, width, *channels), dtype, height)
    lazy = cached_picture(*written(work, pixels))
    assert lazy is not None and lazy.shape == pixels.shape
    for _ in range(4):
        window = tuple(
            slice(start, data.draw(st.integers(start + 1, size)))
            for size in (height, width)
            for start in [data.draw(st.integers(0, size - 1))]
        )
        expected = pixels[window]
        got = lazy[window]  # type: ignore[index]
        assert got.dtype == pixels.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(lazy[:, :], pixels)
    np.testing.assert_array_equal(lazy[-1:, : width + 9], pixels[-1:])


@pytest.mark.parametrize("shape", [(2, 3), (40, 30, 3), (70, 300)])
def test_any_damaged_byte_is_an_error_and_never_another_pixel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    pixels = picture(shape)
    path, source = written(tmp_path, pixels)
    good = path.read_bytes()
    refused = 0
    for place in {*range(300), *range(0, len(good), 61)} & set(range(len(good))):
        for value in (good[place] ^ 1, good[place] ^ 8, ord("9")):
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1 :])
            try:
                assert np.array_equal(whole(path, source), pixels), f"byte {place}"
            except CacheError as error:
                refused += 1
                assert str(path) in str(error)
    assert refused > 200


def test_a_file_that_is_cut_or_has_more_is_an_error(tmp_path: Path) -> None:
    path, _ = written(tmp_path, picture((70, 300)))
    good = path.read_bytes()
    for content in [good[:n] for n in (*range(300), *range(300, len(good), 97))] + [
        good + b"\0",
        b"\0" * 500,
    ]:
        path.write_bytes(content)
        with pytest.raises(CacheError):
            CachedPicture(path)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, source = written(tmp_path, picture((20, 20)))
    good = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_picture(path, picture((20, 20), seed=1), source)
    assert path.read_bytes() == good
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_is_of_one_file_of_one_size_and_time(tmp_path: Path) -> None:
    path, source = written(tmp_path, picture((9, 9)))
    stat, content = source.stat(), source.read_bytes()
    assert cached_picture(path, source) is not None
    moved = source.with_name("moved.png")
    for file, text, later in ((source, content, 1), (source, content + b"!", 0), (moved, content, 0)):
        file.write_bytes(text)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))
        assert cached_picture(path, file) is None


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "folder16", "coco_stuff", "pascal_context_mat"])
def test_samples_are_the_same_with_and_without_cache(name: str, tmp_path: Path) -> None:
    with_cache = cached(name, tmp_path)
    plain = BY_NAME[name].load(tmp_path / "data")
    augment = [PhotometricDistortion(), HorizontalFlip(p=0.5)]
    transform = TrainTransform((24, 40), cat_max_ratio=0.75, aspect=(0.9, 1.1), augment=augment)
    sets = [
        [SegmentationDataset(source, t, seed=3) for t in (None, transform)] for source in (plain, with_cache)
    ]
    for index in range(len(plain)):
        loaded = with_cache.load(index)
        assert isinstance(loaded.image, LazyArray) and isinstance(loaded.mask, LazyArray)
        for ours, theirs in zip(plain.load(index), loaded, strict=True):
            assert ours is theirs or np.array_equal(ours[:, :], theirs[:, :])
        keys: list[Any] = [index, *((index, step) for step in range(6))]
        for key in keys:
            ours, theirs = (both[isinstance(key, tuple)][key] for both in sets)
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[k], theirs[k]) for k in ours), key


def test_what_the_cache_lacks_is_decoded_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = cached("camvid", tmp_path)
    expected = [source.decode_image(i) for i in range(len(source))]
    for index in (0, 2):
        for path in source.cache_files(index):
            path.unlink()
    with caplog.at_level(logging.WARNING):
        images = [source.load(i).image for i in range(len(source))]
    assert [isinstance(image, LazyArray) for image in images] == [False, True, False]
    assert all(np.array_equal(a[:, :], b) for a, b in zip(images, expected, strict=True))
    (record,) = caplog.records
    assert "CamVid train is incomplete, older" in record.message
    assert "fix it with `isaseg data cache`" in record.message


@pytest.mark.parametrize(("place", "cure"), [(40, "cache`"), (-3, "cache verify=true`")])
def test_a_damaged_cache_is_named_with_its_cure(place: int, cure: str, tmp_path: Path) -> None:
    source = cached("camvid", tmp_path)
    path = source.cache_files(1)[0]
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"'{path}'.*remove it, or make it again with `isaseg data {cure}"):
        source.load(1).image[:, :]
    assert build_cache(source, 1, verify="verify" in cure).repaired == [path], "the cure cures"
    source.load(1).image[:, :]
