"""D10: an archive from a stranger is unpacked below the target, or refused before anything is written."""

import bz2
import gzip
import io
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from isaseg.data.tools import unpack as unpack_module
from isaseg.data.tools.archive import open_archive
from isaseg.data.tools.unpack import bytes_to_unpack, unpack
from isaseg.errors import DataError
from isaseg.files import sha256

noise = random.Random(0).randbytes
FILES = {"a/one.txt": b"1" * 3000, "a/b/two.bin": noise(5000), "empty": b"", "a/ein Bild é.txt": b"3"}
ENDINGS = ["zip", "tar", "tar.gz", "tgz", "tar.bz2"]
Entry = tuple[zipfile.ZipInfo | str, bytes]


def make_zip(path: Path, entries: list[Entry], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as pack:
        for info, content in entries:
            pack.writestr(info, content)
    return path


def make_tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    mode = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2"}[path.name.split(".", 1)[1]]
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


def refused(archive: Path, target: Path, match: str, **options: object) -> None:
    before = tree(target.parent)
    with pytest.raises(DataError, match=match) as error:
        unpack(archive, target, **options)  # type: ignore[arg-type]
    assert str(archive) in str(error.value)
    with pytest.raises(DataError, match=match):
        bytes_to_unpack(archive, target) if not options else unpack(archive, target, **options)  # type: ignore[arg-type]
    assert tree(target.parent) == before


@pytest.mark.parametrize("ending", ENDINGS)
def test_files_are_unpacked_with_their_checksums(tmp_path: Path, ending: str) -> None:
    archive, target = make(tmp_path / f"x.{ending}", FILES), tmp_path / "new" / "target"
    assert bytes_to_unpack(archive, target) == sum(map(len, FILES.values()))
    assert not target.exists()
    made = unpack(archive, target)
    assert files(target) == FILES
    assert {(f.path, f.bytes, f.sha256) for f in made} == {
        (name, len(content), sha256(target / name)) for name, content in FILES.items()
    }
    assert bytes_to_unpack(archive, target) == 0


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_second_run_keeps_equal_files_and_mends_others(tmp_path: Path, ending: str) -> None:
    archive, target = make(tmp_path / f"x.{ending}", FILES), tmp_path / "target"
    made = unpack(archive, target)
    os.utime(target / "a/one.txt", (1, 1))
    (target / "a/b/two.bin").write_bytes(b"2" * 5000)  # same size
    (target / "a/ein Bild é.txt").unlink()
    assert unpack(archive, target) == made
    assert files(target) == FILES
    assert (target / "a/one.txt").stat().st_mtime == 1


def test_files_go_where_they_are_placed(tmp_path: Path) -> None:
    archive = make(tmp_path / "x.zip", FILES)
    made = unpack(
        archive, tmp_path / "target", lambda name: f"./in/{name}" if name.startswith("a/b") else None
    )
    assert [file.path for file in made] == ["in/a/b/two.bin"]
    assert files(tmp_path / "target") == {"in/a/b/two.bin": FILES["a/b/two.bin"]}


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_folders_dots_and_the_junk_of_a_mac_are_passed_over(tmp_path: Path, ending: str) -> None:
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
    ("/tmp/x", "absolute"),
    ("//x", "absolute"),
    ("C:/x", "absolute"),
    ("c:x", "absolute"),
    ("C:\\x", "backslash"),
    ("a\\..\\..\\x", "backslash"),
    ("a\nb", "control"),
    ("a\x1b[2Jb", "control"),
    ("./", "without a name"),
    ("x" * 201, "too long"),
    ("x/" * 501, "too long"),
]


@pytest.mark.parametrize(("name", "match"), NAMES)
@pytest.mark.parametrize("ending", ["zip", "tar", "tgz"])
def test_d10_names_that_lead_elsewhere_are_refused(target: Path, ending: str, name: str, match: str) -> None:
    bad = name.rstrip("/") if name != "./" and ending != "zip" else name
    if name in ("./", "x/" * 501):
        bad = "." if name == "./" else "x/" * 501 + "x"
    archive = make(target.parent / f"x.{ending}", {"good": b"1", bad: b"2"})
    refused(archive, target, match)
    refused(archive, target, match, place=lambda path: None)


def test_d10_a_zip_name_with_a_nul_is_refused(target: Path) -> None:
    archive = make_zip(target.parent / "x.zip", [("good", b"1"), ("x.png_/../../x", b"2")])
    archive.write_bytes(archive.read_bytes().replace(b"x.png_", b"x.png\0"))  # zipfile shows it as x.png
    refused(archive, target, "control")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["a/X.png", "a/x.png"], "another member"),
        (["A/x.png", "a/y.png"], "another member"),
        (["é.png", "e\u0301.png"], "another member"),
        (["a", "a/b"], "another member"),
        (["a/b", "a"], "another member"),
        (["a/x", "a/./x"], "another member"),
        (["a/x", "a//x"], "another member"),
    ],
)
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_d10_names_that_some_file_system_confuses_are_refused(
    target: Path, ending: str, names: list[str], match: str
) -> None:
    refused(make(target.parent / f"x.{ending}", dict.fromkeys(names, b"1")), target, match)


