"""D10, D11: official archives become the layout that is read; what is cut off, changed or hostile is noticed."""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isaseg.data.info import dataset_info
from isaseg.data.sets.pascal_context import pascal_context
from isaseg.data.tools import prepare as module
from isaseg.data.tools.manifest import MANIFEST, verify
from isaseg.data.tools.official import OFFICIAL, SHA256
from isaseg.data.tools.prepare import prepare
from isaseg.errors import DataError
from isaseg.files import sha256
from tests import fakes
from tests.data.tools.archives import (
    CASES,
    archives_of_cityscapes,
    archives_of_context,
    archives_of_lip,
    archives_of_lip_apart,
    archives_of_voc,
    begins,
    pack,
    voc_aug,
)
from tests.reliability.small import STRESS

PUBLISHED = dict(SHA256)


@pytest.fixture(autouse=True)
def _nothing_is_published() -> Iterator[None]:
    """The archives here are not the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PUBLISHED:
            patch.delitem(SHA256, name)
        yield


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def files(root: Path) -> dict[str, bytes]:
    """Return the files of a data set without its manifest, whose steps may be in another order."""
    return {name: content for name, content in tree(root).items() if name != MANIFEST}


def manifest(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / MANIFEST).read_bytes())
    return content


@contextmanager
def killed_after(moves: int) -> Iterator[None]:
    """Interrupt what happens inside instead of the next move, or write of the manifest, after so many."""
    replace, left = os.replace, iter(range(moves))

    def killed(*args: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        yield


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
    steps = manifest(root)["steps"]
    sums = {path.name: sha256(path) for path in archives.iterdir()}
    assert {n: step["sha256"] for n, step in steps.items() if n != "convert"} == sums
    noted = {n: digest for step in steps.values() for n, digest in step["files"].items()}
    assert noted == {n: sha256(root / n) for n in tree(root) if n != MANIFEST}
    assert lines[-1] == f"checksums of {len(noted)} files are in '{root / MANIFEST}'"
    if OFFICIAL[name].convert is None:
        left_out = ("TrainIds", "_reversed/", "list.txt")
        made = tree(tmp_path / "made" / ("LIP" if name == "lip" else ""))
        expected = {n: c for n, c in made.items() if not any(text in n for text in left_out)}
        assert files(root / OFFICIAL[name].folders[0]) == expected
    assert verify(root) == []
    for used in ("unpack", "sha256", "save_manifest"):
        monkeypatch.setattr(module, used, lambda *args: pytest.fail("this takes long"))
    nothing = [f"nothing to do: '{root}' holds {dataset_info(OFFICIAL[name].info).title}"]
    assert prepare(name, archives, root) == nothing
    shutil.rmtree(archives)
    assert prepare(name, archives, root) == nothing


@pytest.mark.parametrize("inside", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_archives_are_added_where_the_data_set_is(tmp_path: Path, inside: str) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of_voc(tmp_path / "made", archives)
    (archives / "VOCtrainval_11-May-2012.tar").unlink()
    shutil.copytree(tmp_path / "made" / "VOCdevkit" / "VOC2012", root / inside)
    prepare("pascal_voc", archives, root)
    assert (root / inside / "SegmentationClassAug").is_dir()
    assert len(voc_aug("train", str(root)) or ()) == 4


def test_an_archive_that_comes_later_is_added(tmp_path: Path) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of_voc(tmp_path / "made", archives)
    os.replace(archives / "benchmark.tgz", tmp_path / "benchmark.tgz")
    prepare("pascal_voc", archives, root)
    assert not (root / "VOCdevkit" / "VOC2012" / "SegmentationClassAug").exists()
    os.replace(tmp_path / "benchmark.tgz", archives / "benchmark.tgz")
    lines = prepare("pascal_voc", archives, root)
    assert [line.split(":")[0] for line in lines[:-1]] == ["benchmark.tgz", "convert"]
    assert len(voc_aug("train", str(root)) or ()) == 4


@pytest.mark.parametrize("case", ["lip", "voc", "context json"])
def test_an_interrupted_run_goes_on_and_equals_a_clean_one(tmp_path: Path, case: str) -> None:
    name, archives_of, *_ = CASES[case]
    archives_of(tmp_path / "made", tmp_path / "archives")
    prepare(name, tmp_path / "archives", tmp_path / "clean")
    clean = files(tmp_path / "clean")
    moves = len(clean) + len(manifest(tmp_path / "clean")["steps"])  # manifests too
    for at in range(1, moves, 3 if STRESS else 7):
        root = tmp_path / str(at)
        with killed_after(at):
            prepare(name, tmp_path / "archives", root)
        assert files(root).keys() <= clean.keys(), "no temporary files"
        prepare(name, tmp_path / "archives", root)
        assert files(root) == clean
        assert verify(root) == []


def test_what_a_killed_run_left_is_cleared(city: Path) -> None:
    (city / "root" / ".unpacking" / "gtFine" / "train").mkdir(parents=True)
    (city / "root" / ".unpacking" / "gtFine" / "train" / "half.png").write_bytes(b"1")
    prepare("cityscapes", city / "archives", city / "root")
    assert not [name for name in tree(city / "root") if "half" in name]
    assert not (city / "root" / ".unpacking").exists()


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


def test_an_image_that_is_gone_is_taken_from_the_archive_that_it_was_in(tmp_path: Path) -> None:
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of_voc(tmp_path / "made", archives)
    prepare("pascal_voc", archives, root)
    before = files(root)
    for name in ("2007_000000", "2009_000001"):  # of VOC, though SBD has another, and of SBD
        (root / "VOCdevkit" / "VOC2012" / "JPEGImages" / f"{name}.jpg").unlink()
    prepare("pascal_voc", archives, root)
    assert files(root) == before
    assert verify(root) == []


@pytest.mark.parametrize(
    ("case", "labels", "source"),
    [
        ("voc", "VOC2012/SegmentationClassAug", ""),
        ("context json", "VOC2010/SegmentationClassContext", "trainval_merged.json"),
    ],
)
def test_labels_that_are_gone_are_converted_again(
    tmp_path: Path, case: str, labels: str, source: str
) -> None:
    name, archives_of, *_ = CASES[case]
    archives, root = tmp_path / "archives", tmp_path / "root"
    archives_of(tmp_path / "made", archives)
    prepare(name, archives, root)
    before = files(root)
    shutil.rmtree(root / "VOCdevkit" / labels)
    if source:
        os.replace(archives / source, tmp_path / "moved")
        with pytest.raises(DataError, match=rf"expected {source} in .* again"):
            prepare(name, archives, root)
        os.replace(tmp_path / "moved", archives / source)
    assert prepare(name, archives, root)[0].startswith("convert: ")
    assert files(root) == before


def test_d11_archives_are_compared_with_the_published_checksums(
    city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = "gtFine_trainvaltest.zip"
    sums = {path.name: sha256(path) for path in (city / "archives").iterdir()}
    monkeypatch.setitem(SHA256, labels, "0" * 64)
    with pytest.raises(DataError, match=f"expected SHA-256 0000.* as published, got {sums[labels]}"):
        prepare("cityscapes", city / "archives", city / "root")
    assert not (city / "root" / "gtFine").exists()
    monkeypatch.setitem(SHA256, labels, sums[labels])
    lines = prepare("cityscapes", city / "archives", city / "other")
    assert lines[0].endswith(f"not known to be official, SHA-256 {sums['leftImg8bit_trainvaltest.zip']}")
    assert lines[1].endswith("; as published")


def test_published_checksums_are_of_archives_that_are_known() -> None:
    assert PUBLISHED.keys() <= {name for official in OFFICIAL.values() for name in official.archives}
    assert all(len(digest) == 64 and int(digest, 16) for digest in PUBLISHED.values())


def test_d10_nothing_is_in_the_layout_if_a_zip_in_a_zip_is_hostile(tmp_path: Path) -> None:
    archives_of_lip(tmp_path / "made", tmp_path / "archives")
    inner = tmp_path / "made" / "zips"
    with zipfile.ZipFile(inner / "TrainVal_parsing_annotations.zip", "a") as file:
        file.writestr("../x", b"1")
    pack(tmp_path / "archives" / "LIP.zip", inner)
    before = tree(tmp_path)
    with pytest.raises(DataError, match=r"'\.\./x', which .*LIP\.zip!.*/TrainVal_parsing_annotations\.zip'"):
        prepare("lip", tmp_path / "archives", tmp_path / "root")
    assert tree(tmp_path) == before


def test_d10_zips_in_zips_end(tmp_path: Path) -> None:
    zipped = tmp_path / "Testing_images.zip"
    zipped.write_bytes(b"no zip")
    for _ in range(3):
        zipped.rename(tmp_path / "inner")
        with zipfile.ZipFile(zipped, "w") as file:
            file.write(tmp_path / "inner", zipped.name)
    with zipfile.ZipFile(tmp_path / "LIP.zip", "w") as file:
        file.write(zipped, zipped.name)
    with pytest.raises(DataError, match="archives inside archives, got a fourth"):
        prepare("lip", tmp_path, fakes.make_fake_lip(tmp_path / "made") / "LIP")


def test_d10_a_link_out_of_the_root_is_not_followed(city: Path) -> None:
    (city / "root").mkdir()
    (city / "elsewhere").mkdir()
    (city / "root" / "gtFine").symlink_to(city / "elsewhere")
    with pytest.raises(DataError, match="remove the link"):
        prepare("cityscapes", city / "archives", city / "root")
    assert not list((city / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"dataset": "x", "steps": {"a": 1}}', '{"dataset": "x", "y": 1}']
)
def test_a_damaged_manifest_is_reported(city: Path, content: str) -> None:
    (city / "root").mkdir()
    (city / "root" / MANIFEST).write_text(content)
    with pytest.raises(DataError, match=f"{MANIFEST}', got .*remove it"):
        prepare("cityscapes", city / "archives", city / "root")


def test_missing_archives_are_listed(tmp_path: Path) -> None:
    archives_of_lip_apart(tmp_path / "made", tmp_path / "archives")
    (tmp_path / "archives" / "TrainVal_parsing_annotations.zip").unlink()
    with pytest.raises(DataError) as error:
        prepare("lip", tmp_path / "archives", tmp_path / "root")
    assert str(error.value) == (
        f"expected the archives of LIP in '{tmp_path / 'archives'}', got TrainVal_images.zip, Testing_images.zip; "
        f"missing: LIP.zip or TrainVal_parsing_annotations.zip; fetch them from lip.sysuhcp.com, or unpack them into "
        f"'{tmp_path / 'root'}' yourself"
    )
    with pytest.raises(DataError, match="got none; missing: VOCtrainval_11-May-2012.tar; fetch"):
        prepare("pascal_voc", tmp_path / "nowhere", tmp_path / "root")


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


def test_an_interrupted_archive_that_is_gone_is_not_taken_for_unpacked(city: Path) -> None:
    with killed_after(3):
        prepare("cityscapes", city / "archives", city / "root")
    (city / "archives" / "leftImg8bit_trainvaltest.zip").unlink()
    with pytest.raises(DataError, match=r"expected leftImg8bit_trainvaltest\.zip in .* again"):
        prepare("cityscapes", city / "archives", city / "root")


def test_an_archive_without_the_data_is_reported(city: Path) -> None:
    pack(city / "archives" / "gtFine_trainvaltest.zip", city / "made", only=begins("license"))
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"expected the folder gtFine in .* fetch gtFine_trainvaltest\.zip again"
        ):
            prepare("cityscapes", city / "archives", city / "root")


def test_a_root_holds_one_data_set(city: Path) -> None:
    prepare("cityscapes", city / "archives", city / "root")
    with pytest.raises(DataError, match="a folder of its own for lip, got .* which holds cityscapes"):
        prepare("lip", city / "archives", city / "root")


@pytest.mark.parametrize(("line", "match"), [("../../x", "'../../x'"), ("", "None")])
def test_a_list_with_strange_names_is_refused(tmp_path: Path, line: str, match: str) -> None:
    archives_of_voc(tmp_path / "made", tmp_path / "archives")
    (tmp_path / "made" / "sbd" / "train.txt").write_text(line)
    pack(tmp_path / "archives" / "benchmark.tgz", tmp_path / "made" / "sbd", "benchmark_RELEASE/dataset/")
    with pytest.raises(DataError, match=rf"names of images in .*train\.txt', got {match}"):
        prepare("pascal_voc", tmp_path / "archives", tmp_path / "root")


def test_a_full_disk_while_converting_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives_of_voc(tmp_path / "made", tmp_path / "archives")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left"):
        prepare("pascal_voc", tmp_path / "archives", tmp_path / "root")
    monkeypatch.undo()
    assert prepare("pascal_voc", tmp_path / "archives", tmp_path / "root")[0].startswith("convert: ")


def test_a_root_that_is_a_file_is_reported(city: Path) -> None:
    (city / "root").touch()
    with pytest.raises(DataError, match=r"below '.*/root', got .*; fix that and start again"):
        prepare("cityscapes", city / "archives", city / "root")
