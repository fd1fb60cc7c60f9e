"""What belongs to a split: files below the root and nowhere else, paired by name."""

from pathlib import Path

import numpy as np
import pytest

from isaseg.data.index import find_root, list_files, pair_files, read_list
from isaseg.data.info import DatasetInfo, dataset_info
from isaseg.errors import DataError

TOY = DatasetInfo("Toy", ("a", "b"), np.zeros((2, 3), np.uint8), {0: 0, 1: 1}, layout="  LAYOUT")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("root", [None, "nowhere", "a file"])
def test_a_root_that_is_no_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "a file")
    with pytest.raises(
        DataError, match=r"(?s)data set not found: .*Toy.*'val'.*data\.root=/path.*LAYOUT"
    ) as error:
        find_root(root, TOY, "val")
    assert f"data.root={root!r}" in str(error.value)


def test_the_root_may_be_a_parent_or_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kit" / "toy").mkdir(parents=True)
    for root in (str(tmp_path), "~"):
        assert find_root(root, TOY, "val", ("absent", "kit/toy", "kit")) == tmp_path.resolve() / "kit" / "toy"
    assert (
        find_root(str(tmp_path / "kit" / "toy"), TOY, "val", ("kit/toy",))
        == tmp_path.resolve() / "kit" / "toy"
    )


def test_files_by_name(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b c_x.png", "sub/d_x.JPG", ".e_x.png", "f_x.txt", "g.png")))
    assert list_files(tmp_path, tmp_path, suffix="_x") == {
        "b c": tmp_path / "b c_x.png",
        "sub/d": tmp_path / "sub" / "d_x.JPG",
    }
    assert list(list_files(tmp_path, tmp_path, (".txt",))) == ["f_x"]
    assert list_files(tmp_path / "absent", tmp_path) == {}
    touch(tmp_path / "g.jpg")
    with pytest.raises(DataError, match=r"one file for each name, got '.*g\.jpg' and '.*g\.png'"):
        list_files(tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["Straße 東京", "a  b", "%2e%2e", "a'b;c", "-rf", "x\ny"])
def test_d9_names_are_opaque(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "images" / f"{name}.jpg", tmp_path / "masks" / f"{name}.png")
    images, masks = list_files(tmp_path / "images", tmp_path), list_files(tmp_path / "masks", tmp_path)
    (pair,) = pair_files(images, masks, str(tmp_path), TOY, "val")
    assert (pair.name, pair.image.is_file(), pair.mask is not None and pair.mask.is_file()) == (
        name,
        True,
        True,
    )


def test_d9_names_that_differ_in_case_are_two(tmp_path: Path) -> None:
    touch(tmp_path / "A.png", tmp_path / "a.png")
    if len(list(tmp_path.iterdir())) == 2:  # not so on every file system
        assert list(list_files(tmp_path, tmp_path)) == ["A", "a"]


@pytest.mark.parametrize("kind", ["file", "folder", "the folder itself", "parent"])
def test_d9_a_link_out_of_root_is_refused(tmp_path: Path, kind: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "images" / "a.png", outside / "train" / "b.png", outside / "train2.png")
    link, target = {
        "file": (root / "images" / "c.png", outside / "train2.png"),
        "folder": (root / "images" / "sub", outside / "train"),
        "the folder itself": (root / "masks", outside / "train"),
        "parent": (root / "images" / "up", tmp_path),
    }[kind]
    link.symlink_to(target)
    with pytest.raises(
        DataError, match=rf"below data\.root='.*root', got the link '{link}' to '{target}'; copy"
    ):
        list_files(root / ("masks" if kind == "the folder itself" else "images"), root)


def test_d9_links_inside_root_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "a.png", tmp_path / "images" / "b.png")
    (tmp_path / "images" / "c.png").symlink_to(tmp_path / "store" / "a.png")
    (tmp_path / "images" / "sub").symlink_to(tmp_path / "store")
    assert list(list_files(tmp_path / "images", tmp_path)) == ["b", "c", "sub/a"]
    (tmp_path.parent / f"{tmp_path.name} link").symlink_to(tmp_path)
    root = find_root(f"{tmp_path} link", TOY, "val")  # the root itself may be a link
    assert list(list_files(root / "store", root)) == ["a"]


