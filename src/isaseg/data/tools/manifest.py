"""The list of what was done in a data set's root, and of the checksums of its files."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from isaseg.data.parallel import in_threads
from isaseg.data.tools.archive import safe_path
from isaseg.data.tools.unpack import Unpacked, digest, is_file
from isaseg.errors import DataError
from isaseg.files import replace_file

MANIFEST = "isaseg_manifest.json"


@dataclass
class Manifest:
    """What was done in a root.

    Attributes:
        dataset: Name of the data set.
        complete: Whether all was done.
        archives: Each archive's `bytes`, `mtime_ns` and `sha256`, by official name.
        done: The steps that are done.
        files: Each file's `bytes` and `sha256`, and the step that it is `of`, by path below the root.
    """

    dataset: str
    complete: bool = False
    archives: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, step: str, made: Iterable[Unpacked]) -> None:
        """Note that a step is done, and its files; what another step made alike stays that step's."""
        self.files = {path: entry for path, entry in self.files.items() if entry["of"] != step}
        for file in made:
            before = self.files.get(file.path)
            if before is None or before["sha256"] != file.sha256:
                self.files[file.path] = {"bytes": file.bytes, "sha256": file.sha256, "of": step}
        self.done = [*(name for name in self.done if name != step), step]

    def stale(self, root: Path) -> set[str]:
        """Return the steps of which a file is gone or of another size."""
        return {e["of"] for path, e in self.files.items() if not is_file(root / path, e["bytes"])}


def load_manifest(root: Path) -> Manifest | None:
    """Read the manifest of a root, None if it has none.

    Raises:
        DataError: If it is damaged, or names a file outside the root.
    """
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = Manifest(**json.loads(path.read_bytes()))
        for entry in manifest.archives.values():
            int(entry["bytes"]), int(entry["mtime_ns"]), str(entry["sha256"])
        for name, entry in manifest.files.items():
            int(entry["bytes"]), str(entry["sha256"]), str(entry["of"])
            if not name or safe_path(name) != name:
                raise ValueError(f"the path {name!r}")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DataError(
            f"expected the manifest of a prepared data set in '{path}', got {error!r}; remove it"
        ) from error
    return manifest


def save_manifest(root: Path, manifest: Manifest) -> None:
    """Write the manifest, when all files that it lists have reached the disk."""
    os.sync()
    with replace_file(root / MANIFEST) as file:
        file.write(json.dumps(asdict(manifest), indent=0).encode())


def describe(root: Path, paths: list[Path]) -> list[Unpacked]:
    """Return path below `root`, bytes and SHA-256 of files."""

    def one(path: Path) -> Unpacked:
        return Unpacked(path.relative_to(root).as_posix(), path.stat().st_size, _sha256(path))

    with in_threads(one, paths, "making checksums") as results:
        return list(results)


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
        file, size = root / path, files[path]["bytes"]
        if file.is_symlink() or not file.is_file():
            return f"missing: expected the file '{file}'; run prepare again"
        if file.stat().st_size != size:
            return f"changed: expected {size} bytes in '{file}', got {file.stat().st_size}; run prepare again"
        if _sha256(file) != files[path]["sha256"]:
            return f"changed: expected SHA-256 {files[path]['sha256']} of '{file}'; remove it and run prepare again"
        return None

    unfinished = [] if manifest.complete else [f"unfinished: '{root}'; run prepare again"]
    with in_threads(fault, sorted(files), "comparing checksums") as results:
        return unfinished + [line for line in results if line is not None]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return digest(file)[1]
