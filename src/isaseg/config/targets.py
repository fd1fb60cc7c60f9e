"""What a configuration may name: classes and functions that Hydra builds, and variables of the environment.

A configuration is code: these checks close the obvious doors, they are no sandbox.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.resolvers import oc

from isaseg.config.values import check_keys, nodes, suggest
from isaseg.errors import ConfigError, one_line
from isaseg.trust import KNOWN, import_trusted, is_trusted

# What a `_target_` may name, beside what packages that the user trusts define: public classes that derive from the base
# and are defined below one of these names; without a base, functions too. Not whole packages: a configuration need not
# write files, start processes or read pickles (those of hubs, timm.create_model, metrics that fetch a model).
ALLOWED = {
    "": [
        "isaseg.data.adopted.",
        "isaseg.data.module.",
        "isaseg.data.sets.",
        "isaseg.data.transforms.",
        "isaseg.training.optim.",
        "isaseg.training.schedules.",
    ],
    "torch.nn.Module": [
        "isaseg.models.",
        "torch.nn.",
        "timm.layers.",
        "timm.loss.",
        "timm.models.",
        "torchvision.models.",
        "torchvision.ops.",
    ],
    "torch.optim.Optimizer": ["torch.optim.", "timm.optim."],
    "torch.optim.lr_scheduler.LRScheduler": ["torch.optim.lr_scheduler."],
    "lightning.pytorch.Trainer": ["lightning.pytorch.Trainer"],
    "lightning.pytorch.Callback": [
        "isaseg.training.callbacks.",
        "isaseg.training.step_profile.",
        "lightning.pytorch.callbacks.",
    ],
    "lightning.pytorch.loggers.Logger": ["isaseg.runs.loggers.", "lightning.pytorch.loggers."],
    "torchmetrics.Metric": ["torchmetrics.classification.", "torchmetrics.segmentation."],
    # transforms and their compositions
    "albumentations.core.serialization.Serializable": ["albumentations."],
}
# W&B's credentials go to the server that its settings name; ours takes none.
_OURS_INSTEAD = {"lightning.pytorch.loggers.wandb.WandbLogger": "isaseg.runs.loggers.NeverFatalWandbLogger"}

# What a class must be in a place that takes one kind; what a function returns is known later.
_KINDS = {
    r"attention|backbone|loss": "torch.nn.Module",
    r"optim\.optimizer": "torch.optim.Optimizer",
    r"callbacks\.\w+": "lightning.pytorch.Callback",
    r"logger\.\w+": "lightning.pytorch.loggers.Logger",
    r"trainer": "lightning.pytorch.Trainer",
}

# The resolved configuration is written to disk and sent to W&B, so these must not hold secrets.
ENVIRONMENT = ["HOME", "USER", "TMPDIR", "SCRATCH", "WORK", "DATA_ROOT"]
ENVIRONMENT += ["SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_TMPDIR"]

_OF_HYDRA = {"_target_": str, "_partial_": bool}
# Keys of a node that are not arguments of its target: a name for people; see `checks.prepare_devices`.
_BESIDE: dict[str, dict[str, Any]] = {"attention": {"label": str | None}, "trainer": {"tf32": bool}}


def _environment(name: str, *default: Any) -> Any:
    if name not in ENVIRONMENT:
        raise ConfigError(
            f"expected one of {', '.join(ENVIRONMENT)} from the environment, got oc.env:{name}; the configuration is "
            "saved with the run: write the value itself if it is no secret"
        )
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", _environment, replace=True)


def build(node: DictConfig, key: str, **kwargs: Any) -> Any:
    """Instantiate the configuration node `key`; a context module is left partial, for the channels of the head.

    Raises:
        ConfigError: If it names what is not allowed, or the constructor refuses its arguments.
    """
    plain = OmegaConf.to_container(node, resolve=True)
    check_targets(plain, key)
    if key == "attention":
        kwargs["_partial_"] = True
    if key in _BESIDE:
        node = node.copy()
        with open_dict(node):
            for name in _BESIDE[key]:
                node.pop(name, None)
    # Hydra 1.4 will want the same list here, as `_execution_whitelist_` from trusted code: hydra-ecosystem/hydra#3258.
    # 1.3 has none, only a list of what it refuses.
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        # Hydra says which node, but drops some brackets
        inner = re.sub(r"[][]", "", str(error).partition("\nfull_key: ")[2])
        where = next((path for path, _ in nodes(plain, key) if re.sub(r"[][]", "", path) == inner), key)
        is_early = isinstance(cause, TypeError) and "missing" in str(cause)
        later = f"; if it is given later, set {where}._partial_=true" if is_early else ""
        raise ConfigError(f"{where} cannot be built: {_reason(cause or error)}{later}") from error


def _reason(cause: BaseException) -> str:
    """Return what a constructor said, in one line; of a report by pydantic, as albumentations gives, the first fault."""
    if callable(errors := getattr(cause.__cause__, "errors", None)):
        fault = errors()[0]
        where = f"{fault['loc'][0]}: " if fault["loc"] else ""  # a fault of several values has no place
        return f"{where}{fault['msg']}, got {fault['input']}"
    return one_line(cause)


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
        known = {**_OF_HYDRA, **{name: _annotation(p, node.get(name)) for name, p in parameters.items()}}
        known |= _BESIDE.get(where, {})
        check_keys(where, node, known, node["_target_"], is_open)


def _find(path: str, target: Any) -> Callable[..., Any]:
    """Return the class or function that a `_target_` names; nothing is imported before its package may be named."""
    key, name = f"{path}._target_".lstrip("."), str(target)
    bases = [base for base, prefixes in ALLOWED.items() if any(_is_below(name, p) for p in prefixes)]
    if not bases and not is_trusted(name):
        raise _refusal(key, name)
    try:
        found = _import(name) if bases else import_trusted(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"expected {key} to name a class or function, got '{target}': {error}{_near(error)}"
        ) from error
    if not (inspect.isclass(found) or inspect.isfunction(found)) or found.__name__.startswith("_"):
        raise _refusal(key, name)
    home = f"{found.__module__}.{found.__qualname__}"  # a module also holds what it imports
    if home in _OURS_INSTEAD:
        raise ConfigError(f"expected {key}={_OURS_INSTEAD[home]}, got '{name}'; set that")
    if not is_trusted(home) and not any(_derives(found, home, base) for base in bases):
        raise _refusal(key, name)
    for place, base in _KINDS.items():
        if path == "loss" and is_trusted(home):
            continue  # whatever can be called
        if re.fullmatch(place, path) and inspect.isclass(found) and not issubclass(found, _import(base)):
            kind = f"{base.split('.')[0]} {base.split('.')[-1]}"
            raise ConfigError(f"expected {key} to name a {kind}, got '{target}'")
    return found


def _near(error: Exception) -> str:
    public = [name for name in dir(getattr(error, "obj", None)) if not name.startswith("_")]
    return f"; {suggest(str(error.name), public)}".rstrip("; ") if isinstance(error, AttributeError) else ""


def _derives(found: Callable[..., Any], home: str, base: str) -> bool:
    """Return whether what is defined at `home` derives from a base of `ALLOWED`, and belongs below its names."""
    is_there = any(_is_below(home, prefix) for prefix in ALLOWED[base])
    if not base:
        return is_there
    kind = _import(base)
    return found is kind or (is_there and inspect.isclass(found) and issubclass(found, kind))


def _refusal(key: str, name: str) -> ConfigError:
    package = name.partition(".")[0]
    if package in KNOWN or is_trusted(name):
        ways = [
            (p, base) for base, prefixes in ALLOWED.items() for p in prefixes if p.startswith(f"{package}.")
        ]
        known = ", ".join(f"{p} ({base.split('.')[-1]})" if base else p for p, base in ways)
        return ConfigError(
            f"expected {key} to begin with {known or package} and to be a public class or function that is defined "
            f"there, got '{name}'; a configuration is code: run only one you trust"
        )
    if package.isidentifier() and package not in sys.stdlib_module_names:
        remedy = f"if you trust its code, give +trust=[{package}] or ISASEG_TRUST={package}"
    else:
        remedy = "a configuration is code: run only one you trust"
    roots = ", ".join(KNOWN)
    return ConfigError(
        f"expected {key} to begin with one of {roots} or a package that you trust, got '{name}'; {remedy}"
    )


def _is_below(name: str, prefix: str) -> bool:
    return name.startswith(prefix) if prefix.endswith(".") else name == prefix


def _import(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _annotation(parameter: inspect.Parameter, value: Any) -> Any:
    """Return a parameter's annotation; none for a value that is its default, which need not fit: `rank: int = None`."""
    is_default = type(value) is type(parameter.default) and value == parameter.default
    return inspect.Parameter.empty if is_default else parameter.annotation


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(target, eval_str=True).parameters)
    except Exception:  # an annotation that is imported for type checkers only, or is none
        return dict(inspect.signature(target).parameters)
