"""The list of what was done in the root of a data set, with the SHA-256 of every file."""

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from isaseg.data.parallel import in_threads
from isaseg.errors import DataError
from isaseg.files import replace_file, sha256

MANIFEST = "isaseg_manifest.json"


class PreparedStep(BaseModel, extra="forbid"):
    """A step that is done: the SHA-256 of its archive, and of its files by path below the root."""

    sha256: str = ""
    files: dict[str, str] = {}


class Manifest(BaseModel, extra="forbid"):
    """The steps that are done in a root, by name of the archive."""

    dataset: str
    steps: dict[str, PreparedStep] = {}

    @property
    def files(self) -> dict[str, str]:
        """The SHA-256 of every file: that of the last step that wrote it."""
        return {path: digest for step in self.steps.values() for path, digest in step.files.items()}


def load_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a root, None if it has none.

    Raises:
        DataError: If it is damaged.
    """
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"expected the manifest of a prepared data set in '{path}', got {' '.join(str(error).split())}; remove it"
        ) from error


def save_manifest(root: Path, manifest: Manifest) -> None:
    """Write the manifest after the files that it lists have reached the disk."""
    os.sync()
    with replace_file(root / MANIFEST) as file:
        file.write(manifest.model_dump_json(indent=0).encode())


def verify(root: Path) -> list[str]:
    """Compare the files of a root with its manifest, byte by byte; return a line for each fault.

    Raises:
        DataError: If there is no manifest.
    """
    manifest = load_manifest(root)
    if manifest is None:
        raise DataError(f"expected the list of checksums '{root / MANIFEST}', got none; run prepare first")
    files = manifest.files

    def fault(path: str) -> str | None:
        file = root / path
        if file.is_symlink() or not file.is_file():
            return f"missing: expected the file '{file}'; run prepare again"
        if sha256(file) != files[path]:
            return f"changed: expected SHA-256 {files[path]} of '{file}'; remove it and run prepare again"
        return None

    lines = in_threads(fault, sorted(files), "comparing checksums")
    return [line for line in lines if line is not None]
