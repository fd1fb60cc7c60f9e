"""Labels of other formats as PNG: the same ids, the same pixels as the published conversions."""

import contextlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.decode import read_labels
from isaseg.data.info import dataset_info
from isaseg.data.tools.convert import convert_context, mat_to_png
from isaseg.data.tools.detail import Region, decode_rle, paint
from isaseg.data.tools.prepare import prepare
from isaseg.errors import DataError
from tests.data.tools.archives import archives_of_context_json, archives_of_voc, encode_rle

SHARED = Path(__file__).parents[4] / "shared" / "data" / "pascal_context"
REAL = SHARED / "VOCdevkit" / "VOC2010" / "SegmentationClassContext"
IDS = dataset_info("pascal_context_60").ids
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")


def detail(regions: list[dict[str, Any]], **image: Any) -> dict[str, Any]:
    first = {
        "image_id": 2008000002,
        "file_name": "2008_000002.jpg",
        "height": 4,
        "width": 6,
        "phase": "train",
    }
    return {"images": [first | image], "annos_segmentation": regions}


def region(mask: np.ndarray, category: int, image_id: int = 2008000002) -> dict[str, Any]:
    code = {"size": list(mask.shape), "counts": encode_rle(mask)}
    return {"image_id": image_id, "category_id": category, "segmentation": code}


def painted(*regions: tuple[int, np.ndarray]) -> np.ndarray:
    """Return what regions of (category, mask) give on an image of the first mask's size."""
    entries = [Region.model_validate_json(json.dumps(region(mask, category))) for category, mask in regions]
    return paint(*regions[0][1].shape, entries, IDS)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (7, 1), (5, 6), (40, 50), (300, 200)])
@pytest.mark.parametrize("kind", ["empty", "full", "noise", "first", "blocks"])
def test_run_lengths_decode_to_the_mask(size: tuple[int, int], kind: str) -> None:
    rows, columns = np.indices(size)
    mask = {
        "empty": np.zeros(size, bool),
        "full": np.ones(size, bool),
        "noise": np.random.default_rng(0).random(size) < 0.3,
        "first": (rows + columns) == 0,
        "blocks": (rows // 17 + columns // 31) % 2
        == 1,  # long runs, of more than one digit, growing and shrinking
    }[kind]
    decoded = decode_rle(encode_rle(mask), *size)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, mask)


@pytest.mark.parametrize(
    "counts",
    ["", "é", " 8", "\x7f8", "7o", "7", "h08", "o" * 6 + "0", "PPPPP?", "0" * 100, "O", "o" * 10_000_000],
)
def test_hostile_run_lengths_are_refused(counts: str) -> None:
    """Other characters, no end, too short, too long, 2^29 pixels, none, a negative number, one of millions of digits."""
    with pytest.raises(ValueError, match="expected .*run lengths"):
        decode_rle(counts, 4, 6)


def test_any_text_is_decoded_or_refused() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(chr(rng.randint(48, 111)) for _ in range(rng.randint(1, 12)))
        with contextlib.suppress(ValueError):
            assert decode_rle(text, 4, 6).shape == (4, 6)


def test_a_later_region_covers_an_earlier_one() -> None:
    big, small = np.ones((4, 6), bool), np.zeros((4, 6), bool)
    big[0], small[1:3, 2:4] = False, True
    expected = np.where(small, 59, np.where(big, 1, 0))
    assert np.array_equal(painted((2, big), (458, small)), expected)
    assert np.array_equal(painted((458, small), (2, big)), np.where(big, 1, 0))


@needs_shared
def test_genuine_regions_give_the_genuine_labels(tmp_path: Path) -> None:
    regions = json.loads((SHARED / "detail_rle_subset.json").read_bytes())
    sizes = {entry["image_id"]: entry["segmentation"]["size"] for entry in regions}
    assert len(sizes) == 79
    images = [
        {
            "image_id": i,
            "file_name": f"{str(i)[:4]}_{str(i)[4:]}.jpg",
            "height": h,
            "width": w,
            "phase": "val",
        }
        for i, (h, w) in sizes.items()
    ]
    source = tmp_path / "trainval_merged.json"
    source.write_text(json.dumps({"images": images, "annos_segmentation": regions}))
    convert_context(tmp_path, tmp_path, {source.name: source})
    made = list((tmp_path / "SegmentationClassContext").iterdir())
    assert len(made) == 79
    for path in made:
        assert np.array_equal(read_labels(path, ("L",)), np.asarray(Image.open(REAL / path.name))), path.name


@needs_shared
def test_matlab_files_give_the_genuine_labels(tmp_path: Path) -> None:
    sources = sorted((SHARED / "trainval_mat_fixture").glob("*.mat"))
    assert len(sources) == 8
    for source in sources:
        mat_to_png(source, tmp_path / "a.png", "LabelMap", IDS)
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "a.png")), np.asarray(Image.open(REAL / f"{source.stem}.png"))
        )


