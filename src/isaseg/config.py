"""From a composed configuration to objects, with every mistake told in one sentence before work begins.

The only caller of `hydra.utils.instantiate`.
"""

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg.errors import ConfigError
from isaseg.targets import check_environment, check_targets, nodes, suggest
from isaseg.values import check_names, check_values

# A list's length: the number of classes of a user's own folder follows from their names (conf/data/folder.yaml).
OmegaConf.register_new_resolver("count", len, replace=True)

PROFILED = 8  # steps of a run that is profiled

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
    "attention.recompute",
)


def conf_dir() -> Path:
    """Return the folder of the configuration: beside `src` in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "conf"
    return checkout if checkout.is_dir() else package / "conf"


def check_nodes(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration resolved; what it takes from the environment and each `_target_` is allowed.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    plain = _resolved(cfg)
    check_targets(plain)
    return plain


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    check_environment(OmegaConf.to_container(cfg))
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
    """Check a training configuration: missing values, unknown keys, types, ranges, keys that must agree.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    plain = _resolved(cfg)
    # a key of one's own may hold what others interpolate
    own = re.findall(r"\$\{(\w+)", str(OmegaConf.to_container(cfg)))
    check_names(plain, {**_known(), "": [*_known()[""], *own]})
    check_values(plain)
    _check_recipe(cfg)
    check_targets(plain)


@functools.cache
def _known() -> dict[str, list[str]]:
    """Return the keys of a training configuration, and those of its sections that are given to no constructor."""
    root, files, shown = (
        OmegaConf.load(conf_dir() / f"{name}.yaml")
        for name in ("train", "paths/default", "callbacks/default")
    )
    groups = [str(next(iter(group))) for group in root.defaults if OmegaConf.is_dict(group)]
    top = [*groups, *root, *files, "test"]  # how evaluate.py applies a network: of recipes
    return {
        "": [str(key) for key in top if not str(key).startswith("optional ")],
        "head": [*root.head, "negative_slope"],  # openseg's InPlaceABN
        "recipe": list(root.recipe),
        "callbacks": list(shown),
    }


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


def shortened(cfg: DictConfig) -> DictConfig:
    """Return the configuration of the few steps that are watched where `callbacks.profile` asks for it, else itself."""
    if OmegaConf.select(cfg, "callbacks.profile") is not True:
        return cfg
    few = OmegaConf.merge(cfg, {"trainer": {"max_steps": PROFILED, "val_check_interval": PROFILED}})
    assert isinstance(few, DictConfig)
    return few


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
        return f"no option '{option}' in the group {folder}; {suggest(option, options)}options: {', '.join(options)}"
    wrong = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if wrong:
        key = wrong.group(1)
        return f"no configuration key '{key}'; {suggest(key, _all_keys(config_name))}see `python {command} --help`"
    return text.strip().replace("\n", " ")


def _all_keys(config_name: str) -> list[str]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(config_name, return_hydra_config=True)
    keys = [group for group in cfg.hydra.runtime.choices if "/" not in group]
    del cfg.hydra
    for path, node in nodes(OmegaConf.to_container(cfg)):
        keys += [f"{path}.{k}" if path else str(k) for k in node]
    return keys


def safe_name(name: str) -> str:
    """Return a name as that of a file or folder: letters, digits and . = , _ - alone, no dot first."""
    return re.sub(r"[^\w.=,-]+", "-", name).lstrip(".")
