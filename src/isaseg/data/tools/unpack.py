"""Unpack archives safely: all members are checked before the first byte is written (see archive.py).

Each file appears whole or not at all, and one that is there already is kept: a run that was cut off goes on where it
was.
"""

import hashlib
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from isaseg.data.tools.archive import CHUNK, MAX_BYTES, MAX_MEMBERS, Member, Place, faults, open_archive
from isaseg.errors import DataError


class Unpacked(NamedTuple):
    """A file that was written or kept: its path below the target, bytes, and SHA-256."""

    path: str
    bytes: int
    sha256: str


def unpack(
    archive: Path,
    target: Path,
    place: Place = str,
    nested: Collection[str] = (),
    max_members: int = MAX_MEMBERS,
    max_bytes: int = MAX_BYTES,
) -> list[Unpacked]:
    """Unpack an archive below `target`; files that are there and equal are kept.

    Args:
        archive: A .zip, .tar, .tar.gz, .tgz or .tar.bz2.
        target: The folder; links inside it that lead out of it are not followed.
        place: Where a member goes below the target, given its name; None: nowhere.
        nested: File names of zips inside the zip that are unpacked, too.
        max_members: More are refused.
        max_bytes: More, unpacked, are refused, as is more than the disk has free.

    Raises:
        DataError: If a member is refused, and then nothing is written; or if the archive is damaged.
    """
    with open_archive(archive, place, nested, max_members, max_bytes) as members:
        _check_target(archive, target, members)
        check_space(target, _bytes_to_write(target, members), f"'{archive}'")
        with byte_progress(f"unpacking {archive.name}", sum(m.size for m in members)) as advance:
            return [_write(archive, target, member, advance) for member in members]


def bytes_to_unpack(archive: Path, target: Path, place: Place = str, nested: Collection[str] = ()) -> int:
    """Check what `unpack` checks, and return how many bytes it would write; nothing is written.

    Raises:
        DataError: If a member is refused, or the archive is damaged.
    """
    with byte_progress(f"checking {archive.name}", None), open_archive(archive, place, nested) as members:
        _check_target(archive, target, members)
        return _bytes_to_write(target, members)


def check_space(folder: Path, needed: int, what: str) -> None:
    """Check that the disk of `folder`, which need not exist yet, has room.

    Raises:
        DataError: If it has not.
    """
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.is_dir())).free
    if needed > free:
        raise DataError(
            f"expected {needed / 1e9:.1f} GB free at '{folder}' to unpack {what}, got {free / 1e9:.1f} GB; make room or "
            "choose another folder"
        )


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` when the block ends, and never exists half-written under that name.

    Unlike `files.replace_file` it does not wait for the disk, which for 100 000 files takes hours. The temporary name is
    always the same, so that a new run clears what a killed one left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # x: never through a link of that name
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def byte_progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr, of `total` bytes if that is known; the block is given a function that adds to those done."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_interactive) as bar:
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)


def digest(file: IO[bytes], advance: Callable[[int], None] = lambda count: None) -> tuple[int, str]:
    """Return CRC-32 and SHA-256 of what is left to read of a file."""
    crc, sha = 0, hashlib.sha256()
    while chunk := file.read(CHUNK):
        crc = zlib.crc32(chunk, crc)
        sha.update(chunk)
        advance(len(chunk))
    return crc, sha.hexdigest()


def is_file(path: Path, size: int) -> bool:
    """Tell whether there is a file, not a link, of so many bytes."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _check_target(archive: Path, target: Path, members: list[Member]) -> None:
    real = target.resolve()
    for parent in {(target / member.path).parent for member in members}:
        if not parent.resolve().is_relative_to(real):
            raise DataError(
                f"expected to unpack '{archive}' below '{target}', got the link '{parent}' to '{parent.resolve()}' "
                "there; remove the link"
            )


def _bytes_to_write(target: Path, members: list[Member]) -> int:
    return sum(m.size for m in members if not is_file(target / m.path, m.size))


def _write(archive: Path, target: Path, member: Member, advance: Callable[[int], None]) -> Unpacked:
    path = target / member.path
    with faults(archive, member.name):
        kept = _sha_if_equal(path, member)
        if kept is not None:
            advance(member.size)
            return Unpacked(member.path, member.size, kept)
        sha, left = hashlib.sha256(), member.size
        with member.open() as source, whole_file(path) as file:
            while chunk := source.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise ValueError(f"more than the {member.size} bytes that it declares")
                file.write(chunk)
                sha.update(chunk)
                advance(len(chunk))
            if left:
                raise EOFError(f"{member.size - left} of {member.size} bytes")
    return Unpacked(member.path, member.size, sha.hexdigest())


def _sha_if_equal(path: Path, member: Member) -> str | None:
    if not is_file(path, member.size):
        return None
    with path.open("rb") as file:
        crc, sha = digest(file)
    if member.crc is not None:
        return sha if crc == member.crc else None
    with member.open() as source:
        return sha if digest(source)[1] == sha else None
