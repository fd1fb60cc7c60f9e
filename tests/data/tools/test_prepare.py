"""D10, D11: official archives become the layout that is read; what is cut off, changed or hostile is noticed."""

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from isaseg.data.info import dataset_info
from isaseg.data.sets.ade20k import ade20k
from isaseg.data.sets.cityscapes import cityscapes
from isaseg.data.sets.coco_stuff import coco_stuff
from isaseg.data.sets.lip import lip
from isaseg.data.sets.pascal_context import pascal_context
from isaseg.data.sets.pascal_voc import pascal_voc
from isaseg.data.source import FileSource
from isaseg.data.tools import prepare as prepare_module
from isaseg.data.tools import unpack as unpack_module
from isaseg.data.tools.manifest import MANIFEST
from isaseg.data.tools.prepare import prepare, verify
from isaseg.data.tools.recipes import RECIPES
from isaseg.errors import ConfigError, DataError
from isaseg.files import sha256
from tests import fakes


def pack(
    archive: Path, folder: Path, prefix: str = "", only: Callable[[str], bool] = lambda name: True
) -> Path:
    """Pack the files below a folder."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in filter(only, names):
                file.write(folder / name, prefix + name)
    else:
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as file:
            for name in filter(only, names):
                file.add(folder / name, prefix + name)
    return archive


def begins(*starts: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(starts)


def archives_of_cityscapes(made: Path, to: Path) -> None:
    fakes.make_fake_cityscapes(made, test=True)
    (made / "license.txt").write_text("none\n")
    pack(to / "leftImg8bit_trainvaltest.zip", made, only=begins("leftImg8bit/", "license"))
    pack(to / "gtFine_trainvaltest.zip", made, only=begins("gtFine/", "license"))


def archives_of_ade20k(made: Path, to: Path) -> None:
    fakes.make_fake_ade20k(made, test=True)
    pack(
        to / "ADEChallengeData2016.zip",
        made,
        "ADEChallengeData2016/",
        begins("images/", "annotations/", "obj"),
    )
    (made / "list.txt").write_text("ADE_test_00000001.jpg\n")
    pack(to / "release_test.zip", made, "release_test/", begins("testing/", "list.txt"))


def archives_of_lip(made: Path, to: Path) -> None:
    """One zip of zips, of which one is a zip of a zip again, as they are published."""
    fakes.make_fake_lip(made, test=True)
    inner = made / "zips"
    for name in ("TrainVal_images", "TrainVal_parsing_annotations", "Testing_images"):
        pack(inner / f"{name}.zip", made / "LIP", only=begins(f"{name}/"))
    (inner / "again").mkdir()
    os.replace(inner / "TrainVal_images.zip", inner / "again" / "TrainVal_images.zip")
    pack(inner / "TrainVal_images.zip", inner / "again")
    shutil.rmtree(inner / "again")
    (inner / "TrainVal_pose_annotations.zip").write_bytes(b"not looked into")
    pack(to / "LIP.zip", inner, "LIP/")


def archives_of_lip_apart(made: Path, to: Path) -> None:
    archives_of_lip(made, to)
    (to / "LIP.zip").unlink()
    for name in ("TrainVal_images", "TrainVal_parsing_annotations", "Testing_images"):
        shutil.copy(made / "zips" / f"{name}.zip", to)


def archives_of_voc(made: Path, to: Path) -> None:
    """VOC, its test, and SBD, in which a training image of VOC, one of val, and two more are; one JPEG is SBD's alone."""
    fakes.make_fake_pascal_voc(made, aug=False, test=True)
    voc, sbd = made / "VOCdevkit" / "VOC2012", made / "sbd"
    names = ["2007_000000", "2008_000000", "2009_000000", "2009_000001"]
    rng = np.random.default_rng(1)
    for name in names:
        labels = rng.permutation(np.resize(np.arange(21, dtype=np.uint8), 300)).reshape(15, 20)
        scipy.io.savemat(
            _parent(sbd / "cls" / f"{name}.mat"), {"GTcls": {"Segmentation": labels, "Boundaries": [1]}}
        )
        Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).save(
            _parent(sbd / "img" / f"{name}.jpg")
        )
    shutil.copy(sbd / "img" / "2009_000000.jpg", voc / "JPEGImages")
    (sbd / "train.txt").write_text("\n".join(names[:3]))
    (sbd / "val.txt").write_text(names[3] + "\n")
    _parent(sbd / "inst" / "2009_000000.mat").write_bytes(b"")
    tests = begins("VOCdevkit/VOC2012/JPEGImages/2010", "VOCdevkit/VOC2012/ImageSets/Segmentation/test")
    pack(to / "VOC2012test.tar", made, only=tests)
    pack(to / "VOCtrainval_11-May-2012.tar", made, only=lambda n: n.startswith("VOCdevkit/") and not tests(n))
    pack(to / "benchmark.tgz", sbd, "benchmark_RELEASE/dataset/")


