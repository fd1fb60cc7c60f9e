"""What a configuration may name: classes and functions that Hydra builds, and variables of the environment.

A configuration is code: these checks close the obvious doors, they are no sandbox.
"""

import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

from isaseg.config.values import check_keys
from isaseg.errors import ConfigError

# Otherwise albumentations asks pypi.org for a newer version in every process.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

# A `_target_` begins with one of these and is a public class or function that is defined below it; where a base is
# given, a subclass. Not the whole package: a configuration need not write files or start processes.
ALLOWED = {
    "isaseg.models.": "torch.nn.Module",
    "isaseg.data.sets.": None,
    "isaseg.data.module.": None,
    "isaseg.data.transforms.": None,
    "isaseg.training.optim.": None,
    "isaseg.runs.loggers.make_loggers": None,
    "lightning.pytorch.Trainer": None,
    "albumentations.": "albumentations.core.serialization.Serializable",  # transforms and their compositions
}

# The resolved configuration is written to disk and sent to W&B, so these must not hold secrets.
ENVIRONMENT = ["HOME", "USER", "TMPDIR", "SCRATCH", "WORK", "DATA_ROOT"]
ENVIRONMENT += ["SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_TMPDIR"]

_OF_HYDRA = {"_target_": str, "_partial_": bool}


def _environment(name: str, *default: Any) -> Any:
    if name not in ENVIRONMENT:
        raise ConfigError(
            f"expected one of {', '.join(ENVIRONMENT)} from the environment, got oc.env:{name}; the configuration is "
            "saved with the run: write the value itself if it is no secret"
        )
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def build(node: DictConfig, key: str, **kwargs: Any) -> Any:
    """Instantiate the configuration node `key`.

    Raises:
        ConfigError: If it names what is not allowed, or the constructor refuses its arguments.
    """
    check_targets(OmegaConf.to_container(node, resolve=True), key)
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"{key} cannot be built: {cause or error}") from error


def check_targets(plain: Any, path: str = "") -> None:
    """Check that each `_target_` in plain data is allowed, and the keys beside it against its signature.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    found = []
    for where, node in nodes(plain, path):
        if "_target_" in node:
            found.append((where, node, _find(where, node["_target_"])))
        elif words := [key for key in node if str(key).startswith("_")]:
            raise ConfigError(f"expected {where}._target_ beside {where}.{words[0]}, got none")
    for where, node, target in found:  # once all of them are known to be allowed
        parameters = _parameters(target)
        is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        known = {**_OF_HYDRA, **{name: p.annotation for name, p in parameters.items()}}
        check_keys(where, node, known, node["_target_"], is_open)


def nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping of plain data, with its dotted key."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, f"{path}[{index}]")


def _find(path: str, target: Any) -> Callable[..., Any]:
    """Return the class or function that a `_target_` names, if that is allowed."""
    key = f"{path}._target_".lstrip(".")
    refused = ConfigError(
        f"expected {key} to begin with one of {', '.join(ALLOWED)} and to be defined there, got '{target}'; "
        "a configuration is code, run only those you trust"
    )
    prefix = next((prefix for prefix in ALLOWED if _is_below(str(target), prefix)), None)
    if prefix is None:
        raise refused
    try:
        found = _import(str(target))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"expected {key} to name a class or function, got '{target}': {error}") from error
    home = "lightning." if prefix.startswith("lightning.") else prefix
    base = ALLOWED[prefix]
    if (
        not (inspect.isclass(found) or inspect.isfunction(found))
        # a module also holds what it imports
        or not _is_below(f"{found.__module__}.{found.__qualname__}", home)
        or found.__name__.startswith("_")
        or (base is not None and not (inspect.isclass(found) and issubclass(found, _import(base))))
    ):
        raise refused
    return found


def _is_below(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith(".") else name == prefix


def _import(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(target, eval_str=True).parameters)
    except NameError:  # an annotation that is imported for type checkers only
        return dict(inspect.signature(target).parameters)
