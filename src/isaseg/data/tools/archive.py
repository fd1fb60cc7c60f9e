"""What is in an archive from a stranger: its members, each checked before one of them is read.

A zip or tar may hold files and folders, and nothing else: no links, no devices, no name that leads elsewhere or that
two members share on some file system, no more than a disk could take. Zips inside a zip are read where they are.
"""

import bz2
import gzip
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from isaseg.errors import DataError

Place = Callable[[str], str | None]

CHUNK = 2**20  # bytes
MAX_MEMBERS = 1_000_000
MAX_BYTES = 200 * 10**9
_MAX_RATIO = 200  # zlib reaches 1000 on zeros; labels are PNG, compressed before they are packed
_RATIO_FROM = 100 * 10**6  # bytes: what unpacks to less is no bomb
_MAX_DEPTH = 3  # zips inside one another
_TARS: dict[str, Callable[..., Any]] = {
    ".tar": open,
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.open,
    ".tbz2": bz2.open,
}
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: As the archive calls it.
        path: Where it goes, below the target.
        size: Bytes that the archive declares.
        crc: CRC-32; a tar has none.
        open: Opens it; in the order of the list this only reads on.
    """

    name: str
    path: str
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]


@contextmanager
def open_archive(
    archive: Path,
    place: Place = str,
    nested: Collection[str] = (),
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_BYTES,
) -> Iterator[list[Member]]:
    """Open a .zip, .tar, .tar.gz, .tgz or .tar.bz2, and give the files in it that have a place.

    Args:
        archive: The archive.
        place: Where a file goes below the target, given its name; None: it is checked but not listed.
        nested: File names of zips inside a zip whose files are listed instead; their names are `inner.zip!/name`.
        max_members: More are refused.
        max_bytes: More, unpacked, are refused.

    Raises:
        DataError: If a member, listed or not, is refused, or the archive is damaged.
    """
    with ExitStack() as stack:
        scan = _Scan(archive, place, nested, max_members, max_bytes, stack)
        with faults(archive):
            opener = next((o for ending, o in _TARS.items() if archive.name.lower().endswith(ending)), None)
            if opener is not None:
                members = list(_tar_members(scan, stack.enter_context(opener(archive, "rb"))))
            elif archive.name.lower().endswith(".zip"):
                members = list(_zip_members(scan, archive))
            else:
                raise ValueError(f"an ending that is none of .zip, {', '.join(_TARS)},")
        yield members


def safe_path(name: str) -> str:
    """Return a name as a path below a folder, without `.` and empty parts.

    Raises:
        ValueError: If it could lead elsewhere, or a file system may not take it; the message is the reason.
    """
    if not name.isprintable():
        raise ValueError("a name with control characters")
    if "\\" in name:
        raise ValueError("a name with a backslash")
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        raise ValueError("an absolute name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("a name that leads out of the folder")
    if len(name) > 1000 or any(len(part.encode()) > 200 for part in parts):
        raise ValueError("a name that is too long")
    return "/".join(parts)


@contextmanager
def faults(archive: Path, name: str = "") -> Iterator[None]:
    """Turn what the block raises about an archive, and about a member, into a DataError."""
    where = f"'{archive}'" + (f", member {name!r}" if name else "")
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"expected to unpack {where}, got {error}; mend that and start again") from error
        raise _refusal(error, where) from error
    except _BROKEN as error:
        raise _refusal(error, where) from error


def _refusal(error: Exception, where: str) -> DataError:
    got = str(error) or type(error).__name__
    return DataError(
        f"expected a whole and harmless archive, got {got} in {where}; fetch it again from the official site"
    )


@dataclass
class _Names:
    """Names that no file system takes for one another."""

    taken: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def add(self, path: str, folder: bool) -> None:
        parts = path.split("/")
        for end in range(1, len(parts) + 1):
            new = "/".join(parts[:end]), folder or end < len(parts)
            key = unicodedata.normalize("NFC", new[0].casefold())
            known = self.taken.setdefault(key, new)
            if known is not new and (known != new or not new[1]):
                raise ValueError(f"the name of another member, {known[0]!r},")


@dataclass
class _Scan:
    """An archive while its members are checked."""

    archive: Path
    place: Place
    nested: Collection[str]
    max_members: int
    max_bytes: int
    stack: ExitStack
    count: int = 0
    size: int = 0
    names: _Names = field(default_factory=_Names)
    placed: _Names = field(default_factory=_Names)

    def accept(
        self, prefix: str, name: str, size: int, packed: int | None, folder: bool, nested: bool = False
    ) -> str | None:
        """Check a member; return its path below the target, None if it is not to be unpacked."""
        path = safe_path(name)
        self.count += 1
        self.size += size
        if self.count > self.max_members:
            raise ValueError(f"more than {self.max_members} members")
        if self.size > self.max_bytes:
            raise ValueError(f"more than {self.max_bytes} bytes unpacked")
        for unpacked, bytes_ in ((size, packed), (self.size, self.archive.stat().st_size)):
            if bytes_ is not None and unpacked > max(_RATIO_FROM, _MAX_RATIO * bytes_):
                raise ValueError(f"{unpacked} bytes packed as {bytes_}, as in a bomb,")
        if not path and not folder:
            raise ValueError("a file without a name")
        if path:
            self.names.add(prefix + path, folder)
        *_, last = parts = path.split("/")
        if folder or nested or "__MACOSX" in parts or last == ".DS_Store" or last.startswith("._"):
            return None
        where = self.place(prefix + path)
        if where is not None:
            where = safe_path(where)
            self.placed.add(where, folder=False)
        return where


def _zip_members(scan: _Scan, source: Path | IO[bytes], prefix: str = "") -> Iterator[Member]:
    pack = scan.stack.enter_context(zipfile.ZipFile(source))
    for info in sorted(pack.infolist(), key=lambda info: info.header_offset):
        name = info.orig_filename  # `filename` ends at a NUL
        with faults(scan.archive, prefix + name):
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
                raise ValueError("a link or another special file")
            if info.flag_bits & 0x41:
                raise ValueError("an encrypted member")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"an unknown compression, {info.compress_type},")
            nested = name.split("/")[-1] in scan.nested
            path = scan.accept(prefix, name, info.file_size, info.compress_size, info.is_dir(), nested)
            if nested:
                if prefix.count("!/") == _MAX_DEPTH - 1:
                    raise ValueError(f"more than {_MAX_DEPTH} zips inside one another")
                yield from _zip_members(scan, scan.stack.enter_context(pack.open(info)), f"{prefix}{name}!/")
            elif path is not None:
                opened = cast(Callable[[], IO[bytes]], lambda info=info: pack.open(info))
                yield Member(prefix + name, path, info.file_size, info.CRC, opened)


class _SmallReads:
    """A file of which no large piece is read: tarfile reads an extended header whole, whatever size it claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _tar_members(scan: _Scan, raw: IO[bytes]) -> Iterator[Member]:
    file = cast(IO[bytes], _SmallReads(raw))
    pack = scan.stack.enter_context(tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115
    for info in pack:
        with faults(scan.archive, info.name):
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise ValueError("a link or another special file")
            path = scan.accept("", info.name, info.size, None, info.isdir())
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4; a second opinion
                tarfile.data_filter(info, "/target")
            if path is not None:
                opened = cast(Callable[[], IO[bytes]], lambda info=info: pack.extractfile(info))
                yield Member(info.name, path, info.size, None, opened)
    raw.seek(pack.offset)
    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError("a file that is damaged or cut short")
    while raw.read(CHUNK):  # to the end, where gzip checks its sum
        if raw.tell() > pack.offset + _RATIO_FROM:
            raise ValueError("much data after its end")
