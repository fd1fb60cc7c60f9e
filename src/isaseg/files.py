"""Files that are written completely or not at all, and their checksums."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt")  # of files of a network


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` when the block ends; no half-written file ever has that name.

    The temporary file lies beside it: `os.replace` is atomic only within one file system (lightning#21253).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # the error of a full disk names no file
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    with replace_file(path) as file:
        file.write(text.encode())


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replace_file(path) as file:
        figure.savefig(file, format="png")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
