"""The data of a run, from the config.yaml in its folder: what its checkpoints are evaluated on."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.config.targets import check_targets
from isaseg.errors import ConfigError, one_line

log = logging.getLogger(__name__)


def run_file(checkpoint: Path) -> Path | None:
    """Return the config.yaml of the run whose folder `checkpoints` has the file, None if there is none."""
    folder = checkpoint.absolute().parent
    file = folder.parent / "config.yaml"
    return file if folder.name == "checkpoints" and file.is_file() else None


def is_of_data(word: str) -> bool:
    """Return whether a word of a command line names a key of the node `data`."""
    return word.lstrip("+~").startswith("data.")


def run_data(file: Path, words: Sequence[str], trained_on: str | None) -> DictConfig:
    """Return the node `data` of a run's config.yaml, changed by those words of a command line that name its keys.

    The file may come from a stranger: it gives no trust, and is checked like any configuration.

    Args:
        file: The config.yaml.
        words: The words.
        trained_on: The data set that the checkpoint names.

    Raises:
        ConfigError: If this version cannot use it, it is of another data set, a word names a key that it lacks, or its
            root is not there.
    """
    try:
        held: Any = OmegaConf.load(file)
        plain: Any = OmegaConf.to_container(held.data, resolve=True)
        check_targets(plain, "data")
        root, name = plain.get("root"), plain["name"]
    except Exception as error:  # a file of anybody's: YAML, OmegaConf and our checks have many types
        raise _unusable(file, error) from error
    if trained_on not in (None, name):
        raise _unusable(
            file, ValueError(f"data.name={name}, where the checkpoint was trained on {trained_on}")
        )
    node = {key: _following(value, plain, root) for key, value in plain.items()}
    # composed like a file of conf, so that words change it, and are refused, as everywhere
    ConfigStore.instance().store("run_data", {"data": node})
    data: DictConfig = config.compose_from("run_data", words).data
    if root and data.get("root") == root and not Path(str(root)).exists():
        raise ConfigError(
            f"expected the folder '{root}', which is data.root in '{file}', got none of that name; give data.root=DIR"
        )
    kept = [f"data={name}", *([f"data.root={root}"] if root and data.get("root") == root else [])]
    log.info(
        "%s as in the run, from %s%s", " ".join(kept), file, f"; given: {' '.join(words)}" if words else ""
    )
    return data


def _following(node: Any, data: Mapping[str, Any], root: str | None) -> Any:
    """Return a node below the resolved `data` with what it took from there as interpolations again.

    That is the root, also where a path begins with it, and the value of a key that `data` has too.
    """
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if isinstance(root, str) and isinstance(value, str) and f"{value}/".startswith(f"{root}/"):
            value = f"${{data.root}}{value.removeprefix(root)}"
        elif key in data and value == data[key] and not isinstance(value, dict):
            value = f"${{data.{key}}}"
        found[key] = _following(value, data, root)
    return found


def _unusable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"expected '{file}' to have data that this version can use, got: {one_line(error)}; give data=NAME, "
        "and data.root=DIR, to evaluate without that file"
    )