def archives_of_context(made: Path, to: Path) -> None:
    """VOC 2010, whose lists are the splits, and the MATLAB files."""
    fakes.make_fake_pascal_context(made, labels="mat")
    lists = made / "VOCdevkit" / "VOC2010" / "ImageSets"
    os.replace(lists / "SegmentationContext", lists / "Main")
    pack(to / "VOCtrainval_03-May-2010.tar", made, only=begins("VOCdevkit/"))
    pack(to / "trainval.tar.gz", made, "./", begins("trainval/"))


def archives_of_context_json(made: Path, to: Path) -> None:
    """VOC 2010 without lists, and the JSON: all is bag, but the first pixel."""
    archives_of_context(made, to)
    (to / "trainval.tar.gz").unlink()
    images, regions = [], []
    for path in sorted((made / "VOCdevkit" / "VOC2010" / "JPEGImages").iterdir()):
        with Image.open(path) as picture:
            width, height = picture.size
        i = int(path.stem.replace("_", ""))
        phase = "train" if path.stem.startswith("2008") else "val"
        images.append(
            {"image_id": i, "file_name": path.name, "height": height, "width": width, "phase": phase}
        )
        counts = "1" + _digits(height * width - 1)
        code = {"size": [height, width], "counts": counts}
        regions.append({"image_id": i, "category_id": 9, "segmentation": code, "id": i})
    (to / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": regions}))


def archives_of_10k(made: Path, to: Path) -> None:
    pack(to / "cocostuff-10k-v1.1.zip", fakes.make_fake_coco_stuff(made))


def archives_of_164k(made: Path, to: Path) -> None:
    fakes.make_fake_coco_stuff(made, release="164k")
    for split in ("train2017", "val2017"):
        pack(to / f"{split}.zip", made / "images", only=begins(split))
    pack(to / "stuffthingmaps_trainval2017.zip", made / "annotations", only=lambda n: "TrainIds" not in n)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _digits(number: int) -> str:
    text = ""
    while number >= 16:
        text, number = text + chr(48 + 32 + number % 32), number // 32
    return text + chr(48 + number)


def voc_aug(split: str, root: str) -> FileSource | None:
    return pascal_voc(split, root, "trainaug")


def coco_164k(split: str, root: str) -> FileSource | None:
    return coco_stuff(split, root, "164k")


CASES: dict[str, tuple[str, Callable[[Path, Path], None], Callable[..., Any], dict[str, int]]] = {
    "cityscapes": ("cityscapes", archives_of_cityscapes, cityscapes, {"train": 2, "val": 2, "test": 2}),
    "ade20k": ("ade20k", archives_of_ade20k, ade20k, {"train": 2, "val": 2, "test": 2}),
    "lip": ("lip", archives_of_lip, lip, {"train": 2, "val": 2, "test": 2}),
    "lip apart": ("lip", archives_of_lip_apart, lip, {"train": 2, "val": 2, "test": 2}),
    "voc": ("pascal_voc", archives_of_voc, voc_aug, {"train": 4, "val": 2, "test": 2}),
    "context": ("pascal_context", archives_of_context, pascal_context, {"train": 2, "val": 2}),
    "context json": ("pascal_context_60", archives_of_context_json, pascal_context, {"train": 2, "val": 2}),
    "10k": ("coco_stuff", archives_of_10k, coco_stuff, {"train": 2, "val": 2}),
    "164k": ("coco_stuff_164k", archives_of_164k, coco_164k, {"train": 2, "val": 2}),
}


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def manifest(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / MANIFEST).read_bytes())
    return content


