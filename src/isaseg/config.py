"""From a composed configuration to objects, with every mistake told in one sentence before work begins.

The only caller of `hydra.utils.instantiate`.
"""

import difflib
import hashlib
import importlib
import inspect
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg.errors import ConfigError

# Otherwise albumentations, which a configuration may name, asks pypi.org for a newer version in every process.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

# A configuration is code: these are the packages it may name. (The obvious doors, not a sandbox.)
ALLOWED_TARGETS = ("isaseg.", "lightning.pytorch.Trainer", "torch.optim.", "albumentations.")

# A list's length: the number of classes of a user's own folder follows from their names (conf/data/folder.yaml).
OmegaConf.register_new_resolver("count", len, replace=True)

# Keys that say where and how a run is executed, not what it computes: they do not change its name.
_NOT_IDENTITY = (
    "resume",
    "check_data",
    "score_test",
    "checkpoint_every_n_steps",
    "output_dir",
    "run_dir",
    "logger",
    "callbacks",
    "data.root",
    "data.source.root",
    "data.num_workers",
    "data.val_batch_size",
    "data.timeout",
    "data.cache",
    "data.strict_size",
    "recipe",  # what is used of it stands in optim
    "test",  # of evaluate.py alone
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.num_nodes",
    "trainer.log_every_n_steps",
)


def conf_dir() -> Path:
    """Return the folder of the configuration: beside `src` in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "conf"
    return checkout if checkout.is_dir() else package / "conf"


def check_nodes(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration resolved, each `_target_` in it allowed and its keys known.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
        plain = None if missing else OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        needed = re.search(r"Missing mandatory value: (\S+)", str(error))  # what another value is made of
        if needed is None:
            raise ConfigError(f"the configuration does not resolve: {str(error).splitlines()[0]}") from error
        missing = [needed.group(1)]
    if missing:
        raise ConfigError(f"expected a value for {missing[0]}, got none; give it as {missing[0]}=VALUE")
    assert isinstance(plain, dict)
    for path, node in _nodes(plain):
        if "_target_" in node:
            _check_node(path, node)
    return {str(key): value for key, value in plain.items()}


def require(cfg: DictConfig, key: str) -> Any:
    """Return the value of `key`.

    Raises:
        ConfigError: If it has none.
    """
    if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
        raise ConfigError(f"expected a value for {key}, got none; give it as {key}=VALUE")
    return cfg[key]


def check(cfg: DictConfig) -> None:
    """Check what a single constructor cannot see: missing values, unknown keys, ranges, keys that must agree.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    plain = check_nodes(cfg)
    for key, least in (
        ("seed", 0),
        ("trainer.max_steps", 1),
        ("trainer.val_check_interval", 1),
        ("data.batch_size", 1),
        ("data.val_batch_size", 1),
        ("data.num_workers", 0),
        ("data.timeout", 1),
        ("data.max_bad_samples", 0),
        ("data.ignore_index", 0),
        ("checkpoint_every_n_steps", 1),
        ("head.channels", 1),
    ):
        value = OmegaConf.select(cfg, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"expected {key} to be an integer of at least {least}, got {key}={value}")
    length = cfg.data.val_length
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise ConfigError(f"expected data.val_length to be null or an integer of at least 1, got {length}")
    _check_recipe(cfg)
    lr = cfg.optim.lr
    if not isinstance(lr, (int, float)) or lr <= 0:
        raise ConfigError(f"expected optim.lr to be a number above 0, got optim.lr={lr}")
    if 0 <= cfg.data.ignore_index < cfg.data.num_classes:
        raise ConfigError(
            f"expected data.ignore_index outside the classes 0 to {cfg.data.num_classes - 1}, "
            f"got data.ignore_index={cfg.data.ignore_index}"
        )
    crop = plain["data"]["crop_size"]
    if not isinstance(crop, list) or len(crop) != 2 or not all(isinstance(n, int) and n > 0 for n in crop):
        raise ConfigError(
            f"expected data.crop_size as [height, width], got data.crop_size={cfg.data.crop_size}"
        )
    weights = plain["loss"]["class_weights"]
    if weights is not None and (not isinstance(weights, list) or len(weights) != cfg.data.num_classes):
        raise ConfigError(
            f"expected one weight for each of the {cfg.data.num_classes} classes, got "
            f"loss.class_weights={weights}; set loss.class_weights=null or give all of them"
        )
    if not isinstance(cfg.resume, str):
        raise ConfigError(
            f"expected resume to be auto, must, never or the path of a checkpoint, got resume={cfg.resume}"
        )


