"""Pictures: which files are found, the names of their results, what can be read and what is reported."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.errors import DataError
from isaseg.inference import photographs as pictures
from isaseg.inference.photographs import Picture, find_pictures, pixels_at_most, read_picture


def save(path: Path, height: int = 4, width: int = 6, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def names(*inputs: Path, output: Path = Path("elsewhere")) -> list[str]:
    found = find_pictures([str(path) for path in inputs], output)
    assert all(picture.path.exists() for picture in found)
    return [picture.name for picture in found]


def test_a_folder_gives_its_pictures_sorted_and_nothing_else(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "sub dir/c.tif", "sub dir/deeper/d.bmp", "a.b.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("notes.txt", ".hidden.png", ".git/x.png", "png", "out/labels/old.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")  # to open it would wait for ever
    assert names(tmp_path, output=tmp_path / "out") == ["a.b", "a", "b", "sub dir/c", "sub dir/deeper/d"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    save(tmp_path / "far" / "away" / "a.png")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "one.png").symlink_to(tmp_path / "far" / "away" / "a.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "sub" / "circle").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == ["one"]
    (tmp_path / "in" / "nowhere.png").symlink_to(tmp_path / "gone.png")  # reported when it is read
    found = find_pictures([str(tmp_path / "in")], Path("elsewhere"))
    with pytest.raises(DataError, match=r"No such file or directory in '.*nowhere.png'; replace the file"):
        read_picture(found[0])
    (tmp_path / "linked").symlink_to(tmp_path / "far")
    assert names(tmp_path / "linked") == ["away/a"]


def test_a_file_keeps_its_own_name_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a" / "photo.jpeg")
    save(tmp_path / "a" / "b.png").rename(tmp_path / "a" / "no ending")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(Path("~none.png"))
    found = find_pictures(["../a/photo.jpeg", str(tmp_path / "a" / "no ending"), "~none.png"], Path("out"))
    assert [picture.name for picture in found] == ["photo", "no ending", "~none"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_pictures(["~/a/photo.jpeg"], Path("out"))[0].path == tmp_path / "a" / "photo.jpeg"


def test_what_is_not_there_is_reported(tmp_path: Path) -> None:
    for word in ("", "nowhere.png", "a\0b.png", "x" * 5000):
        with pytest.raises(DataError, match="expected a picture or a folder, got input=.*, which is neither"):
            find_pictures([word], tmp_path)
    with pytest.raises(DataError, match="expected pictures, got none; give input="):
        find_pictures([], tmp_path)
    save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected pictures \(.png, .*\) in '.*empty', got none"):
        find_pictures([str(tmp_path / "a.png"), str(tmp_path / "empty")], tmp_path / "out")


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        find_pictures([str(tmp_path)], Path("out"))


def test_two_pictures_of_one_output_are_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "other/a.png"):
        save(tmp_path / name)
    with pytest.raises(
        DataError, match=r"one picture for each output, got '.*a\.(jpg|png)' and '.*', both for 'a.png'"
    ):
        names(tmp_path)
    with pytest.raises(DataError, match="both for 'a.png'; give them in two calls"):
        names(tmp_path / "a.png", tmp_path / "other" / "a.png")
    with pytest.raises(DataError, match="both for 'a.png'"):
        names(tmp_path / "a.png", tmp_path / "a.png")


def test_transparency_in_a_palette_is_no_matter(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    picture.putpalette([7, 8, 9] * 256)
    picture.save(tmp_path / "a.png", transparency=bytes(range(6)))
    with pixels_at_most(100):
        assert np.array_equal(read_picture(Picture(tmp_path / "a.png", "a")), np.full((2, 3, 3), (7, 8, 9)))


def test_what_cannot_be_read_is_reported_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a\nb.png"
    path.touch()
    with pytest.raises(
        DataError, match=r"expected a readable file: no image in '.*a\\nb.png'; replace the file"
    ):
        read_picture(Picture(path, "a"))
    content = save(tmp_path / "whole.jpg", 50, 50).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"expected a readable file: .* in '.*a\\nb.png'"):
        read_picture(Picture(path, "a"))
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(path, "PNG")
    with pytest.raises(DataError, match=r"expected an image of 8 bits a channel, got I;16B? in '"):
        read_picture(Picture(path, "a"))

    def stumble(path: Path) -> None:
        raise struct.error("unpack requires a buffer")

    monkeypatch.setattr(pictures, "read_image", stumble)
    with pytest.raises(DataError, match=r"no image: error in '.*a\\nb.png'"):
        read_picture(Picture(path, "a"))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_picture_may_be_as_large_as_the_user_says(name: str, tmp_path: Path) -> None:
    picture = Picture(save(tmp_path / name, 40, 50), "a")
    before = Image.MAX_IMAGE_PIXELS
    for limit in (1999, 900):  # Pillow warns at the first, raises at the second
        with (
            pixels_at_most(limit),
            pytest.raises(
                DataError, match=f"at most max_pixels={limit}, got more in '.*{name}'; raise max_pixels"
            ),
        ):
            read_picture(picture)
    with pixels_at_most(2000):
        assert read_picture(picture).shape == (40, 50, 3)
    assert before == Image.MAX_IMAGE_PIXELS
