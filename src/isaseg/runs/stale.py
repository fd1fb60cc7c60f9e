"""Whether a run's result is still that of the code and the files that are here now. Without torch, as `run_folder`."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.config.values import nodes
from isaseg.errors import ConfigError, DataError
from isaseg.trust import KNOWN, trusted

_PACKAGE = Path(__file__).resolve().parents[1]
# The rooms that training cannot import (the layers of import-linter), so that they change no result
_AFTER = ("sweep", "report", "analysis", "cli")
_SPLITS = ("train", "val", "test")
_WEIGHTS = ("backbone.weights",)  # what init_from names counts in the identity of a run

Facts = Mapping[str, Any]
Find = Callable[[str], Any]


class Staleness(NamedTuple):
    """How the current code and files differ from those of a run, in words; "" where they do not.

    Attributes:
        changed: What is other than it was.
        gone: What is no longer there.
    """

    changed: str = ""
    gone: str = ""


def origin(cfg: DictConfig, find: Find | None = None) -> dict[str, Any]:
    """Return what a run is computed from: the entries `code` and `files` of facts.json.

    `code` has a digest for isaseg and one for each package that is trusted or named by a `_target_`, as far as they are
    found; nothing is imported for it. `files` has number, bytes and a digest (names, sizes, times) of the files of each
    split, and of the weights that the network begins with; None if there are none.

    Args:
        cfg: The configuration.
        find: Returns the source of a split; None: it is built from `cfg`.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    names = [*trusted(), *(str(node["_target_"]) for _, node in nodes(plain) if "_target_" in node)]
    own = {name.partition(".")[0] for name in names} - {*KNOWN}
    files = {}
    for split in _SPLITS:
        try:
            files[split] = _of_split(cfg, split, find or _source_of(cfg))
        except DataError:  # a split that was not needed
            continue
    files |= {
        key: _summary([path], path.parent) for key in _WEIGHTS if (path := _weights(cfg, key)).is_file()
    }
    return {
        "code": code_digests(own),
        "files": {key: held for key, held in files.items() if held} or None,
    }


def code_digests(packages: Iterable[str] = ()) -> dict[str, str]:
    """Return digests of the source of isaseg, as far as it can change a result, and of packages that are found."""
    own = [path for path in _PACKAGE.rglob("*") if path.relative_to(_PACKAGE).parts[0] not in _AFTER]
    found = {"isaseg": _digest(_PACKAGE, own)}
    for name in packages:
        if files := _modules(name):
            found[name] = _digest(files[0].parent, files)
    return found


def staleness(cfg: DictConfig, facts: Facts) -> Staleness:
    """Return how code and files differ from those of the facts of a run; not at all if an older version wrote these.

    Raises:
        ConfigError: If the source of the data cannot be built from `cfg`.
    """
    code, held = facts.get("code") or {}, facts.get("files") or {}
    now = code_digests(name for name in code if name != "isaseg")
    changed = [
        f"other code of {name} ({code[name]}, now {now[name]})"
        for name in code
        if now.get(name, code[name]) != code[name]
    ]
    gone = []
    for key, before in held.items():
        there, why = _now(cfg, key)
        if there is None or there["count"] < before["count"]:
            gone.append(why or f"{before['count']} files of {key}, now {there['count'] if there else 'none'}")
        elif there["digest"] != before["digest"]:
            changed.append(f"other files of {key} ({_difference(before, there)})")
    return Staleness(" and ".join(changed), "".join(gone[:1]))


def continued(now: Facts, before: Facts) -> dict[str, Any]:
    """Return code and files of a run that goes on from one with the facts `before`: where they differ, A+B for both."""

    def joined(old: Any, new: Any) -> Any:
        if isinstance(new, dict):
            old = old if isinstance(old, dict) else {}
            return {key: joined(old.get(key), value) for key, value in new.items()}
        if not (isinstance(new, str) and isinstance(old, str)) or old.split("+")[-1] == new:
            return old if isinstance(old, str) and isinstance(new, str) else new
        return f"{old}+{new}"

    return {key: joined(before.get(key), now[key]) for key in ("code", "files")}


def _now(cfg: DictConfig, key: str) -> tuple[dict[str, Any] | None, str]:
    """Return the files of a split, or of weights, as they are, and why there are none."""
    if key in _WEIGHTS:
        path = _weights(cfg, key)
        return (_summary([path], path.parent), "") if path.is_file() else (None, f"{key}={path}")
    try:
        return _of_split(cfg, key, _source_of(cfg)), ""
    except ConfigError:
        raise
    except Exception as error:  # a source of the user's own may raise anything
        return None, f"the split {key}: {str(error).partition(';')[0]}"


def _source_of(cfg: DictConfig) -> Find:
    if OmegaConf.select(cfg, "data.source._target_") is None:  # a LightningDataModule has its own files
        return lambda split: None
    return lambda split: config.build(cfg.data.source, "data.source")(split=split)


def _of_split(cfg: DictConfig, split: str, find: Find) -> dict[str, Any] | None:
    """Return count, bytes and digest of the files of a split; None if it has none.

    Raises:
        DataError: If the source cannot be made, or a file is gone.
    """
    pairs = getattr(find(split), "pairs", ())
    paths = [
        path for pair in pairs for path in (getattr(pair, "image", None), getattr(pair, "mask", None)) if path
    ]
    root = OmegaConf.select(cfg, "data.root") or "."
    return _summary(paths, Path(str(root)).expanduser().resolve()) if paths else None


def _summary(paths: list[Path], root: Path) -> dict[str, Any]:
    listed = []
    for path in dict.fromkeys(paths):
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"expected the file '{path}', got none ({error.strerror})") from error
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        listed.append((name, state.st_size, state.st_mtime_ns))
    return {
        "count": len(listed),
        "bytes": sum(size for _, size, _ in listed),
        "digest": config.digest(listed),
    }


def _weights(cfg: DictConfig, key: str) -> Path:
    return Path(str(OmegaConf.select(cfg, key) or "")).expanduser()


def _difference(before: Facts, now: Facts) -> str:
    found = [
        f"{before[key]} {unit}, now {now[key]}"
        for key, unit in (("count", "files"), ("bytes", "bytes"))
        if before[key] != now[key]
    ]
    return (
        "; ".join(found) or f"as many, {now['count']} files of {now['bytes']} bytes, but other names or times"
    )


def _modules(name: str) -> list[Path]:
    """Return the source files of a top-level module or package, none if it is not found; nothing is imported."""
    if not name.isidentifier():  # of a package inside another, the outer one would be imported
        return []
    try:
        spec = find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return []
    spec = spec or PathFinder.find_spec(name, [os.getcwd()])
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [path for place in spec.submodule_search_locations for path in Path(place).rglob("*.py")]
    return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []


def _digest(root: Path, paths: list[Path]) -> str:
    """Return eight hexadecimal digits of names and contents of Python files and of facts of data sets."""
    read = {
        os.path.relpath(path, root): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.suffix in (".py", ".json")
    }
    return config.digest(read)