def _check_recipe(cfg: DictConfig) -> None:
    wanted = f"{cfg.data.name}_{cfg.recipe.protocol}"
    if cfg.recipe.protocol == "none" or cfg.recipe.of == wanted:
        return
    found = sorted(p.stem for p in (conf_dir() / "recipe").glob(f"{cfg.data.name}_*.yaml"))
    known = [name.removeprefix(f"{cfg.data.name}_") for name in found]
    known = [name for name in known if (conf_dir() / "protocol" / f"{name}.yaml").is_file()]
    raise ConfigError(
        f"no values of protocol={cfg.recipe.protocol} are known for data={cfg.data.name}; "
        f"choose protocol={' or '.join([*known, 'none'])}"
    )


def build(node: DictConfig, key: str, **kwargs: Any) -> Any:
    """Instantiate the configuration node `key`.

    Raises:
        ConfigError: If the constructor refuses its arguments.
    """
    try:
        return instantiate(node, _convert_="all", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"{key} cannot be built: {cause or error}") from error


def run_dir(cfg: DictConfig) -> Path:
    """Return the run's folder, the same for the same configuration and seed."""
    if cfg.run_dir is not None:
        return Path(cfg.run_dir)
    return Path(cfg.output_dir) / safe_name(cfg.name) / run_name(cfg)


def data_dir(cfg: DictConfig) -> Path:
    """Return the folder of the report on a data set."""
    return Path(cfg.output_dir) / "data" / safe_name(cfg.data.name)


def run_name(cfg: DictConfig) -> str:
    """Return a readable name: context module, backbone, seed and a digest of all that defines the run."""
    plain = identity(cfg)
    return safe_name(f"{attention_label(cfg)}_{plain['backbone']['name']}_seed{cfg.seed}_{digest(plain)}")


def identity(cfg: DictConfig) -> dict[str, Any]:
    """Return all that defines a run, as plain data: without the keys that say where and how it is executed."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for key in _NOT_IDENTITY:
        if key.endswith("root") and plain.get("data", {}).get("name") == "folder":
            continue  # any other data set is the same wherever it lies
        node: Any = plain
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    return {str(key): value for key, value in plain.items()}


def digest(plain: Any) -> str:
    """Return eight letters that differ for different plain data."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def same_run(cfg: DictConfig, folder: Path) -> bool:
    """Tell whether the run in `folder` computes what `cfg` says: steps, learning rate, everything."""
    wanted = run_name(cfg)
    try:
        held = OmegaConf.load(folder / "config.yaml")
        return isinstance(held, DictConfig) and run_name(held) == wanted
    except (
        Exception
    ):  # not there, of another version of the project, or cut short: YAML has many words for it
        return False


def validation_interval(cfg: DictConfig) -> int:
    """Return after how many steps to validate: trainer.val_check_interval, or a divisor of max_steps near it.

    So that the last step, which is what a run is for, is validated and saved too. If there is none between half and
    twice of what is wanted, the wanted one stays.
    """
    steps, interval = cfg.trainer.max_steps, cfg.trainer.val_check_interval
    for key, value in (("max_steps", steps), ("val_check_interval", interval)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"expected trainer.{key} to be a number of steps, at least 1, got {value}")
    wanted = min(interval, steps)
    divisors = [i for i in range(1, steps + 1) if steps % i == 0]
    below, above = max(i for i in divisors if i <= wanted), min(i for i in divisors if i >= wanted)
    near = below if 2 * below >= wanted else above
    return near if near <= 2 * wanted else wanted


