"""Building the cache: all of it, again, after an interruption, after damage, without space."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.cache import CachedPicture, write_picture
from isaseg.data.sets.camvid import camvid
from isaseg.data.sets.cityscapes import cityscapes
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.source import FileSource
from isaseg.data.tools import build_cache as module
from isaseg.data.tools.build_cache import build_cache, cache_sample
from tests import fakes

N = 12


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    found = camvid("val", str(fakes.make_fake_camvid(tmp_path / "data", N)))
    assert found is not None
    found.cache = tmp_path / "cache" / "camvid"
    return found


def files(source: FileSource) -> dict[str, tuple[int, bytes]]:
    """Return time and content of every file in the cache, temporary ones too."""
    assert source.cache is not None
    found = [p for p in source.cache.rglob("*") if p.is_file()]
    return {p.relative_to(source.cache).as_posix(): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


def test_every_file_is_written_once(source: FileSource) -> None:
    first = build_cache(source, 2)
    before = files(source)
    assert before.keys() == {f"val/0001TP_{i:06d}.{kind}" for i in range(N) for kind in ("image", "labels")}
    assert (first.samples, first.written, first.repaired, first.errors) == (N, 2 * N, [], [])
    for verify in (False, True):
        again = build_cache(source, 1, verify)
        assert (again.samples, again.written) == (N, 0)
        assert files(source) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_the_next_run_continues_an_interrupted_one(
    source: FileSource, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, *rest: object) -> None:
        if "000009" in path.name:
            raise error
        write_picture(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_picture", interrupted)
    with pytest.raises(type(error)):
        build_cache(source, 1)
    before = files(source)
    assert 0 < len(before) < 2 * N
    monkeypatch.undo()
    assert build_cache(source, 1).written == 2 * N - len(before)
    assert before.items() <= files(source).items(), "what was there is kept"


def test_a_changed_file_is_cached_again(source: FileSource) -> None:
    build_cache(source, 1)
    image = source.pairs[3].image
    image.write_bytes(source.pairs[4].image.read_bytes())
    os.utime(image, ns=(0, 0))
    report = build_cache(source, 1)
    assert (report.written, report.repaired) == (1, [])
    cached = CachedPicture(source.cache_files(3)[0])
    assert np.array_equal(cached.read(slice(0, 48), slice(0, 64)), source.decode_image(4))


def test_a_sample_that_cannot_be_decoded_is_reported_and_the_others_are_cached(source: FileSource) -> None:
    for index, file in ((1, source.pairs[1].image), (5, source.pairs[5].mask)):
        assert file is not None
        file.write_bytes(file.read_bytes()[:60])
    report = build_cache(source, 2)
    assert (report.samples, len(report.errors)) == (N - 2, 2)
    for index, text in zip((1, 5), report.errors, strict=True):
        assert f"{source.name(index)}.png' (CamVid, val); replace" in text
    assert len(files(source)) == 2 * (N - 2) + 1, "the image of the damaged labels is fine"


def test_a_split_without_labels_has_images_only(tmp_path: Path) -> None:
    source = cityscapes("test", str(fakes.make_fake_cityscapes(tmp_path / "data", test=True)))
    assert source is not None
    source.cache = tmp_path / "cache"
    report = build_cache(source, 1)
    assert report.samples == report.written == len(source)
    assert all(name.endswith(".image") for name in files(source))


@pytest.mark.parametrize(("largest", "dtype"), [(182, "uint8"), (300, "uint16")])
def test_doubles_of_matlab_are_cached_as_bytes(largest: int, dtype: str, tmp_path: Path) -> None:
    source = coco_stuff("train", str(fakes.make_fake_coco_stuff(tmp_path / "data")))
    assert source is not None
    ids = {**source.ids, largest: 0}
    source = FileSource(source.info, source.split, source.pairs, variable="S", ids=ids)
    source.cache = tmp_path / "cache"
    labels = np.full(source.decode_image(0).shape[:2], 1.0)
    labels[3, 4] = largest
    mask = source.pairs[0].mask
    assert mask is not None
    scipy.io.savemat(mask, {"S": labels})
    assert cache_sample(source, 0).written == 2
    cached = CachedPicture(source.cache_files(0)[1])
    assert cached.dtype == dtype
    assert np.array_equal(cached.read(slice(0, labels.shape[0]), slice(0, labels.shape[1])), labels)
    assert cache_sample(source, 0, verify=True).written == 0


def test_an_unknown_id_is_reported_before_it_is_cached(source: FileSource) -> None:
    """A crop may never meet it."""
    path = source.pairs[1].mask
    assert path is not None
    raw = source.decode_labels(1).copy()
    raw[0, 0] = 251
    Image.fromarray(raw).save(path)
    report = build_cache(source)
    assert len(report.errors) == 1
    assert f"251 in 1 pixels of mask='{path}'" in report.errors[0]
    assert not source.cache_files(1)[1].exists()
