"""Bring the official archives of a data set into the layout that its module reads; nothing is downloaded.

The steps are: each archive is unpacked, or the folder that a user unpacked himself is noted; then what no archive holds
is converted. By the manifest a second run finds nothing to do, an interrupted one goes on, another archive of the same
name is noticed, and `verify` finds a changed byte.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from isaseg.data.info import dataset_info
from isaseg.data.tools.archive import Place
from isaseg.data.tools.manifest import MANIFEST, Manifest, describe, load_manifest, save_manifest, verify
from isaseg.data.tools.recipes import RECIPES, Recipe
from isaseg.data.tools.unpack import byte_progress, bytes_to_unpack, check_space, digest, unpack
from isaseg.errors import ConfigError, DataError

__all__ = ["prepare", "verify"]

_CONVERT = "convert"


@dataclass(frozen=True)
class _Job:
    """A data set to prepare.

    Attributes:
        recipe: How.
        root: The folder that holds it.
        folder: Where it is in there.
        archives: The folder with the archives.
        found: The archives in there, by official name.
        by_hand: The needed folders that are there, and that no archive is unpacked into.
        manifest: What is done.
    """

    recipe: Recipe
    root: Path
    folder: Path
    archives: Path
    found: Mapping[str, Path]
    by_hand: Mapping[str, Path]
    manifest: Manifest

    @property
    def title(self) -> str:
        return dataset_info(self.recipe.facts).title


def prepare(name: str, archives: Path, root: Path, checksums: Path | None = None) -> list[str]:
    """Unpack and convert the archives of a data set, and write its manifest.

    Args:
        name: Of the data set, as in conf/data.
        archives: The folder with the official archives; what is unpacked in `root` already may be absent.
        root: The folder for the data set.
        checksums: A list as `sha256sum` writes it, with which every archive must agree.

    Returns:
        What was done, in lines for people.

    Raises:
        ConfigError: If the data set has no archives.
        DataError: If archives are missing, damaged, harmful, too large, or others than before or in the list.
    """
    root = root.expanduser()
    _check_root(root)
    job = _plan(name, archives.expanduser(), root)
    _check_all_there(job)
    new = _identify(job, checksums)
    todo = _todo(job, new)
    if not todo and job.manifest.complete:
        return [f"nothing to do: '{job.root}' holds {job.title}, {len(job.manifest.files)} files"]
    nested = job.recipe.nested
    needed = sum(
        bytes_to_unpack(job.found[s], job.root, _place(job, s), nested) for s in todo if s in job.found
    )
    check_space(job.root, needed, job.title)
    job.manifest.complete = False
    save_manifest(job.root, job.manifest)
    lines = [_run(job, step) for step in todo]
    _check_result(job)
    job.manifest.complete = True
    save_manifest(job.root, job.manifest)
    end = f"checksums of {len(job.manifest.files)} files are in '{job.root / MANIFEST}'"
    return [*lines, *_absent(job), end]


def _check_root(root: Path) -> None:
    """Check that `root` is a folder, or can be one, in which no folder is a link that leads out of it."""
    if root.exists() and not root.is_dir():
        raise DataError(f"expected a folder for the data set, got the file data.root='{root}'; give another")
    real = root.resolve()
    for folder, names, _ in os.walk(root):
        for path in (Path(folder, name) for name in names):
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                raise DataError(
                    f"expected to write below data.root='{root}', got the link '{path}' to '{path.resolve()}' there; "
                    "remove the link"
                )


def _plan(name: str, archives: Path, root: Path) -> _Job:
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ConfigError(f"expected a data set that has archives, one of {', '.join(RECIPES)}, got {name!r}")
    manifest = load_manifest(root) or Manifest(recipe.facts)
    if manifest.dataset != recipe.facts:
        raise DataError(
            f"expected a folder of its own for {name}, got '{root}', which holds {manifest.dataset}"
        )
    folder, found = _folder(root, recipe), _find(archives, recipe)
    by_hand = {}
    for need in recipe.needs:
        sub = next((sub for sub in need.folders if (folder / sub).is_dir()), None)
        if sub is not None and not {*found, *manifest.archives} & set(need.archives):
            by_hand[sub] = folder / sub
    return _Job(recipe, root, folder, archives, found, by_hand, manifest)


def _find(archives: Path, recipe: Recipe) -> dict[str, Path]:
    """Return the archives that are there, by official name; case does not matter."""
    found: dict[str, Path] = {}
    names = {name.casefold(): name for name in recipe.archives}
    for path in sorted(archives.iterdir()) if archives.is_dir() else ():
        name = names.get(path.name.casefold())
        if name is not None and path.is_file():
            if name in found:
                raise DataError(f"expected one file {name}, got '{found[name]}' and '{path}'; remove one")
            found[name] = path
    return found


def _folder(root: Path, recipe: Recipe) -> Path:
    """Return the data set's folder: where its module finds it, else where the archives put it."""
    known = next((root / sub for sub in recipe.inside if (root / sub).is_dir()), None)
    if known is not None:
        return known
    if any((root / sub).is_dir() for need in recipe.needs for sub in need.folders):
        return root
    parts, ends = Path(recipe.home).parts, root.absolute().parts
    shared = next(k for k in range(len(parts), -1, -1) if ends[len(ends) - k :] == parts[:k])
    return root.joinpath(*parts[shared:])  # a root called VOC2012 gets no other VOC2012 inside


