"""Unpack an archive from a stranger: all its members are checked before the first of them is written.

`zipfile` and `tarfile` do the work. Neither a name nor a link may lead out of the target, and an archive that claims
more than the disk has free is refused. What fails half-way leaves files behind: give a temporary folder as the target.
"""

import gzip
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple, cast

from isaseg.console import counted
from isaseg.errors import DataError

Place = Callable[[str], str | None]

_JUNK = re.compile(r"(^|/)(__MACOSX/|\.DS_Store$|\._)")  # what macOS adds to an archive
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
)


class _Member(NamedTuple):
    """A file or folder in an archive; `extract` writes it to a path below the target."""

    name: str
    size: int
    is_folder: bool
    is_file: bool
    extract: Callable[[str], None]


def unpack(archive: Path, target: Path, place: Place = str) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into a folder.

    Args:
        target: The folder, which is made if it does not exist.
        place: Maps the name of a file to its path below `target`; None leaves the file out.

    Raises:
        DataError: If a member is a link or device or leads out of the target, if two members have one place, if the
            archive is damaged, or if the disk has too little space.
    """
    opened = _zip_members if archive.name.lower().endswith(".zip") else _tar_members
    target.mkdir(parents=True, exist_ok=True)
    try:
        with opened(archive, target) as members:
            chosen = _chosen(members, place)
            size, free = sum(member.size for member in chosen.values()), shutil.disk_usage(target).free
            if size > free:
                raise DataError(
                    f"expected {size / 1e9:.1f} GB free at '{target}' to unpack '{archive}', got {free / 1e9:.1f} GB; "
                    "make room or choose another folder"
                )
            with counted(f"unpacking {archive.name}", len(chosen)) as advance:
                for path, member in chosen.items():
                    member.extract(path)
                    advance()
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"expected to unpack '{archive}', got {error}; fix that and start again"
            ) from error
        got = str(error) or type(error).__name__
        raise DataError(
            f"expected a whole and harmless archive, got {got} in '{archive}'; fetch it again from the official site"
        ) from error


def _chosen(members: list[_Member], place: Place) -> dict[str, _Member]:
    """Check all members; return those that are unpacked by their path below the target.

    Raises:
        ValueError: If one is refused; the message is the reason.
    """
    chosen: dict[str, _Member] = {}
    for member in members:
        path = PureWindowsPath(member.name)  # so that Windows' separators and drives count on every system
        if path.anchor or ".." in path.parts:
            raise ValueError(f"the name {member.name!r}, which leads out of the folder,")
        if not member.name.isprintable():
            raise ValueError(f"the name {member.name!r}, which has control characters,")
        if member.is_folder:
            continue
        if not member.is_file:
            raise ValueError(f"the member {member.name!r}, a link or device,")
        if not path.parts:
            raise ValueError("a file without a name")
        to = None if _JUNK.search(path.as_posix()) else place(path.as_posix())
        if to in chosen:
            raise ValueError(f"the members {chosen[to].name!r} and {member.name!r}, which have one place,")
        if to is not None:
            chosen[to] = member
    return chosen


@contextmanager
def _zip_members(file: Path, target: Path) -> Iterator[list[_Member]]:
    with zipfile.ZipFile(file) as pack:

        def extract(info: zipfile.ZipInfo, path: str) -> None:
            info.filename = path
            pack.extract(info, target)

        yield [
            _Member(
                info.orig_filename,  # `filename` ends at a NUL
                info.file_size,
                info.is_dir(),
                stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG),
                partial(extract, info),
            )
            for info in pack.infolist()
        ]


@contextmanager
def _tar_members(file: Path, target: Path) -> Iterator[list[_Member]]:
    opener = gzip.open if file.name.lower().endswith("gz") else open
    with cast(IO[bytes], opener(file, "rb")) as raw, tarfile.open(fileobj=raw, mode="r:") as pack:
        infos = pack.getmembers()
        _check_end(raw, infos)

        def extract(info: tarfile.TarInfo, path: str) -> None:
            pack.extract(info.replace(name=path, deep=False), target, filter="data")

        yield [_Member(i.name, i.size, i.isdir(), i.isreg(), partial(extract, i)) for i in infos]


def _check_end(file: IO[bytes], infos: list[tarfile.TarInfo]) -> None:
    """Check that the archive is whole: tarfile takes a damaged header, or a missing one, for the end."""
    block = tarfile.BLOCKSIZE
    ends = (info.offset_data + (-(-info.size // block) * block if info.isreg() else 0) for info in infos)
    file.seek(max(ends, default=0))
    if file.read(block) != bytes(block):
        raise tarfile.ReadError("a file that is damaged or cut short")
    while file.read(2**20):  # to the end, where gzip has its checksum
        pass
