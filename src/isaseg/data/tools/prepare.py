"""Bring the official archives of a data set into the layout that its module reads; nothing is downloaded.

Each archive is a step, and so is the conversion of labels. A step works in a temporary folder in the root. When it is
done, the manifest notes its files with their SHA-256, and they move into the layout. The next run repeats the steps that
are not noted, or of which a file is gone.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from isaseg.data.info import dataset_info
from isaseg.data.parallel import in_threads
from isaseg.data.tools.manifest import MANIFEST, Manifest, PreparedStep, load_manifest, save_manifest
from isaseg.data.tools.official import OFFICIAL, SHA256, OfficialArchives
from isaseg.data.tools.unpack import Place, unpack
from isaseg.errors import ConfigError, DataError
from isaseg.files import sha256

_CONVERT = "convert"
_STAGING = ".unpacking"


@dataclass(frozen=True)
class _Job:
    """A data set to prepare: what is `found` in the folder `archives` goes into `folder`, which lies in `root`."""

    official: OfficialArchives
    title: str
    root: Path
    folder: Path
    archives: Path
    found: Mapping[str, Path]  # by name
    manifest: Manifest

    def missing(self, known: Iterable[str]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Return the needed folders that are not there, with their archives, of which none is in `known`."""
        return [
            (folders, archives)
            for folders, archives in self.official.needs.items()
            if not any((self.folder / sub).is_dir() for sub in folders) and not {*known} & {*archives}
        ]


def prepare(name: str, archives: Path, root: Path) -> list[str]:
    """Unpack and convert the archives of a data set, and write its manifest.

    Args:
        name: The data set, as in conf/data.
        archives: The folder with the official archives. What `root` already holds unpacked may be absent.
        root: The folder for the data set.

    Returns:
        What was done, in lines for people.

    Raises:
        ConfigError: If no official archives of the data set are known.
        DataError: If archives are missing, damaged, harmful or too large, or are not those published.
    """
    job = _plan(name, archives.expanduser(), root.expanduser())
    if missing := job.missing({*job.found, *job.manifest.steps}):
        raise DataError(
            f"expected the archives of {job.title} in '{job.archives}', got {', '.join(job.found) or 'none'}; missing: "
            f"{', '.join(dict.fromkeys(' or '.join(names) for _, names in missing))}; fetch them from "
            f"{job.official.site}, or unpack them into '{job.folder}' yourself"
        )
    todo = _todo(job)
    lines = [_run(job, step) for step in todo]
    for folders, names in job.missing(()):
        raise DataError(
            f"expected the folder {' or '.join(folders)} in '{job.folder}' after all archives are unpacked, got none; "
            f"fetch {' or '.join(names)} again from {job.official.site}"
        )
    if not todo:
        return [f"nothing to do: '{job.root}' holds {job.title}"]
    return [*lines, f"checksums of {len(job.manifest.files)} files are in '{job.root / MANIFEST}'"]


def _plan(name: str, archives: Path, root: Path) -> _Job:
    official = OFFICIAL.get(name)
    if official is None:
        raise ConfigError(
            f"expected a data set whose official archives are known, one of {', '.join(OFFICIAL)}, got {name!r}, which "
            "has no `prepare`; unpack it yourself, then run check"
        )
    manifest = load_manifest(root) or Manifest(dataset=official.info)
    if manifest.dataset != official.info:
        raise DataError(
            f"expected a folder of its own for {name}, got '{root}', which holds {manifest.dataset}; give another"
        )
    found = {name: archives / name for name in official.archives if (archives / name).is_file()}
    folder = official.folder_in(root)
    return _Job(official, dataset_info(official.info).title, root, folder, archives, found, manifest)


def _todo(job: _Job) -> list[str]:
    """Return the steps that are not done, or of which a file is gone.

    Raises:
        DataError: If an archive that a step needs is absent.
    """
    steps, inputs = job.manifest.steps, job.official.inputs
    done = {name for name, step in steps.items() if all((job.root / path).is_file() for path in step.files)}
    known = [name for name in job.official.archives if name in steps or name in job.found]
    todo = [name for name in known if name not in done]
    if job.official.convert is not None and (todo or _CONVERT not in done):
        todo.append(_CONVERT)
    needed = {name for name in known if name in todo or (name in inputs and _CONVERT in todo)}
    if gone := sorted(needed - job.found.keys()):
        raise DataError(
            f"expected {', '.join(gone)} in '{job.archives}' again, because files are missing in '{job.root}', got no "
            "such archive; put it back"
        )
    return todo


def _run(job: _Job, step: str) -> str:
    """Do a step and note it in the manifest; return a line about it.

    Raises:
        DataError: If its archive is not as published, or cannot be unpacked.
    """
    staging = job.root / _STAGING
    out = staging / job.folder.relative_to(job.root)
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    try:
        checksum = sha256(job.found[step]) if step in job.found else ""
        if checksum != (wanted := SHA256.get(step, checksum)):
            raise DataError(
                f"expected SHA-256 {wanted} of '{job.found[step]}' as published, got {checksum}; fetch the archive again"
            )
        out.mkdir(parents=True)
        if step == _CONVERT:
            assert job.official.convert is not None
            inputs = {name: job.found[name] for name in job.official.inputs & job.found.keys()}
            job.official.convert(job.folder, out, inputs)
        elif step not in job.official.inputs:
            _unpack_nested(job.official.archives, job.found[step], out)
        paths = [path for path in sorted(staging.rglob("*")) if path.is_file()]
        digests = in_threads(sha256, paths, "making checksums")
        files = {p.relative_to(staging).as_posix(): s for p, s in zip(paths, digests, strict=True)}
        before = job.manifest.steps.pop(step, PreparedStep())  # a conversion copies only what is not there
        job.manifest.steps[step] = PreparedStep(sha256=checksum, files=before.files | files)
        save_manifest(job.root, job.manifest)  # first: where the move is cut short, files are missing
        move_files(files, staging, job.root)
    except OSError as error:
        raise DataError(
            f"expected to read and write below '{job.root}', got {error}; fix that and start again"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    known = (
        "as published" if SHA256.get(step) == checksum else f"not known to be official, SHA-256 {checksum}"
    )
    return f"{step}: {len(files)} files" + (f"; {known}" if checksum else "")


def _unpack_nested(places: Mapping[str, Place | None], archive: Path, out: Path, depth: int = 3) -> None:
    """Unpack an archive, and the official archives in it."""
    if depth == 0:
        raise DataError(f"expected archives inside archives, got a fourth in '{archive}'; fetch it again")
    unpack(archive, out, places[archive.name] or str)
    aside = out / f"{archive.name}!{depth}"  # as an archive may hold another of its name
    inner = [name for name in places if (out / name).is_file()]
    for name in inner:
        aside.mkdir(exist_ok=True)
        (out / name).rename(aside / name)
    for name in inner:
        _unpack_nested(places, aside / name, out, depth - 1)
        (aside / name).unlink()


def move_files(files: Iterable[str], source: Path, root: Path) -> None:
    """Move files, by their paths below `source`, below `root`, each at once.

    Raises:
        DataError: If a link in `root` leads out of it.
    """
    for parent in sorted({(root / path).parent for path in files}):
        if not parent.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"expected to write below data.root='{root}', got the link '{parent}' to '{parent.resolve()}' there; "
                "remove the link"
            )
        parent.mkdir(parents=True, exist_ok=True)
    for path in files:
        os.replace(source / path, root / path)
