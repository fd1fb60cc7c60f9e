"""D10: an archive from a stranger is unpacked below the target, or refused before anything is written."""

import io
import os
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from isaseg.data.tools.unpack import Place, unpack
from isaseg.errors import DataError

noise = random.Random(0).randbytes
FILES = {"a/one.txt": b"1" * 3000, "a/b/two.bin": noise(5000), "empty": b"", "a/ein Bild é.txt": b"3"}
ENDINGS = ["zip", "tar", "tar.gz", "tgz"]
Entry = tuple[zipfile.ZipInfo | str, bytes]


def make_zip(path: Path, entries: list[Entry], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as pack:
        for info, content in entries:
            pack.writestr(info, content)
    return path


def make_tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    mode = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz"}[path.name.split(".", 1)[1]]
    with tarfile.open(path, mode) as pack:
        for info, content in entries:
            info.size = len(content) or info.size
            pack.addfile(info, io.BytesIO(content) if content else None)
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return make_zip(path, list(files.items()))
    return make_tar(path, [(tarfile.TarInfo(name), content) for name, content in files.items()])


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Return all there is below a folder: contents, targets of links, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        found[name] = (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if isinstance(content, bytes)}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_bytes(b"mine")
    return tmp_path / "target"


def refused(archive: Path, target: Path, match: str, place: Place = str) -> None:
    """Check that nothing of an archive is written, and that the error names it."""
    before = tree(target.parent)
    with pytest.raises(DataError, match=match) as error:
        unpack(archive, target, place)
    assert str(archive) in str(error.value)
    assert tree(target.parent) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_are_unpacked(tmp_path: Path, ending: str) -> None:
    target = tmp_path / "new" / "target"
    unpack(make(tmp_path / f"x.{ending}", FILES), target)
    assert files(target) == FILES


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_folders_dots_and_the_junk_of_a_mac_are_left_out(tmp_path: Path, ending: str) -> None:
    names = ["./a/x", "a/.DS_Store", "__MACOSX/a/x", "a/._x"]
    if ending == "zip":
        archive = make_zip(tmp_path / "x.zip", [("a/", b""), *((name, b"1") for name in names)])
    else:
        folders = [(special(name, tarfile.DIRTYPE), b"") for name in (".", "./a", "a")]
        archive = make_tar(tmp_path / "x.tar", [*folders, *((tarfile.TarInfo(name), b"1") for name in names)])
    unpack(archive, tmp_path / "target")
    assert tree(tmp_path / "target") == {"a": None, "a/x": b"1"}


NAMES = [
    ("../x", "leads out"),
    ("a/../../x", "leads out"),
    ("a/..", "leads out"),
    ("/tmp/x", "leads out"),
    ("//x", "leads out"),
    ("C:/x", "leads out"),
    ("c:x", "leads out"),
    ("C:\\x", "leads out"),
    ("a\\..\\..\\x", "leads out"),
    ("a\nb", "control"),
    ("a\x1b[2Jb", "control"),
]


@pytest.mark.parametrize(("name", "match"), NAMES)
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_d10_names_that_lead_elsewhere_are_refused(target: Path, ending: str, name: str, match: str) -> None:
    archive = make(target.parent / f"x.{ending}", {"good": b"1", name: b"2"})
    refused(archive, target, match)
    refused(archive, target, match, lambda path: None)


def test_d10_a_file_without_a_name_is_refused(target: Path) -> None:
    refused(make(target.parent / "x.tar", {"good": b"1", ".": b"2"}), target, "without a name")


def test_d10_a_zip_name_with_a_nul_is_refused(target: Path) -> None:
    archive = make_zip(target.parent / "x.zip", [("good", b"1"), ("x.png_/../../x", b"2")])
    archive.write_bytes(archive.read_bytes().replace(b"x.png_", b"x.png\0"))  # zipfile shows it as x.png
    refused(archive, target, "leads out")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_d10_two_members_with_one_place_are_refused(target: Path, ending: str) -> None:
    refused(
        make(target.parent / f"x.{ending}", {"a/x": b"1", "a/./x": b"2"}),
        target,
        "'a/./x', which have one place",
    )
    archive = make(target.parent / f"y.{ending}", {"a/x": b"1", "b/x": b"2"})
    refused(archive, target, "'a/x' and 'b/x', which have one place", lambda path: path[2:])


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666, 0o140666, 0o040755])
def test_d10_special_members_of_a_zip_are_refused(target: Path, mode: int) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, mode << 16
    refused(
        make_zip(target.parent / "x.zip", [("good", b"1"), (info, b"../outside")]), target, "link or device"
    )


