"""The values of the sources, from the JSON files of this folder, and those that our configuration composes to.

A file has `code` (a name), `commit`, `at` (addresses of its files by how their paths begin) and `rows`. A row is one
published configuration: `name`, `words` (of our command), perhaps `like` (the name of a row with the other values) and
`values`: by our key, [value, source], and where ours has to differ [value, source, ours, why]. A source is PATH:LINE, of
another commit COMMIT:PATH:LINE.
"""

import functools
import inspect
import json
from pathlib import Path
from typing import Any

import timm
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.models.backbone import Backbone

FOLDER = Path(__file__).parent
_DEFAULTS = {name: p.default for name, p in inspect.signature(Backbone).parameters.items()}


def files() -> dict[str, Any]:
    """Return the contents of the JSON files by name, each row with all its values."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    for file in found.values():
        whole: dict[str, Any] = {}
        for row in file["rows"]:
            row["values"] = {**whole.get(row.get("like"), {}), **row["values"]}
            whole[row["name"]] = row["values"]
    return found


@functools.cache
def composed(words: str) -> tuple[DictConfig, DictConfig]:
    """Return the configuration of a run and that of its evaluation, which has the node `test`."""
    GlobalHydra.instance().clear()
    of_test = [word for word in words.split() if word.startswith("test.")]
    run = config.compose_from("train", [*(w for w in words.split() if w not in of_test), "data.root=x"])
    chosen = [f"data={run.data.name}", f"protocol={run.recipe.protocol}", *of_test]
    test = config.compose_from("evaluate", ["checkpoint=none", *chosen])
    return run, test


def value(words: str, key: str) -> Any:
    """Return the value of a key in the form of the JSON files: of classes their names, lists and mappings plain."""
    run, test = composed(words)
    found: Any = OmegaConf.select(test if key.startswith("test.") else run, key, throw_on_missing=True)
    group, _, name = key.partition(".")
    if group == "backbone" and found is None:
        found = _of_timm(run.backbone.name, name) if name in ("mean", "std") else _DEFAULTS[name]
    if OmegaConf.is_config(found):
        found = OmegaConf.to_container(found, resolve=True)
    if key == "data.transform.augment":
        return [node["_target_"].rpartition(".")[2] for node in found]
    if key == "loss.average" and found is None:
        return "labelled"  # of hard examples, which have labels
    return found.rpartition(".")[2] if key.endswith("_target_") else found


def _of_timm(name: str, statistic: str) -> list[float]:
    """Return the mean or std of timm's weights, 0 to 255, which is that of a backbone without its own."""
    return [round(255 * each, 4) for each in getattr(timm.get_pretrained_cfg(name), statistic)]