def test_d10_two_places_for_one_file_are_refused(target: Path) -> None:
    archive = make(target.parent / "x.zip", {"a/x": b"1", "b/X": b"2"})
    refused(archive, target, "another member", place=lambda path: path[2:])


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010666, 0o140666, 0o040755])
def test_d10_special_members_of_a_zip_are_refused(target: Path, mode: int) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, mode << 16
    refused(
        make_zip(target.parent / "x.zip", [("good", b"1"), (info, b"../outside")]), target, "special file"
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
    ids=[
        "link and file through it",
        "link",
        "hard link",
        "hard link inside",
        "device",
        "block",
        "fifo",
        "unknown",
    ],
)
@pytest.mark.parametrize("ending", ["tar", "tgz"])
def test_d10_special_members_of_a_tar_are_refused(
    target: Path, ending: str, entries: list[tarfile.TarInfo]
) -> None:
    first: list[tuple[tarfile.TarInfo, bytes]] = [(tarfile.TarInfo("good"), b"1")]
    archive = make_tar(target.parent / f"x.{ending}", first + [(info, b"") for info in entries])
    refused(archive, target, "special file")


def test_d10_a_zip_of_zeros_is_refused(target: Path) -> None:
    raw = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join([raw.compress(bytes(2**24)) for _ in range(7)]) + raw.flush()  # 117 MB
    info = zipfile.ZipInfo("zeros.png")
    archive = make_zip(target.parent / "x.zip", [(info, packed)], zipfile.ZIP_STORED)
    size = struct.pack("<I", 10**9)  # said to be 1 GB, deflated
    content = bytearray(archive.read_bytes())
    for at in (content.index(b"PK\x01\x02"), content.index(b"PK\x03\x04")):
        method, sizes = (10, 24) if content[at + 2] == 1 else (8, 22)
        content[at + method] = zipfile.ZIP_DEFLATED
        content[at + sizes : at + sizes + 4] = size
    archive.write_bytes(content)
    refused(archive, target, "bomb")


def test_d10_many_small_bombs_are_one(target: Path) -> None:
    zeros = bytes(2**20)
    archive = make_zip(target.parent / "x.zip", [(f"{i}", zeros) for i in range(100)])
    refused(archive, target, "bomb")


def test_d10_a_tar_that_claims_much_is_refused_before_it_is_decompressed(target: Path) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 150 * 10**9
    path = target.parent / "x.tgz"
    with gzip.open(path, "wb") as file:
        file.write(info.tobuf() + bytes(10**6))
    refused(path, target, "bomb")
    info.size = 300 * 10**9
    path = target.parent / "x.tar"
    path.write_bytes(info.tobuf())
    refused(path, target, "unpacked")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_d10_a_header_that_claims_much_is_not_read_into_memory(target: Path, kind: bytes) -> None:
    header = special("x", kind)
    header.size = 32 * 2**20
    path = target.parent / "x.tar.gz"
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf() + bytes(header.size) + tarfile.TarInfo("x").tobuf() + bytes(1024))
    tracemalloc.start()
    refused(path, target, "header of")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_d10_limits(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(target.parent / "x.zip", FILES)
    refused(archive, target, "more than 3 members", max_members=3)
    refused(archive, target, "more than 8000 bytes", max_bytes=8000)
    unpack(archive, target.parent / "fits", max_members=4, max_bytes=8001)
    usage = unpack_module.shutil.disk_usage(target)
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda path: usage._replace(free=8000))
    before = tree(target)
    with pytest.raises(DataError, match=r"GB free at .*make room"):
        unpack(archive, target)
    assert tree(target) == before


def test_d10_an_encrypted_zip_is_refused(target: Path) -> None:
    archive = make_zip(target.parent / "x.zip", [("a", b"1")])
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    content[content.index(b"PK\x03\x04") + 6] |= 1
    archive.write_bytes(content)
    refused(archive, target, "encrypted")


def test_d10_an_unknown_compression_is_refused(target: Path) -> None:
    archive = make_zip(target.parent / "x.zip", [("a", b"1")], zipfile.ZIP_LZMA)
    refused(archive, target, "compression")


def test_d10_a_link_in_the_target_is_not_followed(target: Path) -> None:
    (target / "a").symlink_to("../outside")
    refused(make(target.parent / "x.zip", {"good": b"1", "a/secret": b"2"}), target, "remove the link")


