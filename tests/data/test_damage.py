"""What goes wrong with files, in every data set: refused before training, by name, with what to do."""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.check import check_files, size_fault
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.sets.lip import lip
from isaseg.data.sets.pascal_voc import pascal_voc
from isaseg.data.source import FileSource
from isaseg.errors import DataError
from tests import fakes
from tests.data.cases import BY_NAME, SHARED, Case, every_case, mask_of


@pytest.fixture(params=["fake", "real"])
def root(request: pytest.FixtureRequest, tmp_path: Path, case: Case) -> Path:
    """Give the data set in a folder of its own: the fake, and one real pair where there are real samples."""
    if request.param == "fake":
        return case.fake(tmp_path)
    if case.real is None or not (SHARED / "data" / case.real).is_dir():
        pytest.skip("no real samples here")
    return _copy_one(case.load(SHARED / "data" / case.real), SHARED / "data" / case.real, tmp_path)


def _copy_one(source: FileSource, real: Path, target: Path) -> Path:
    """Copy one pair of a source and the lists that name it."""
    of_sbd = [p for p in source.pairs if p.mask and p.mask.parent.name == "SegmentationClassAug"]
    pair = (of_sbd or source.pairs)[0]
    assert pair.mask is not None
    keep = [
        pair.image,
        pair.mask,
        *real.rglob("*_id.txt"),
        *real.rglob("ImageSets/**/*.txt"),
        *real.rglob("imageLists/*"),
    ]
    for path in keep:
        copy = target / path.resolve().relative_to(real.resolve())
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            copy.write_text(f"{pair.name}\n")
        else:
            shutil.copyfile(path, copy)
    if of_sbd:
        voc = target / "VOCdevkit" / "VOC2012"
        (voc / "SegmentationClass").mkdir()
        shutil.copyfile(pair.mask, voc / "SegmentationClass" / "of another image.png")
    return target


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the labels of a mask again, changed, in the format that they had."""
    if path.suffix == ".mat":
        content = {k: v for k, v in scipy.io.loadmat(path).items() if not k.startswith("__")}
        key = "S" if "S" in content else "LabelMap"
        scipy.io.savemat(path, {**content, key: change(content[key])})
        return
    with Image.open(path) as picture:
        labels, palette = np.asarray(picture), picture.getpalette()
    changed = Image.fromarray(change(labels.copy()))
    if palette is not None:
        changed.putpalette(palette)
    changed.save(path)


def truncated(source: FileSource, case: Case, mask: bool = False) -> Path:
    path = mask_of(source) if mask else source.pairs[0].image
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def other_size(source: FileSource, case: Case) -> Path:
    rewrite(mask_of(source), lambda labels: np.ascontiguousarray(labels[:, 1:]))
    return mask_of(source)


def unknown_id(source: FileSource, case: Case) -> Path:
    def put(labels: np.ndarray) -> np.ndarray:
        labels[0, :3] = case.wrong_id
        return labels

    rewrite(mask_of(source), put)
    return mask_of(source)


def colours(source: FileSource, case: Case) -> Path:
    path = mask_of(source)
    if path.suffix == ".mat":
        labels = next(v for k, v in scipy.io.loadmat(path).items() if k in ("S", "LabelMap"))
        scipy.io.savemat(
            path, {"S": np.stack([labels] * 3, axis=-1), "LabelMap": np.stack([labels] * 3, axis=-1)}
        )
        return path
    with Image.open(path) as picture:
        Image.fromarray(np.stack([np.asarray(picture).astype(np.uint8)] * 3, axis=-1)).save(path)
    return path


@every_case
def test_whole_files_pass(case: Case, root: Path) -> None:
    check_files(case.load(root))


@every_case
@pytest.mark.parametrize(
    ("spoil", "told", "cure"),
    [
        (truncated, "readable file", "replace it"),
        (partial(truncated, mask=True), "readable file", "replace it"),
        (other_size, "image and mask of one size", "take the files of the official archive"),
        (unknown_id, "got the id ID in 3 pixels", "fix the file or the id table"),
        (colours, "indices of mode|matrix of labels", "replace it"),
    ],
)
def test_d3_to_d6_a_wrong_file_is_refused_by_name(
    case: Case, root: Path, spoil: Callable[[FileSource, Case], Path], told: str, cure: str
) -> None:
    source = case.load(root)
    path = spoil(source, case)
    told = told.replace("ID", str(case.wrong_id))
    with pytest.raises(DataError, match=rf"({told}).*{path.name}.*{cure}") as error:
        check_files(source)
    assert str(path) in str(error.value)
    assert source.info.title in str(error.value)


@every_case
@pytest.mark.parametrize("missing", ["image", "mask"])
def test_d1_a_missing_file_is_named(case: Case, root: Path, missing: str) -> None:
    pair = case.load(root).pairs[-1]
    getattr(pair, missing).unlink()
    with pytest.raises(
        DataError, match=rf"(?s)got \d of \d pairs in data\.root=.*{missing} of.*data\.root=/path"
    ) as error:
        case.load(root)
    assert f"{missing} of '{pair.image if missing == 'mask' else pair.mask}'" in str(error.value)


@every_case
@pytest.mark.parametrize("split", ["train", "val"])
def test_d1_an_empty_folder_shows_the_layout(case: Case, tmp_path: Path, split: str) -> None:
    known = case.load(case.fake(tmp_path / "fake")).info
    (tmp_path / "empty").mkdir()
    for root in ("empty", "absent"):
        with pytest.raises(DataError) as error:
            case.load(tmp_path / root, split)
        for part in (
            known.title,
            f"'{split}'" if split == "val" else "split '",
            str(tmp_path / root),
            known.layout,
        ):
            assert part in str(error.value)


@every_case
def test_d1_half_an_archive_is_counted(case: Case, tmp_path: Path) -> None:
    for half in ("image", "mask"):
        root = case.fake(tmp_path / half, n=7)
        source = case.load(root)
        for place in {getattr(pair, half).parent for pair in source.pairs}:
            for path in place.iterdir():
                path.unlink()
        with pytest.raises(DataError, match=rf"got 0 of {len(source)} pairs .*missing: .*, \.\.\.;"):
            case.load(root)


def test_d3_in_training_so_many_bad_files_may_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = lip("train", str(fakes.make_fake_lip(tmp_path, n=3)))
    assert source is not None
    for pair in source.pairs[:2]:
        pair.image.write_bytes(b"")
    with pytest.raises(DataError, match="readable file"):
        check_files(source, max_bad=1)
    with caplog.at_level(logging.WARNING):
        check_files(source, max_bad=2)
    for pair in source.pairs[:2]:
        assert str(pair.image) in caplog.text


@every_case
def test_d2_another_number_of_files_is_told(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = case.load(case.fake(tmp_path))
    published = source.info.splits.get(source.split)
    with caplog.at_level(logging.WARNING):
        check_files(source)
    if case.name.startswith("folder"):
        assert (size_fault(source), caplog.text) == (None, "")
        check_files(source, strict_size=True)
        return
    title = source.info.title
    told = (
        f"expected the published {published} images in split '{source.split}' of {title}, got {len(source)}"
    )
    assert told in caplog.text
    with pytest.raises(DataError, match=f"{told}; complete the data set, or set data.strict_size=false"):
        check_files(source, strict_size=True)


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff", "lip", "pascal_context", "pascal_voc"])
def test_d4_an_exif_rotated_jpeg_is_refused_with_both_sizes(tmp_path: Path, name: str) -> None:
    case = BY_NAME[name]
    source = case.load(case.fake(tmp_path))
    path = source.pairs[0].image
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, as its mask is
    with Image.open(path) as picture:
        width, height = picture.size
        turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(path, exif=exif)
    with pytest.raises(
        DataError,
        match=rf"got {height}x{width} in image='{path}' and {width}x{height} in mask='.*EXIF orientation",
    ):
        check_files(source)


@pytest.mark.parametrize(
    ("value", "dtype"), [(-1, np.int16), (300, np.int16), (254, np.uint8), (34, np.float64)]
)
def test_d5_ids_of_every_number_type_are_compared(tmp_path: Path, value: int, dtype: type) -> None:
    root = fakes.make_fake_coco_stuff(tmp_path)
    source = coco_stuff("train", str(root))
    assert source is not None
    mask = mask_of(source)
    labels = scipy.io.loadmat(mask)["S"].astype(dtype)
    labels[4, 5:7] = value
    scipy.io.savemat(mask, {"S": labels})
    if value == 34:  # a number of MATLAB is a double
        assert fakes.labels_of(source, 0)[4, 5] == 29
        return
    with pytest.raises(DataError, match=rf"labels 0 to 11, 13 to 25, .*got the id {value} in 2 pixels"):
        check_files(source)


@every_case
@pytest.mark.parametrize("what", ["image", "mask", "images", "masks"])
def test_d9_links_out_of_root_are_refused(case: Case, tmp_path: Path, what: str) -> None:
    root = case.fake(tmp_path / "root")
    pair = case.load(root).pairs[-1]
    assert pair.mask is not None
    path: Any = {
        "image": pair.image,
        "mask": pair.mask,
        "images": pair.image.parent,
        "masks": pair.mask.parent,
    }[what]
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(
        DataError, match=rf"below data\.root='.*', got the link '.*' to '{tmp_path}/outside'; copy"
    ):
        case.load(root)


@pytest.mark.parametrize("name", ["coco_stuff", "lip", "pascal_context", "pascal_voc", "pascal_voc_sbd"])
def test_d9_a_list_that_leads_out_of_root_finds_nothing(tmp_path: Path, name: str) -> None:
    case = BY_NAME[name]
    root = case.fake(tmp_path / "root")
    source = case.load(root)
    assert source.pairs[0].mask is not None
    for path in (source.pairs[0].image, source.pairs[0].mask):  # there is such a file, one folder above
        shutil.copyfile(path, tmp_path / f"x{path.suffix}")
        shutil.copyfile(path, path.parents[1] / f"x{path.suffix}")
    lists = [path for path in root.rglob("*.txt") if path.stem.removesuffix("_id") in ("train", "trainaug")]
    for path in lists:
        path.write_text(f"{source.name(0)}\n../x\n")
    with pytest.raises(DataError, match=r"got 1 of 2 pairs .*missing: image of '\.\./x'"):
        case.load(root)


@pytest.mark.parametrize("name", ["Straße 東京", "a  b", "it's (1)"])
def test_d9_names_with_spaces_and_letters_of_all_kinds_are_read(tmp_path: Path, name: str) -> None:
    root = fakes.make_fake_pascal_voc(tmp_path)
    voc = root / "VOCdevkit" / "VOC2012"
    for place in ("JPEGImages/2007_000000.jpg", "SegmentationClass/2007_000000.png"):
        (voc / place).rename(voc / place.replace("2007_000000", name))
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text(f"{name}\n", encoding="utf-8")
    source = pascal_voc("train", str(root))
    assert source is not None
    assert source.name(0) == name
    check_files(source)