@pytest.fixture
def city(tmp_path: Path) -> Path:
    archives_of_cityscapes(tmp_path / "made", tmp_path / "archives")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_archives_become_the_layout_that_is_read(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, archives_of, source, sizes = CASES[case]
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of(tmp_path / "made", archives)
    lines = prepare(name, archives, root)
    for split, size in sizes.items():
        found = source(split, str(root))
        assert len(found) == size
        for index in range(size):
            image, mask, _ = found.load(index)
            assert mask is None or mask[:, :].shape == image[:, :].shape[:2]
    listed = manifest(root)
    assert listed["complete"] is True
    assert {n: (e["bytes"], e["sha256"]) for n, e in listed["archives"].items()} == {
        path.name: (path.stat().st_size, sha256(path)) for path in archives.iterdir()
    }
    assert {n: e["sha256"] for n, e in listed["files"].items()} == {
        n: sha256(root / n) for n in tree(root) if n != MANIFEST
    }
    assert lines[-1] == f"checksums of {len(listed['files'])} files are in '{root / MANIFEST}'"
    assert verify(root) == []
    for used in ("unpack", "bytes_to_unpack", "describe", "digest", "save_manifest"):
        monkeypatch.setattr(prepare_module, used, lambda *args: pytest.fail("this takes long"))
    assert prepare(name, archives, root)[0].startswith(
        f"nothing to do: '{root}' holds {dataset_info(RECIPES[name].facts).title}"
    )
    shutil.rmtree(archives)
    assert prepare(name, archives, root)[0].startswith("nothing to do")


@pytest.mark.parametrize("case", ["cityscapes", "ade20k", "164k"])
def test_files_are_those_of_the_archives(tmp_path: Path, case: str) -> None:
    name, archives_of, *_ = CASES[case]
    archives_of(tmp_path / "made", tmp_path / "archives")
    prepare(name, tmp_path / "archives", tmp_path / "root")
    folder = tmp_path / "root" / RECIPES[name].home
    left_out = {"list.txt"} if case == "ade20k" else set()
    made = {n: c for n, c in tree(tmp_path / "made").items() if n not in left_out and "TrainIds" not in n}
    assert {n: c for n, c in tree(folder).items() if n != MANIFEST} == made


@pytest.mark.parametrize("case", ["lip", "lip apart"])
def test_the_zips_of_lip_become_one_layout(tmp_path: Path, case: str) -> None:
    name, archives_of, *_ = CASES[case]
    archives_of(tmp_path / "made", tmp_path / "archives")
    lines = prepare(name, tmp_path / "archives", tmp_path / "root")
    assert not [line for line in lines if "not needed" in line]
    made = {n: c for n, c in tree(tmp_path / "made" / "LIP").items() if "_reversed/" not in n}
    assert {n: c for n, c in tree(tmp_path / "root").items() if n != MANIFEST} == made


def test_trainaug_is_voc_and_sbd_without_val(tmp_path: Path) -> None:
    archives_of_voc(tmp_path / "made", tmp_path / "archives")
    prepare("pascal_voc", tmp_path / "archives", tmp_path / "root")
    voc, sbd = tmp_path / "root" / "VOCdevkit" / "VOC2012", tmp_path / "made" / "sbd"
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
            assert picture.mode == "P"
            assert np.array_equal(picture, expected)
            assert np.array_equal(picture.convert("RGB"), dataset_info("pascal_voc").palette[expected])
    original, copied = voc / "JPEGImages" / "2007_000000.jpg", voc / "JPEGImages" / "2009_000001.jpg"
    assert original.read_bytes() != (sbd / "img" / original.name).read_bytes()
    assert copied.read_bytes() == (sbd / "img" / copied.name).read_bytes()
    assert not (voc / "SBD" / "inst").exists()


def test_context_labels_are_0_to_59(tmp_path: Path) -> None:
    archives_of_context(tmp_path / "made", tmp_path / "archives")
    prepare("pascal_context", tmp_path / "archives", tmp_path / "root")
    voc = tmp_path / "root" / "VOCdevkit" / "VOC2010"
    ids = dataset_info("pascal_context_60").ids
    for split in ("train", "val"):
        lists = [voc / "ImageSets" / kind / f"{split}.txt" for kind in ("SegmentationContext", "Main")]
        assert lists[0].read_text() == lists[1].read_text()
        for name in lists[0].read_text().split():
            raw = scipy.io.loadmat(voc / "trainval" / f"{name}.mat")["LabelMap"]
            assert np.array_equal(
                Image.open(voc / "SegmentationClassContext" / f"{name}.png"), np.vectorize(ids.get)(raw)
            )


def test_the_json_of_context_has_labels_and_lists(tmp_path: Path) -> None:
    archives_of_context_json(tmp_path / "made", tmp_path / "archives")
    prepare("pascal_context", tmp_path / "archives", tmp_path / "root")
    voc = tmp_path / "root" / "VOCdevkit" / "VOC2010"
    assert (voc / "ImageSets" / "SegmentationContext" / "val.txt").read_text() == "2010_000000\n2010_000001\n"
    labels = np.asarray(Image.open(voc / "SegmentationClassContext" / "2010_000001.png"))
    expected = np.full((39, 49), 2)
    expected[0, 0] = 0
    assert np.array_equal(labels, expected)


def test_labels_of_10k_are_the_raw_ids(tmp_path: Path) -> None:
    archives_of_10k(tmp_path / "made", tmp_path / "archives")
    prepare("coco_stuff", tmp_path / "archives", tmp_path / "root")
    for path in (tmp_path / "root" / "annotations").iterdir():
        png = tmp_path / "root" / "annotations_png" / f"{path.stem}.png"
        assert np.array_equal(Image.open(png), scipy.io.loadmat(path)["S"])


@pytest.mark.parametrize(
    ("root", "folder"),
    [
        ("x", "x/VOCdevkit/VOC2012"),
        ("VOCdevkit", "VOCdevkit/VOC2012"),
        ("VOCdevkit/VOC2012", "VOCdevkit/VOC2012"),
    ],
)
def test_a_root_inside_the_layout_is_not_nested_again(tmp_path: Path, root: str, folder: str) -> None:
    archives_of_voc(tmp_path / "made", tmp_path / "archives")
    prepare("pascal_voc", tmp_path / "archives", tmp_path / root)
    assert (tmp_path / folder / "JPEGImages").is_dir()
    assert len(voc_aug("train", str(tmp_path / root)) or ()) == 4
    assert prepare("pascal_voc", tmp_path / "archives", tmp_path / root)[0].startswith("nothing to do")


def test_an_archive_that_comes_later_is_added(tmp_path: Path) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of_voc(tmp_path / "made", archives)
    os.replace(archives / "benchmark.tgz", tmp_path / "benchmark.tgz")
    lines = prepare("pascal_voc", archives, root)
    assert f"benchmark.tgz: not in '{archives}', and not needed" in lines
    assert not (root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug").exists()
    os.replace(tmp_path / "benchmark.tgz", archives / "benchmark.tgz")
    lines = prepare("pascal_voc", archives, root)
    assert [line.split(":")[0] for line in lines[:-1]] == ["benchmark.tgz", "convert"]
    assert len(voc_aug("train", str(root)) or ()) == 4


def test_the_json_that_comes_later_is_converted(tmp_path: Path) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of_context_json(tmp_path / "made", archives)
    os.replace(archives / "trainval_merged.json", tmp_path / "trainval_merged.json")
    pack(archives / "trainval.tar.gz", tmp_path / "made", only=begins("trainval/"))
    prepare("pascal_context", archives, root)
    os.replace(tmp_path / "trainval_merged.json", archives / "trainval_merged.json")
    assert prepare("pascal_context", archives, root)[0].startswith("convert: ")
    with Image.open(
        root / "VOCdevkit" / "VOC2010" / "SegmentationClassContext" / "2008_000000.png"
    ) as picture:
        assert np.unique(np.asarray(picture)).tolist() == [0, 2]
    assert verify(root) == []


@pytest.mark.parametrize("case", ["cityscapes", "lip", "voc", "context json"])
def test_an_interrupted_run_goes_on_and_equals_a_clean_one(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, archives_of, *_ = CASES[case]
    archives_of(tmp_path / "made", tmp_path / "archives")
    prepare(name, tmp_path / "archives", tmp_path / "clean")
    clean, replace = tree(tmp_path / "clean"), os.replace
    files = len(clean) + 1 + len(manifest(tmp_path / "clean")["done"])  # all that is written, manifests too
    for at in range(1, files, 3):
        root, left = tmp_path / str(at), iter(range(at))

        def killed(*args: Path, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(*args)

        monkeypatch.setattr(unpack_module.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(name, tmp_path / "archives", root)
        monkeypatch.undo()
        assert manifest(root)["complete"] is False
        assert any("unfinished" in line for line in verify(root))
        assert not list(root.rglob("*.part"))
        prepare(name, tmp_path / "archives", root)
        assert tree(root) == clean


def test_what_is_done_is_not_done_again(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[str] = []

    def counted(archive: Path, *args: Any) -> Any:
        if len(unpacked) == 1:
            raise KeyboardInterrupt
        unpacked.append(archive.name)
        return unpack_module.unpack(archive, *args)

    monkeypatch.setattr(prepare_module, "unpack", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare("cityscapes", city / "archives", city / "root")
    monkeypatch.undo()
    lines = prepare("cityscapes", city / "archives", city / "root")
    assert unpacked == ["leftImg8bit_trainvaltest.zip"]
    assert [line.split(":")[0] for line in lines[:-1]] == ["gtFine_trainvaltest.zip"]


def test_d11_a_changed_byte_is_found(city: Path) -> None:
    root = city / "root"
    prepare("cityscapes", city / "archives", root)
    flipped, longer, gone, link = [root / n for n in sorted(tree(root)) if n.endswith(".png")][:4]
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    longer.write_bytes(longer.read_bytes() + b"1")
    gone.unlink()
    os.replace(link, city / "moved")
    link.symlink_to(city / "moved")
    faults = verify(root)
    assert [line.split(":")[0] for line in faults] == ["changed", "changed", "missing", "missing"]
    for path, line in zip((flipped, longer, gone, link), faults, strict=True):
        assert f"'{path}'" in line
    flipped.unlink()  # as the line says
    prepare("cityscapes", city / "archives", root)
    assert verify(root) == []


def test_files_that_are_gone_need_their_archive(city: Path) -> None:
    root = city / "root"
    prepare("cityscapes", city / "archives", root)
    next(root.rglob("*_leftImg8bit.png")).unlink()
    os.replace(city / "archives" / "leftImg8bit_trainvaltest.zip", city / "moved.zip")
    with pytest.raises(DataError, match=r"expected leftImg8bit_trainvaltest\.zip in .* again"):
        prepare("cityscapes", city / "archives", root)


def test_an_image_that_is_gone_is_taken_from_the_archive_that_it_was_in(tmp_path: Path) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of_voc(tmp_path / "made", archives)
    prepare("pascal_voc", archives, root)
    before = tree(root)
    for name in ("2007_000000", "2009_000001"):  # of VOC, though SBD has another, and of SBD
        (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg").unlink()
    prepare("pascal_voc", archives, root)
    assert {n: c for n, c in tree(root).items() if n != MANIFEST} == {
        n: c for n, c in before.items() if n != MANIFEST
    }
    assert verify(root) == []


@pytest.mark.parametrize("case", ["context", "context json", "10k"])
def test_labels_that_are_gone_are_converted_again(tmp_path: Path, case: str) -> None:
    name, archives_of, *_ = CASES[case]
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of(tmp_path / "made", archives)
    prepare(name, archives, root)
    before = tree(root)
    folder = "annotations_png" if case == "10k" else "VOCdevkit/VOC2010/SegmentationClassContext"
    shutil.rmtree(root / folder)
    if case == "context json":
        os.replace(archives / "trainval_merged.json", tmp_path / "moved")
        with pytest.raises(DataError, match=r"expected trainval_merged\.json in .* again"):
            prepare(name, archives, root)
        os.replace(tmp_path / "moved", archives / "trainval_merged.json")
    assert prepare(name, archives, root)[0].startswith("convert: ")
    assert tree(root) == before


def test_another_archive_of_the_same_name_is_noticed(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, archive = city / "root", city / "archives" / "gtFine_trainvaltest.zip"
    prepare("cityscapes", city / "archives", root)
    os.utime(archive, (1, 1))  # a copy
    assert prepare("cityscapes", city / "archives", root)[0].startswith("nothing to do")
    pack(archive, city / "made", only=begins("gtFine/train"))
    before = tree(root)
    with pytest.raises(DataError, match=r"expected the gtFine_trainvaltest\.zip that .* was made from"):
        prepare("cityscapes", city / "archives", root)
    assert tree(root) == before
    (root / MANIFEST).unlink()
    prepare("cityscapes", city / "archives", root)
    assert verify(root) == []


def test_d11_archives_are_compared_with_a_list_of_checksums(city: Path) -> None:
    archives, sums = city / "archives", city / "sha256.txt"
    good = {path.name: sha256(path) for path in archives.iterdir()}
    wrong = good | {"gtFine_trainvaltest.zip": "0" * 64}
    for content, match in (
        (
            {n: s for n, s in good.items() if not n.startswith("gt")},
            "got none for 'gtFine_trainvaltest",
        ),
        (wrong, "expected SHA-256 0000"),
    ):
        sums.write_text("".join(f"{s}  {n}\n" for n, s in content.items()))
        with pytest.raises(DataError, match=match):
            prepare("cityscapes", archives, city / "root", sums)
        assert not (city / "root").exists()
    for text in ("one\n", "\xff"):
        sums.write_bytes(text.encode("latin-1"))
        with pytest.raises(DataError, match="lines as of `sha256sum`"):
            prepare("cityscapes", archives, city / "root", sums)
    sums.write_text("".join(f"{s.upper()} *./some/{n}\n\n" for n, s in (good | {"other": "1"}).items()))
    prepare("cityscapes", archives, city / "root", sums)
    # once more, though bytes and time are as noted
    archive = archives / "gtFine_trainvaltest.zip"
    time, content = archive.stat().st_mtime_ns, bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    os.utime(archive, ns=(time, time))
    with pytest.raises(DataError, match=r"expected SHA-256 .* of .*gtFine"):
        prepare("cityscapes", archives, city / "root", sums)


@pytest.mark.parametrize("bad", ["../x", "/x", "a\\x"])
def test_d10_nothing_is_written_if_one_archive_is_hostile(city: Path, bad: str) -> None:
    with zipfile.ZipFile(city / "archives" / "gtFine_trainvaltest.zip", "a") as file:
        file.writestr(bad, b"1")
    before = tree(city)
    with pytest.raises(DataError, match=r"gtFine_trainvaltest\.zip', member"):
        prepare("cityscapes", city / "archives", city / "root")
    assert tree(city) == before
    assert not (city / "root").exists()


def test_d10_nothing_is_written_if_a_zip_in_a_zip_is_hostile(tmp_path: Path) -> None:
    archives_of_lip(tmp_path / "made", tmp_path / "archives")
    inner = tmp_path / "made" / "zips"
    with zipfile.ZipFile(inner / "TrainVal_parsing_annotations.zip", "a") as file:
        file.writestr("../x", b"1")
    pack(tmp_path / "archives" / "LIP.zip", inner)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=r"LIP\.zip', member 'TrainVal_parsing_annotations\.zip!/\.\./x'"):
        prepare("lip", tmp_path / "archives", tmp_path / "root")
    assert tree(tmp_path) == before
    assert not (tmp_path / "root").exists()


def test_d10_a_link_out_of_the_root_is_not_followed(city: Path) -> None:
    (city / "root").mkdir()
    (city / "elsewhere").mkdir()
    (city / "root" / "leftImg8bit").symlink_to(city / "elsewhere")
    with pytest.raises(DataError, match="remove the link"):
        prepare("cityscapes", city / "archives", city / "root")
    assert not list((city / "elsewhere").iterdir())


@pytest.mark.parametrize("bad", ["../x", "/etc/passwd", "", "a/../x"])
def test_d10_a_manifest_names_nothing_outside(city: Path, bad: str) -> None:
    prepare("cityscapes", city / "archives", city / "root")
    content = manifest(city / "root")
    content["files"][bad] = {"bytes": 1, "sha256": "0", "of": "x"}
    (city / "root" / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{MANIFEST}', got .*remove it"):
        verify(city / "root")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"dataset": "x", "files": {"a": 1}}', '{"dataset": "x", "y": 1}']
)
def test_a_damaged_manifest_is_told(city: Path, content: str) -> None:
    (city / "root").mkdir()
    (city / "root" / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=f"{MANIFEST}', got .*remove it"):
        prepare("cityscapes", city / "archives", city / "root")


def test_too_little_room_for_all_archives_is_told_first(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [len(content) for name, content in tree(city / "made").items() if name.startswith("leftImg8bit")]
    usage = shutil.disk_usage(city)._replace(free=sum(sizes) + 100)  # for the first, not for both
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="GB free at .* to unpack Cityscapes"):
        prepare("cityscapes", city / "archives", city / "root")
    assert not (city / "root").exists()


def test_missing_archives_are_listed(tmp_path: Path) -> None:
    archives_of_lip_apart(tmp_path / "made", tmp_path / "archives")
    (tmp_path / "archives" / "TrainVal_parsing_annotations.zip").unlink()
    with pytest.raises(DataError) as error:
        prepare("lip", tmp_path / "archives", tmp_path / "root")
    assert str(error.value) == (
        f"expected the archives of LIP in '{tmp_path / 'archives'}', got Testing_images.zip, TrainVal_images.zip; "
        f"missing: LIP.zip or TrainVal_parsing_annotations.zip; fetch them from lip.sysuhcp.com, or unpack them into "
        f"'{tmp_path / 'root'}' yourself"
    )
    with pytest.raises(DataError, match="got none; missing: VOCtrainval_11-May-2012.tar; fetch"):
        prepare("pascal_voc", tmp_path / "nowhere", tmp_path / "root")


def test_names_of_archives_may_differ_in_case(city: Path) -> None:
    archives = city / "archives"
    os.replace(archives / "gtFine_trainvaltest.zip", archives / "gtfine_trainvaltest.ZIP")
    prepare("cityscapes", archives, city / "root")
    assert "gtFine_trainvaltest.zip" in manifest(city / "root")["archives"]
    shutil.copy(archives / "gtfine_trainvaltest.ZIP", archives / "gtFine_trainvaltest.zip")
    with pytest.raises(DataError, match="expected one file gtFine_trainvaltest.zip"):
        prepare("cityscapes", archives, city / "root")


def test_what_the_user_unpacked_is_noted_and_converted(tmp_path: Path) -> None:
    root = fakes.make_fake_coco_stuff(tmp_path / "root")
    lines = prepare("coco_stuff", tmp_path / "nothing", root)
    assert [line.split(":")[0] for line in lines[:-1]][:4] == [
        "images",
        "annotations",
        "imageLists",
        "convert",
    ]
    assert {n for n in tree(root) if n != MANIFEST} == set(manifest(root)["files"])
    assert prepare("coco_stuff", tmp_path / "nothing", root)[0].startswith("nothing to do")


@pytest.mark.parametrize("labels", ["trainval", "SegmentationClassContext"])
def test_what_the_user_unpacked_may_be_half(tmp_path: Path, labels: str) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    voc = root / "VOCdevkit" / "VOC2010"
    if labels == "trainval":
        archives_of_context(tmp_path / "made", archives)
        (archives / "trainval.tar.gz").unlink()
        shutil.copytree(tmp_path / "made" / "trainval", voc / "trainval")
    else:
        fakes.make_fake_pascal_context(root)
        pack(archives / "VOCtrainval_03-May-2010.tar", root, only=lambda name: "JPEGImages" in name)
        shutil.rmtree(voc / "JPEGImages")
    prepare("pascal_context", archives, root)
    assert len(pascal_context("val", str(root)) or ()) == 2
    assert prepare("pascal_context", archives, root)[0].startswith("nothing to do")


def test_an_interrupted_archive_that_is_gone_is_not_taken_for_unpacked(
    city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack_module.os, "replace", _third_time_killed(os.replace))
    with pytest.raises(KeyboardInterrupt):
        prepare("cityscapes", city / "archives", city / "root")
    monkeypatch.undo()
    (city / "archives" / "leftImg8bit_trainvaltest.zip").unlink()
    with pytest.raises(DataError, match=r"expected leftImg8bit_trainvaltest\.zip in .* again"):
        prepare("cityscapes", city / "archives", city / "root")


def _third_time_killed(replace: Callable[..., None]) -> Callable[..., None]:
    left = iter(range(3))

    def killed(*args: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*args)

    return killed


def test_an_archive_without_the_data_is_told(city: Path) -> None:
    pack(city / "archives" / "gtFine_trainvaltest.zip", city / "made", only=begins("license"))
    with pytest.raises(
        DataError, match=r"expected the folder gtFine in .* fetch gtFine_trainvaltest\.zip again"
    ):
        prepare("cityscapes", city / "archives", city / "root")
    assert manifest(city / "root")["complete"] is False


def test_a_root_holds_one_data_set(city: Path) -> None:
    prepare("cityscapes", city / "archives", city / "root")
    with pytest.raises(DataError, match="a folder of its own for lip, got .* which holds cityscapes"):
        prepare("lip", city / "archives", city / "root")


@pytest.mark.parametrize("name", ["camvid", "../x"])
def test_a_data_set_without_archives_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="one of cityscapes, ade20k, lip"):
        prepare(name, tmp_path, tmp_path / "root")


def test_a_root_without_a_manifest_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run prepare first"):
        verify(tmp_path)


@pytest.mark.parametrize(("line", "match"), [("../../x", "'../../x'"), ("", "None")])
def test_a_list_with_strange_names_is_refused(tmp_path: Path, line: str, match: str) -> None:
    archives_of_voc(tmp_path / "made", tmp_path / "archives")
    (tmp_path / "made" / "sbd" / "train.txt").write_text(line)
    pack(tmp_path / "archives" / "benchmark.tgz", tmp_path / "made" / "sbd", "benchmark_RELEASE/dataset/")
    with pytest.raises(DataError, match=rf"names of images in .*train\.txt', got {match}"):
        prepare("pascal_voc", tmp_path / "archives", tmp_path / "root")


def test_a_full_disk_while_converting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives_of_10k(tmp_path / "made", tmp_path / "archives")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left"):
        prepare("coco_stuff", tmp_path / "archives", tmp_path / "root")
    monkeypatch.undo()
    assert prepare("coco_stuff", tmp_path / "archives", tmp_path / "root")[0].startswith("convert: ")


def test_a_tar_in_the_place_of_a_zip_is_told(city: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w"):
        pass
    (city / "archives" / "gtFine_trainvaltest.zip").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="whole and harmless archive, got File is not a zip file"):
        prepare("cityscapes", city / "archives", city / "root")


def test_d10_converted_labels_do_not_follow_a_link_out_of_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "annotations_png").symlink_to(outside)
    (tmp_path / "archives").mkdir()
    with pytest.raises(
        DataError, match=r"got the link '.*annotations_png' to '.*outside' there; remove the link"
    ):
        prepare("coco_stuff", tmp_path / "archives", tmp_path / "root")
    assert list(outside.iterdir()) == []


def test_a_root_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "root").touch()
    (tmp_path / "archives").mkdir()
    with pytest.raises(DataError, match="got the file data.root="):
        prepare("lip", tmp_path / "archives", tmp_path / "root")