def test_d10_a_link_in_place_of_a_file_is_replaced(target: Path) -> None:
    (target / "x").symlink_to("../outside/secret")
    (target / ".x.part").symlink_to("../outside/secret")
    unpack(make(target.parent / "x.zip", {"x": b"public"}), target)
    assert tree(target.parent)["outside/secret"] == b"secret"
    assert tree(target) == {"mine": b"mine", "x": b"public"}


def zip_bytes(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, content in entries.items():
            pack.writestr(name, content)
    return buffer.getvalue()


def test_zips_inside_a_zip_are_unpacked_without_a_copy(tmp_path: Path) -> None:
    innermost = zip_bytes({"x": b"1", "y": noise(3 * 2**20)})
    inner = zip_bytes({"in.zip": innermost, "z": b"2", "other.zip": b"3"})
    archive = make_zip(tmp_path / "x.zip", [("d/in.zip", inner), ("w", b"4")])
    unpack(archive, tmp_path / "target", lambda name: name.replace("!", ""), ("in.zip",))
    names = ["d/in.zip/in.zip/x", "d/in.zip/in.zip/y", "d/in.zip/other.zip", "d/in.zip/z", "w"]
    assert sorted(files(tmp_path / "target")) == names
    assert bytes_to_unpack(archive, tmp_path / "target", lambda name: name.replace("!", ""), ("in.zip",)) == 0


def test_d10_a_zip_inside_a_zip_is_checked_before_all(target: Path) -> None:
    archive = make_zip(
        target.parent / "x.zip", [("good", b"1"), ("in.zip", zip_bytes({"ok": b"1", "../x": b"2"}))]
    )
    refused(archive, target, "leads out", nested=("in.zip",))
    archive = make_zip(
        target.parent / "y.zip", [("good", b"1"), ("x!/in.zip", zip_bytes({"x!/../../x": b"2"}))]
    )
    refused(archive, target, "leads out", nested=("in.zip",))
    deep = zip_bytes({"x": b"1"})
    for _ in range(3):
        deep = zip_bytes({"in.zip": deep})
    archive = make_zip(target.parent / "z.zip", [("good", b"1"), ("in.zip", deep)])
    refused(archive, target, "3 zips", nested=("in.zip",))


def cut(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


HARMS = [cut, flip, lambda content: b"", lambda content: noise(2000)]
ARCHIVES = ["zip", "tar", "tgz", "tar.bz2"]


@pytest.mark.parametrize(
    ("ending", "harm"),
    [
        (e, h) for e in ARCHIVES for h in HARMS if (e, h) != ("tar", flip)
    ],  # a tar has no checksum of its contents
)
def test_d11_a_damaged_archive_leaves_whole_files_only(
    tmp_path: Path, ending: str, harm: Callable[[bytes], bytes]
) -> None:
    contents = {f"{i}": noise(4000) for i in range(9)}
    archive, target = make(tmp_path / f"x.{ending}", contents), tmp_path / "target"
    whole = archive.read_bytes()
    archive.write_bytes(harm(whole))
    with pytest.raises(DataError, match="whole and harmless archive"):
        unpack(archive, target)
    assert files(target).items() <= contents.items()
    archive.write_bytes(whole)
    unpack(archive, target)
    assert files(target) == contents


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
    before = tree(target)
    with pytest.raises(DataError, match="whole and harmless"):
        unpack(archive, target)
    assert tree(target) == before


def test_the_real_bytes_are_counted(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make(target.parent / "x.zip", {"a": b"123"})
    before = tree(target)
    for content, match in ((b"1234", "more than the 3 bytes"), (b"12", "2 of 3 bytes")):
        monkeypatch.setattr(zipfile.ZipFile, "open", lambda *args, content=content: io.BytesIO(content))
        with pytest.raises(DataError, match=match):
            unpack(archive, target)
    assert tree(target) == before


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, target = make(tmp_path / "x.zip", FILES), tmp_path / "target"
    replace, left = os.replace, iter(range(2))

    def killed(*args: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, target)
    monkeypatch.undo()
    assert len(files(target)) == 2
    (target / ".empty.part").write_bytes(b"of a run that was killed")
    unpack(archive, target)
    assert files(target) == FILES


def test_a_disk_fault_is_told_as_one(target: Path) -> None:
    (target / "a").write_bytes(b"a file")
    with pytest.raises(DataError, match=r"'x.zip'|member 'a/one.txt', got .*mend that"):
        unpack(make(target.parent / "x.zip", FILES), target)


def test_another_ending_is_refused(target: Path) -> None:
    path = target.parent / "x.rar"
    path.write_bytes(bz2.compress(b"1"))
    refused(path, target, "none of .zip")


def test_members_are_read_in_the_order_in_which_they_lie(tmp_path: Path) -> None:
    archive = make(tmp_path / "x.tgz", FILES)
    with open_archive(archive) as members:
        assert [member.name for member in members] == list(FILES)