def attention_label(cfg: DictConfig) -> str:
    """Return a short name of the context module, e.g. `isa-8x8`, `isa-8x8-long`, `isa-8x8-d2`, `dense`."""
    node = cfg.attention
    kind = str(node["_target_"]).rsplit(".", 1)[-1]
    name = {
        "InterlacedSparseAttention": "isa",
        "ParallelInterlacedSparseAttention": "isa-parallel",
        "SelfAttention2d": "dense",
        "CrissCrossAttention": "criss-cross",
        "PlainCrissCross": "criss-cross-plain",
        "PyramidPooling": "pyramid-pooling",
        "ASPP": "aspp",
        "DoubleAttention": "double-attention",
        "CGNL": "cgnl",
        "NoContext": "none",
    }.get(kind, kind)
    if OmegaConf.is_list(node.get("group_size")):
        name += "-" + "x".join(str(p) for p in node.group_size)
    if node.get("order", "long_short") != "long_short":
        name += f"-{node.order}"
    for key in ("recurrence", "passes"):
        if key in node:
            name += f"-r{node[key]}"
    if node.get("depth", 1) != 1:
        name += f"-d{node.depth}"
    return name


def explain(error: Exception, config_name: str = "train", command: str = "src/train.py") -> str:
    """Return one clear message for an error of Hydra or OmegaConf while composing, with the nearest valid name."""
    text = str(error)
    group = re.search(r"Could not find '([^']+)'", text)
    if group and "Available options" in text:
        folder, _, option = group.group(1).rpartition("/")
        options = re.findall(r"^\t([^_\s]\S*)$", text, flags=re.MULTILINE)  # _files: what others inherit
        return f"no option '{option}' in the group {folder}; {_suggest(option, options)}options: {', '.join(options)}"
    wrong = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if wrong:
        key = wrong.group(1)
        return f"no configuration key '{key}'; {_suggest(key, _all_keys(config_name))}see `python {command} --help`"
    return text.strip().replace("\n", " ")


def _suggest(name: str, candidates: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4)
    return f"did you mean '{near[0]}'? " if near else ""


def _all_keys(config_name: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(config_name, return_hydra_config=True)
    keys = [group for group in cfg.hydra.runtime.choices if "/" not in group]
    del cfg.hydra
    for path, node in _nodes(OmegaConf.to_container(cfg)):
        keys += [f"{path}.{k}" if path else str(k) for k in node]
    return keys


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _nodes(value, f"{path}[{index}]")


def _check_node(path: str, node: dict[str, Any]) -> None:
    target = str(node["_target_"])
    if not target.startswith(ALLOWED_TARGETS):
        raise ConfigError(
            f"expected {path}._target_ to begin with one of {', '.join(ALLOWED_TARGETS)}, got '{target}'; "
            "a configuration is code, run only those you trust"
        )
    module, _, name = target.rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"expected {path}._target_ to name a class or function, got '{target}': {error}"
        ) from error
    if not str(getattr(function, "__module__", "")).startswith(
        ("isaseg", "lightning", "torch.optim", "albumentations")
    ):
        raise ConfigError(
            f"expected {path}._target_ to be defined in isaseg, lightning, torch.optim or albumentations, got '{target}'"
        )
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in node:
        if not key.startswith("_") and key not in parameters:
            raise ConfigError(
                f"no configuration key '{path}.{key}'; {_suggest(key, list(parameters))}({target})"
            )


def safe_name(name: str) -> str:
    """Return a name as that of a file or folder: letters, digits and . = , _ - alone, no dot first."""
    return re.sub(r"[^\w.=,-]+", "-", name).lstrip(".")