MASK = np.ones((4, 6), bool)
BAD: dict[str, Callable[[], Any]] = {
    "no json": lambda: "{",
    "a list": lambda: "[]",
    "deep": lambda: "[" * 100_000,
    "path": lambda: detail([], file_name="../../x.jpg"),
    "no jpg": lambda: detail([], file_name="x.png"),
    "name": lambda: detail([], file_name=3),
    "huge": lambda: detail([], height=10**6, width=10**6),
    "negative": lambda: detail([], height=-4, width=-6),
    "size": lambda: detail([], height="4"),
    "fraction": lambda: detail([], height=4.5),
    "unknown image": lambda: detail([region(MASK, 2, 5)]),
    "polygon": lambda: detail([region(MASK, 2) | {"segmentation": [[0, 0, 1, 1]]}]),
    "uncompressed": lambda: detail([region(MASK, 2) | {"segmentation": {"size": [4, 6], "counts": [0, 24]}}]),
    "category": lambda: detail([region(MASK, 2) | {"category_id": "2"}]),
    "two of a name": lambda: (
        detail([]) | {"images": [detail([])["images"][0], detail([], image_id=3)["images"][0]]}
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_json_that_is_not_the_merged_one_is_refused(tmp_path: Path, bad: str) -> None:
    content = BAD[bad]()
    path = tmp_path / "trainval_merged.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=r"trainval_merged\.json', got .*fetch it again"):
        convert_context(tmp_path / "root", tmp_path / "root", {path.name: path})
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"category_id": 460}, "of the 459, got 460"),
        ({"segmentation": {"size": [5, 6], "counts": "0"}}, "inside"),
    ],
)
def test_a_region_that_does_not_fit_is_refused(tmp_path: Path, change: Mapping[str, Any], match: str) -> None:
    path = tmp_path / "trainval_merged.json"
    path.write_text(json.dumps(detail([region(MASK, 2) | change])))
    with pytest.raises(DataError, match=f"2008_000002.*{match}"):
        convert_context(tmp_path / "root", tmp_path / "root", {path.name: path})


@pytest.mark.parametrize(("strange", "dtype"), [(460, np.uint16), (-1, np.int16), (70000, np.int32)])
def test_a_matlab_file_that_is_another_is_refused(tmp_path: Path, strange: int, dtype: type) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"LabelMap": np.array([[1, strange]], dtype)})
    with pytest.raises(DataError, match=rf"a.mat'.*from 0 to 459, got \[{strange}\]"):
        mat_to_png(tmp_path / "a.mat", tmp_path / "a.png", "LabelMap", IDS)
    assert not (tmp_path / "a.png").exists()


def prepared(tmp_path: Path, name: str, archives_of: Callable[[Path, Path], None]) -> Path:
    """Return the folder of VOC in a prepared root."""
    archives_of(tmp_path / "made", tmp_path / "archives")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isaseg.data.tools.prepare.SHA256", {})  # the archives are not the published ones
        prepare(name, tmp_path / "archives", tmp_path / "root")
    return next((tmp_path / "root" / "VOCdevkit").iterdir())


def test_trainaug_is_voc_and_sbd_without_val(tmp_path: Path) -> None:
    voc, sbd = prepared(tmp_path, "pascal_voc", archives_of_voc), tmp_path / "made" / "sbd"
    names = (voc / "ImageSets" / "Segmentation" / "trainaug.txt").read_text().split()
    assert names == ["2007_000000", "2007_000001", "2009_000000", "2009_000001"]
    masks = voc / "SegmentationClassAug"
    assert sorted(path.stem for path in masks.iterdir()) == names
    for name in names[:2]:  # with their border
        assert (masks / f"{name}.png").read_bytes() == (
            voc / "SegmentationClass" / f"{name}.png"
        ).read_bytes()
    for name in names[2:]:
        expected = scipy.io.loadmat(sbd / "cls" / f"{name}.mat")["GTcls"]["Segmentation"][0, 0]
        with Image.open(masks / f"{name}.png") as picture:
            assert np.array_equal(picture, expected)
    original, copied = voc / "JPEGImages" / "2007_000000.jpg", voc / "JPEGImages" / "2009_000001.jpg"
    assert original.read_bytes() != (sbd / "img" / original.name).read_bytes()
    assert copied.read_bytes() == (sbd / "img" / copied.name).read_bytes()
    assert not (voc / "SBD" / "inst").exists()


def test_the_json_of_context_has_labels_and_lists(tmp_path: Path) -> None:
    voc = prepared(tmp_path, "pascal_context", archives_of_context_json)
    assert (voc / "ImageSets" / "SegmentationContext" / "val.txt").read_text() == "2010_000000\n2010_000001\n"
    assert not (voc / "SegmentationClassContext" / "test.png").exists()
    labels = np.asarray(Image.open(voc / "SegmentationClassContext" / "2010_000001.png"))
    expected = np.full((39, 49), 2)
    expected[0, 0] = 0
    assert np.array_equal(labels, expected)
