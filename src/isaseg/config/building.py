"""Building what a node of the configuration describes."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from isaseg.config.targets import check_targets
from isaseg.errors import ConfigError


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
