"""The check of a configuration, before anything is built."""

import functools
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg.config.composition import conf_dir
from isaseg.config.targets import check_environment, check_targets
from isaseg.config.values import check_names, check_values
from isaseg.errors import ConfigError


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
