"""What distinguishes the rows: the keys of the configurations that differ, and labels made of them."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from isaseg import config

Values = Mapping[str, str]  # dotted keys and their values as text

_UNSET = "unset"
# Keys of later sections follow from those of earlier ones by interpolation (conf/): the earlier one is shown.
_SECTIONS = ("attention", "backbone", "trainer", "optim", "data", "head", "loss")


def identity_as_text(cfg: DictConfig) -> dict[str, str]:
    """Return what defines a run, as `config.run_name` sees it: flat, as text, without the seed."""
    values = config.leaves(config.identity(cfg))
    return {key: _text(value) for key, value in values.items() if key != "seed"}


def _text(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2 and all(isinstance(v, int) for v in value):
        return f"{value[0]}x{value[1]}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def differing(attention: Sequence[str], values: Sequence[Values]) -> list[str]:
    """Return the keys that differ, without those that repeat what an earlier one says."""
    found: dict[str, tuple[str, ...]] = {}
    heads: dict[str, Sequence[str]] = {"attention": attention}
    for key in sorted({key for held in values for key in held}, key=_rank):
        cells, section = tuple(held.get(key, _UNSET) for held in values), key.split(".")[0]
        if len(set(cells)) == 1 or cells in found.values():
            continue
        if section in heads and _follows(cells, heads[section]):
            continue
        if key.count(".") == 1 and key.endswith((".name", "._target_")):
            heads.setdefault(section, cells)
        found[key] = cells
    return list(found)


def _rank(key: str) -> tuple[Any, ...]:
    section, _, leaf = key.partition(".")
    place = _SECTIONS.index(section) if section in _SECTIONS else len(_SECTIONS)
    return place, ("name", "_target_").index(leaf) if leaf in ("name", "_target_") else 2, key.count("."), key


def _follows(cells: Sequence[str], head: Sequence[str]) -> bool:
    """Return whether `cells` is a function of `head`."""
    return len(set(zip(head, cells, strict=True))) == len(set(head))


def labels(attention: Sequence[str], values: Sequence[Values], keys: Sequence[str]) -> list[str]:
    """Return a different label for each row: the context module, and those of the keys that are needed."""
    several = Counter(map(_short, keys))
    made = list(attention)
    for key in keys:
        name = _short(key) if several[_short(key)] == 1 else key
        cells = [held.get(key, _UNSET) for held in values]
        if len(set(zip(made, cells, strict=True))) > len(set(made)):
            made = [f"{label}, {name}={cell}" for label, cell in zip(made, cells, strict=True)]
    return made


def _short(key: str) -> str:
    """Return how a key is shown: `data` for data.name, `lr` for optim.lr."""
    section, _, leaf = key.rpartition(".")
    return section if leaf in ("name", "_target_") and section else leaf