@pytest.mark.parametrize(
    "entries",
    [
        [special("link", tarfile.SYMTYPE, "../outside"), tarfile.TarInfo("link/x")],
        [special("link", tarfile.SYMTYPE, "good")],
        [special("link", tarfile.LNKTYPE, "../outside/secret")],
        [special("link", tarfile.LNKTYPE, "good")],
        [special("null", tarfile.CHRTYPE)],
        [special("disk", tarfile.BLKTYPE)],
        [special("pipe", tarfile.FIFOTYPE)],
        [special("odd", b"Z"), special("pipe", tarfile.FIFOTYPE)],
    ],
)
def test_d10_special_members_of_a_tar_are_refused(target: Path, entries: list[tarfile.TarInfo]) -> None:
    first: list[tuple[tarfile.TarInfo, bytes]] = [(tarfile.TarInfo("good"), b"1")]
    archive = make_tar(target.parent / "x.tar", first + [(info, b"") for info in entries])
    refused(archive, target, "link or device")


@pytest.mark.parametrize("ending", ["zip", "tgz"])
def test_d10_more_than_the_disk_has_free_is_refused(
    target: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make(target.parent / f"x.{ending}", FILES)
    usage = shutil.disk_usage(target)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8000))
    refused(archive, target, r"GB free at .*make room")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=8001))
    unpack(archive, target)


def test_d10_an_encrypted_zip_is_refused(target: Path) -> None:
    archive = make_zip(target.parent / "x.zip", [("a", b"1")])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    content[content.index(b"PK\x03\x04") + 6] |= 1
    archive.write_bytes(content)
    refused(archive, target, "encrypted")


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


HARMS = [cut, flip, lambda content: b"", lambda content: noise(2000)]


@pytest.mark.parametrize(
    ("ending", "harm"),
    # a tar has no checksum of its contents
    [(e, h) for e in ("zip", "tar", "tgz") for h in HARMS if (e, h) != ("tar", flip)],
)
def test_d11_a_damaged_archive_is_reported(
    tmp_path: Path, ending: str, harm: Callable[[bytes], bytes]
) -> None:
    archive = make(tmp_path / f"x.{ending}", {f"{i}": noise(4000) for i in range(9)})
    archive.write_bytes(harm(archive.read_bytes()))
    with pytest.raises(DataError, match="whole and harmless archive"):
        unpack(archive, tmp_path / "target")


@pytest.mark.parametrize("at", [4096 + 512, 2 * (4096 + 512) + 200])
def test_d11_a_tar_that_ends_between_members_or_has_a_bad_header_is_damaged(target: Path, at: int) -> None:
    archive = make(target.parent / "x.tar", {f"{i}": noise(4096) for i in range(4)})
    content = archive.read_bytes()
    archive.write_bytes(content[:at] if at % 512 == 0 else content[:at] + b"!" + content[at + 1 :])
    refused(archive, target, "damaged or cut short")


def test_d11_a_member_that_holds_more_than_it_declares_is_damaged(target: Path) -> None:
    archive = make_zip(target.parent / "x.zip", [("a", b"1" * 900)])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 24 : content.index(b"PK\x01\x02") + 26] = struct.pack("<H", 500)
    archive.write_bytes(content)
    with pytest.raises(DataError, match="whole and harmless .* file 'a'"):
        unpack(archive, target)


def test_a_disk_fault_is_reported_as_one(target: Path) -> None:
    (target / "a").write_bytes(b"a file")
    with pytest.raises(DataError, match=r"x.zip', got .*a/one.txt'; fix that"):
        unpack(make(target.parent / "x.zip", FILES), target)