def test_d9_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"got the link '.*/a/up' back to"):
        list_files(tmp_path, tmp_path)
    (tmp_path / "a" / "up").unlink()
    (tmp_path / "self.png").symlink_to("self.png")
    assert list(list_files(tmp_path, tmp_path)) == ["a/1", "self"]  # decoding it fails


def test_d9_a_folder_of_root_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "kit").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"got the link '.*/root/kit' to '.*/outside'"):
        find_root(str(tmp_path / "root"), TOY, "val", ("kit",))


def test_lists(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes("a b\r\n\r\n é \n".encode())
    assert read_list(path, tmp_path, TOY, "train") == ["a b", "é"]
    path.write_text("\n \n")
    with pytest.raises(DataError, match=r"got the empty list '.*train\.txt' \(split 'train'\)"):
        read_list(path, tmp_path, TOY, "train")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no UTF-8 text"):
        read_list(path, tmp_path, TOY, "train")
    path.unlink()
    with pytest.raises(
        DataError, match=r"(?s)list of .*'train' of Toy, got '.*train\.txt': No such file.*LAYOUT"
    ):
        read_list(path, tmp_path, TOY, "train")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "sub/../../../x", "a\0b", ""])
def test_d9_a_list_cannot_lead_out_of_root(tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "root"
    touch(tmp_path / "x.png", root / "images" / "a.png")
    (root / "train.txt").write_text(f"a\n{name}\n")
    names = read_list(root / "train.txt", root, TOY, "train")
    images = list_files(root / "images", root)
    if not name:
        assert names == ["a"]
        return
    with pytest.raises(DataError, match="1 of 2 pairs"):
        pair_files(images, None, str(root), TOY, "train", names)


def test_d9_a_list_that_is_a_link_out_of_root_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="got the link") as error:
        read_list(tmp_path / "root" / "train.txt", tmp_path / "root", TOY, "train")
    assert "password" not in str(error.value)


def test_pairs_are_sorted_or_in_the_order_of_the_list() -> None:
    images = {name: Path(f"{name}.jpg") for name in "cab"}
    masks = {name: Path(f"{name}.png") for name in "bacd"}
    assert [p.name for p in pair_files(images, None, None, TOY, "val")] == ["a", "b", "c"]
    pairs = pair_files(images, masks, None, TOY, "val", ["c", "a"])
    assert [(p.name, p.image.name, p.mask and p.mask.name) for p in pairs] == [
        ("c", "c.jpg", "c.png"),
        ("a", "a.jpg", "a.png"),
    ]


def test_d1_missing_partners_are_counted_and_five_are_named() -> None:
    images = {f"{i}": Path(f"i{i}.jpg") for i in range(9)}
    masks = {"0": Path("m0.png"), "1": Path("m1.png")}
    with pytest.raises(DataError) as error:
        pair_files(images, masks, "here", TOY, "val")
    for part in (
        "2 of 9 pairs",
        "data.root='here'",
        "'val'",
        "mask of 'i2.jpg'",
        "i6.jpg",
        ", ...",
        "LAYOUT",
    ):
        assert part in str(error.value)
    assert "i7.jpg" not in str(error.value)
    with pytest.raises(DataError, match=r"missing: image of 'm1\.png'"):
        pair_files({"0": Path("i0.jpg")}, masks, "here", TOY, "val")
    with pytest.raises(DataError, match="0 of 0 pairs"):
        pair_files({}, {}, "here", TOY, "val")
    with pytest.raises(
        DataError, match=r"expected Toy with images, got 0 of 1 pairs .*missing: image of 'x'"
    ):
        pair_files({}, None, "here", TOY, "test", ["x"])


def test_a_name_that_stands_twice_in_a_list_is_refused(tmp_path: Path) -> None:
    """It would count twice in the score."""
    (tmp_path / "val.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"each image once, got 'a' twice in the list '.*val\.txt'"):
        read_list(tmp_path / "val.txt", tmp_path, dataset_info("lip"), "val")
