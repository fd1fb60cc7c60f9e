"""The values of the sources, from the JSON files of this folder, and those that our configuration composes to.

A file has `code` (a name), `at` (the address of its files, with {commit}), `commit` and `rows`. A row is one
published configuration: `name`, `words` (of our command) and `values`: by our key, [value, source], and where ours
has to differ [value, source, ours, why].
"""

import functools
import json
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from isaseg import config

FOLDER = Path(__file__).parent


def files() -> dict[str, Any]:
    """Return the contents of the JSON files by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


@functools.cache
def composed(words: str) -> tuple[DictConfig, DictConfig]:
    """Return the configuration of a run and that of its evaluation, which has the node `test`."""
    GlobalHydra.instance().clear()
    run = config.compose_from("train", [*words.split(), "data.root=x"])
    chosen = [f"data={run.data.name}", f"protocol={run.recipe.protocol}"]
    test = config.compose_from("evaluate", ["checkpoint=none", *chosen])
    return run, test


def value(words: str, key: str) -> Any:
    """Return the value of a key in the form of the JSON files: of classes their names, lists and mappings plain."""
    run, test = composed(words)
    found: Any = OmegaConf.select(test if key.startswith("test.") else run, key, throw_on_missing=True)
    if OmegaConf.is_config(found):
        found = OmegaConf.to_container(found, resolve=True)
    if key == "data.transform.augment":
        return [node["_target_"].rpartition(".")[2] for node in found]
    return found.rpartition(".")[2] if key.endswith("_target_") else found
