"""What a configuration may name: classes and functions that Hydra builds, and variables of the environment.

A configuration is code. These are the obvious doors, shut; it is no sandbox.
"""

import difflib
import importlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from isaseg.errors import ConfigError

# Otherwise albumentations, which a configuration may name, asks pypi.org for a newer version in every process.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

# Not the whole package: what writes files or starts processes is none of a configuration's business.
ALLOWED = (
    "isaseg.models.attention.",
    "isaseg.models.context.",
    "isaseg.models.criss_cross.",
    "isaseg.models.backbone.Backbone",
    "isaseg.models.losses.",
    "isaseg.training.optim.",
    "isaseg.runs.loggers.make_loggers",
    "isaseg.data.module.",
    "isaseg.data.transforms.",
    "isaseg.data.sets.ade20k.",
    "isaseg.data.sets.camvid.",
    "isaseg.data.sets.cards.",
    "isaseg.data.sets.cityscapes.",
    "isaseg.data.sets.coco_stuff.",
    "isaseg.data.sets.folder.",
    "isaseg.data.sets.lamps.",
    "isaseg.data.sets.lip.",
    "isaseg.data.sets.pascal_context.",
    "isaseg.data.sets.pascal_voc.",
    "lightning.pytorch.Trainer",
    "albumentations.",
)

# A resolved configuration is written to disk and sent to W&B: what is in these is no secret.
ENVIRONMENT = (
    "HOME",
    "USER",
    "TMPDIR",
    "SCRATCH",
    "WORK",
    "DATA_ROOT",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_TMPDIR",
)

_OF_HYDRA = {"_target_": str, "_partial_": bool, "_recursive_": bool}  # its other words are not needed here
_ENV = re.compile(r"\$\{\s*oc\.env\s*:\s*([^,}\s]*)")


def _environment(name: str, *default: Any) -> Any:
    """Resolve `oc.env`, however it is written; `check_environment` tells the key too, where it can be read."""
    if name not in ENVIRONMENT:
        raise ConfigError(f"expected one of {', '.join(ENVIRONMENT)} from the environment, got oc.env:{name}")
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def check_targets(plain: Any, path: str = "") -> None:
    """Check that each `_target_` in plain data is allowed, and that it has a parameter for each key beside it.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    named = []
    for where, node in nodes(plain, path):
        if "_target_" in node:
            named.append((where, node))
        elif meant := [str(key) for key in node if str(key).startswith("_")]:
            raise ConfigError(f"expected {where}._target_ beside {where}.{meant[0]}, got none")
    for where, node, found in [(where, node, _found(where, node)) for where, node in named]:
        _check_arguments(where, node, found)


def check_environment(unresolved: Any) -> None:
    """Check that a configuration takes nothing but `ENVIRONMENT` from the environment.

    Raises:
        ConfigError: Naming the dotted key and the variable.
    """
    for path, text in _texts(unresolved):
        for name in _ENV.findall(text):
            if name not in ENVIRONMENT:
                raise ConfigError(
                    f"expected {path} to take one of {', '.join(ENVIRONMENT)} from the environment, got oc.env:{name}; "
                    "the configuration is written down: write the value itself if it is no secret"
                )


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping of plain data, with its dotted key."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, f"{path}[{index}]")


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield path, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, f"{path}[{index}]")


def suggest(name: str, candidates: Sequence[str]) -> str:
    """Return "did you mean '...'? " of the nearest candidate, or nothing."""
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'? " if near else ""


def _found(path: str, node: dict[str, Any]) -> Callable[..., Any]:
    """Return the class or function that a node names, if that is allowed."""
    target = str(node["_target_"])
    key = f"{path}._target_".lstrip(".")
    refused = ConfigError(
        f"expected {key} to begin with one of {', '.join(ALLOWED)} and to be defined there, got '{target}'; "
        "a configuration is code, run only those you trust"
    )
    allowed = next(
        (name for name in ALLOWED if target == name or name[-1] == "." and target.startswith(name)), ""
    )
    if not allowed:
        raise refused
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"expected {key} to name a class or function, got '{target}': {error}") from error
    if not inspect.isclass(found) and not inspect.isfunction(found):
        raise refused
    # where it is defined: a module imports others, and what they hold is not allowed by that
    package = "lightning." if allowed.startswith("lightning.") else allowed
    defined = f"{found.__module__}.{found.__qualname__}"
    if defined != package and not (package[-1] == "." and defined.startswith(package)):
        raise refused
    if allowed == "albumentations.":
        from albumentations import BaseCompose, BasicTransform  # others of the package read and write files

        if not inspect.isclass(found) or not issubclass(found, (BasicTransform, BaseCompose)):
            raise refused
    return found  # type: ignore[no-any-return]


def _check_arguments(path: str, node: dict[str, Any], found: Callable[..., Any]) -> None:
    try:
        parameters = inspect.signature(found, eval_str=True).parameters
    except NameError:  # of a type that is there for checkers alone
        parameters = inspect.signature(found).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for word, value in node.items():
        if word in _OF_HYDRA:
            if not isinstance(value, _OF_HYDRA[word]):
                raise ConfigError(f"expected {path}.{word} to be {_named(_OF_HYDRA[word])}, got {value}")
            continue
        if word.startswith("_") or not anything and word not in parameters:
            known = list(_OF_HYDRA if word.startswith("_") else parameters)
            raise ConfigError(
                f"no configuration key '{path}.{word}'; {suggest(word, known)}({node['_target_']})"
            )
        kind = parameters[word].annotation if word in parameters else Any
        if not _fits(value, kind):
            key = f"{path}.{word}".lstrip(".")
            raise ConfigError(f"expected {key} to be {_named(kind)}, got {key}={value}")


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether plain data may be given where a parameter of this type is; what is built from a node may."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(value, dict) and "_target_" in value:
        return True
    if kind is None or not isinstance(kind, type) and origin is None:
        return kind is not None or value is None  # a type variable, a text
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in args)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, dict)
    if origin is not None and issubclass(origin, Sequence):
        if origin is tuple and Ellipsis not in args:
            return isinstance(value, list) and len(value) == len(args) and all(map(_fits, value, args))
        return isinstance(value, list) and all(_fits(part, args[0]) for part in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, origin or kind) and (kind is not int or not isinstance(value, bool))


def _named(kind: Any) -> str:
    words = {
        int: "an integer",
        float: "a finite number",
        bool: "true or false",
        str: "text",
        NoneType: "null",
    }
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_named, args))
    if origin is Literal:
        return " or ".join(map(str, args))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each {_named(args[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    return words.get(kind, f"a node with _target_ for {getattr(kind, '__name__', kind)}")
