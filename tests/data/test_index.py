"""What belongs to a split: files below the root and nowhere else, paired by name."""

from pathlib import Path

import numpy as np
import pytest

from isaseg.data.index import SplitFiles
from isaseg.data.info import DatasetInfo
from isaseg.errors import DataError

TOY = DatasetInfo("Toy", ("a", "b"), np.zeros((2, 3), np.uint8), {0: 0, 1: 1}, layout="  LAYOUT")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def files(root: Path | str | None, *inside: str, split: str = "val") -> SplitFiles:
    return SplitFiles(TOY, split, None if root is None else str(root), inside)


@pytest.mark.parametrize("root", [None, "nowhere", "a file"])
def test_a_root_that_is_no_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a file")
    with pytest.raises(DataError, match=r"(?s)not found: .*Toy.*'val'.*data\.root=/path.*LAYOUT") as error:
        files(root)
    assert f"data.root={root!r}" in str(error.value)


def test_the_root_may_be_a_parent_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kit" / "toy").mkdir(parents=True)
    for root in (tmp_path, "~", tmp_path / "kit" / "toy"):
        assert files(root, "absent", "kit/toy", "kit").folder == tmp_path.resolve() / "kit" / "toy"


def test_files_by_name(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b c_x.png", "sub/d_x.JPG", ".e_x.png", "f_x.txt", "g.png")))
    found = files(tmp_path)
    assert found.find(".", suffix="_x") == {
        "b c": tmp_path / "b c_x.png",
        "sub/d": tmp_path / "sub" / "d_x.JPG",
    }
    assert list(found.find(".", (".txt",))) == ["f_x"]
    assert found.find("absent") == {}
    assert (found.first("absent", "sub"), found.first("x", "y")) == (tmp_path / "sub", tmp_path / "x")
    touch(tmp_path / "g.jpg")
    with pytest.raises(DataError, match=r"one file for each name, got '.*g\.jpg' and '.*g\.png'"):
        found.find(".")


@pytest.mark.parametrize("name", ["Straße 東京", "a  b", "%2e%2e", "a'b;c", "-rf", "x\ny"])
def test_d9_names_are_opaque(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "images" / f"{name}.jpg", tmp_path / "masks" / f"{name}.png")
    found = files(tmp_path)
    (pair,) = found.pairs(found.find("images"), found.find("masks"))
    assert pair.name == name
    assert pair.image.is_file() and pair.mask is not None and pair.mask.is_file()


def test_d9_names_that_differ_in_case_are_two(tmp_path: Path) -> None:
    touch(tmp_path / "A.png", tmp_path / "a.png")
    if len(list(tmp_path.iterdir())) == 2:  # not so on every file system
        assert list(files(tmp_path).find(".")) == ["A", "a"]


@pytest.mark.parametrize("kind", ["file", "folder", "the folder itself", "the data set", "parent"])
def test_d9_a_link_out_of_root_is_refused(tmp_path: Path, kind: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "images" / "a.png", outside / "train" / "b.png", outside / "train2.png")
    link, target = {
        "file": (root / "images" / "c.png", outside / "train2.png"),
        "folder": (root / "images" / "sub", outside / "train"),
        "the folder itself": (root / "masks", outside / "train"),
        "the data set": (root / "kit", outside),
        "parent": (root / "images" / "up", tmp_path),
    }[kind]
    link.symlink_to(target)
    with pytest.raises(
        DataError, match=rf"below data\.root='.*root', got the link '{link}' to '{target}'; copy"
    ):
        files(root, "kit").find("masks" if kind == "the folder itself" else "images")


def test_d9_links_inside_root_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "a.png", tmp_path / "images" / "b.png")
    (tmp_path / "images" / "c.png").symlink_to(tmp_path / "store" / "a.png")
    (tmp_path / "images" / "sub").symlink_to(tmp_path / "store")
    assert list(files(tmp_path).find("images")) == ["b", "c", "sub/a"]
    (tmp_path.parent / f"{tmp_path.name} link").symlink_to(tmp_path)
    assert list(files(f"{tmp_path} link").find("store")) == ["a"], "the root itself may be a link"


def test_d9_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"got the link '.*/a/up' back to"):
        files(tmp_path).find(".")
    (tmp_path / "a" / "up").unlink()
    (tmp_path / "self.png").symlink_to("self.png")
    assert list(files(tmp_path).find(".")) == ["a/1", "self"]  # decoding it fails


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", r"got the empty list '.*val\.txt' \(split 'val'\)"),
        (b"a\nb\na\n", r"each image once, got 'a' twice in the list '.*val\.txt'"),
        (None, r"(?s)list of .*'val' of Toy, got '.*val\.txt': No such file.*LAYOUT"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "val.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        files(tmp_path).read_list("val.txt")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "sub/../../../x", "a\0b"])
def test_d9_a_list_cannot_lead_out_of_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "root"
    touch(tmp_path / "x.png", root / "images" / "a.png")
    (root / "train.txt").write_text(f"a\r\n\r\n {name} \n")
    found = files(root)
    assert found.read_list("train.txt") == ["a", name]
    with pytest.raises(DataError, match="1 of 2 pairs"):
        found.pairs(found.find("images"), None, found.read_list("train.txt"))


def test_d9_a_list_that_is_a_link_out_of_root_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="got the link") as error:
        files(tmp_path / "root").read_list("train.txt")
    assert "password" not in str(error.value)


def test_pairs_are_sorted_or_in_the_order_of_the_list(tmp_path: Path) -> None:
    images = {name: Path(f"{name}.jpg") for name in "cab"}
    masks = {name: Path(f"{name}.png") for name in "bacd"}
    found = files(tmp_path)
    assert [(p.name, p.mask) for p in found.pairs(images, None)] == [("a", None), ("b", None), ("c", None)]
    pairs = found.pairs(images, masks, ["c", "a"])
    assert [(p.name, p.image.name, p.mask and p.mask.name) for p in pairs] == [
        ("c", "c.jpg", "c.png"),
        ("a", "a.jpg", "a.png"),
    ]


def test_d1_missing_partners_are_counted_and_five_are_named(tmp_path: Path) -> None:
    found = files(tmp_path)
    images = {f"{i}": Path(f"i{i}.jpg") for i in range(9)}
    masks = {"0": Path("m0.png"), "1": Path("m1.png")}
    with pytest.raises(
        DataError,
        match=r"(?s)with a mask for every image, got 2 of 9 pairs in data\.root='.*' \(split 'val'\); "
        r"missing: mask of 'i2.jpg', .*'i6.jpg', \.\.\.; pass .*LAYOUT",
    ) as error:
        found.pairs(images, masks)
    assert "i7.jpg" not in str(error.value)
    with pytest.raises(DataError, match=r"missing: image of 'm1\.png'"):
        found.pairs({"0": Path("i0.jpg")}, masks)
    with pytest.raises(DataError, match="0 of 0 pairs"):
        found.pairs({}, {})
    with pytest.raises(DataError, match=r"Toy with images, got 0 of 1 pairs .*missing: image of 'x'"):
        found.pairs({}, None, ["x"])