def _check_all_there(job: _Job) -> None:
    known = {*job.found, *job.manifest.archives}
    missing = [
        " or ".join(need.archives)
        for need in job.recipe.needs
        if not known & set(need.archives) and not job.by_hand.keys() & set(need.folders)
    ]
    if missing:
        raise DataError(
            f"expected the archives of {job.title} in '{job.archives}', got {', '.join(job.found) or 'none'}; missing: "
            f"{', '.join(dict.fromkeys(missing))}; fetch them from {job.recipe.site}, or unpack them into "
            f"'{job.folder}' yourself"
        )


def _identify(job: _Job, checksums: Path | None) -> set[str]:
    """Check that the archives are those of the list and of former runs; return the names of new ones."""
    wanted = None if checksums is None else _read_checksums(checksums)
    noted = job.manifest.archives
    known = set(noted)
    for name, path in job.found.items():
        now, before = path.stat(), noted.get(name)
        same = before is not None and (before["bytes"], before["mtime_ns"]) == (now.st_size, now.st_mtime_ns)
        if same and wanted is None:
            continue
        with byte_progress(f"checksum of {path.name}", now.st_size) as advance, path.open("rb") as file:
            sha = digest(file, advance)[1]
        listed = sha if wanted is None else wanted.get(path.name.casefold())
        if listed is None:
            raise DataError(
                f"expected every archive in the list '{checksums}', got none for '{path.name}'; add its line"
            )
        if listed != sha:
            raise DataError(
                f"expected SHA-256 {listed} of '{path}' as in '{checksums}', got {sha}; fetch the archive again"
            )
        if before is not None and before["sha256"] != sha:
            raise DataError(
                f"expected the {name} that '{job.root}' was made from, SHA-256 {before['sha256']}, got {sha} in "
                f"'{path}'; give that one, choose another root, or remove {MANIFEST} there to unpack this one over it"
            )
        noted[name] = {"bytes": now.st_size, "mtime_ns": now.st_mtime_ns, "sha256": sha}
    return set(noted) - known


def _read_checksums(path: Path) -> dict[str, str]:
    try:
        lines = [
            line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        return {Path(name.strip().removeprefix("*")).name.casefold(): sha.lower() for sha, name in lines}
    except (OSError, ValueError) as error:
        raise DataError(
            f"expected lines as of `sha256sum` in '{path}', got {error}; make the list again"
        ) from error


def _todo(job: _Job, new: set[str]) -> list[str]:
    """Return the steps that are not done, or of which a file is gone."""
    places, noted = job.recipe.archives, job.manifest.archives
    undone = job.manifest.stale(job.root) | ({*noted, *job.by_hand, _CONVERT} - set(job.manifest.done))
    todo = [step for step, place in places.items() if step in undone and place is not None]
    todo += [step for step in job.by_hand if step in undone]
    if job.recipe.convert is not None and (todo or new or _CONVERT in undone):
        todo.append(_CONVERT)
    used = {name for name in noted if name in todo or (places.get(name) is None and _CONVERT in todo)}
    gone = sorted(used - job.found.keys())
    if gone:
        raise DataError(
            f"expected {', '.join(gone)} in '{job.archives}' again, because files are missing in '{job.root}', got no "
            "such archive; put it back"
        )
    return todo


def _place(job: _Job, archive: str) -> Place:
    place, prefix = job.recipe.archives[archive], job.folder.relative_to(job.root).as_posix()
    assert place is not None

    def below_root(path: str) -> str | None:
        inner = place(path)
        return None if inner is None else f"{prefix}/{inner}"

    return below_root


def _run(job: _Job, step: str) -> str:
    """Do a step and note it in the manifest; return a line about it."""
    try:
        if step == _CONVERT:
            assert job.recipe.convert is not None
            inputs = {name: path for name, path in job.found.items() if job.recipe.archives[name] is None}
            made = describe(job.root, job.recipe.convert(job.folder, inputs))
        elif step in job.by_hand:
            there = sorted(job.by_hand[step].rglob("*"))
            made = describe(job.root, [path for path in there if path.is_file() and not path.is_symlink()])
        else:
            made = unpack(job.found[step], job.root, _place(job, step), job.recipe.nested)
    except OSError as error:
        raise DataError(
            f"expected to read and write below '{job.root}', got {error}; mend that, start again"
        ) from error
    job.manifest.note(step, made)
    save_manifest(job.root, job.manifest)
    return f"{step}: {len(made)} files"


def _check_result(job: _Job) -> None:
    for need in job.recipe.needs:
        if not any((job.folder / sub).is_dir() for sub in need.folders):
            raise DataError(
                f"expected the folder {' or '.join(need.folders)} in '{job.folder}' after all archives are unpacked, got "
                f"none; fetch {' or '.join(need.archives)} again from {job.recipe.site}"
            )


def _absent(job: _Job) -> list[str]:
    """Return a line for each optional archive that is not there."""
    needed = {archive for need in job.recipe.needs for archive in need.archives}
    whole = job.manifest.archives.keys() - set(job.recipe.nested)
    absent = job.recipe.archives.keys() - needed - job.manifest.archives.keys()
    if whole:
        absent -= set(job.recipe.nested)
    return [f"{name}: not in '{job.archives}', and not needed" for name in sorted(absent)]
