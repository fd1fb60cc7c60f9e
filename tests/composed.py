"""Compositions of conf/ whose options are composed once; a tenth of what Hydra takes for all anew.

`tests/config/test_composed.py` compares them with Hydra's own.
"""

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.config import composition

CONF = config.conf_dir()


def compose(name: str, words: Sequence[str], return_hydra_config: bool = False) -> DictConfig:
    """Return what `hydra.compose` returns for a file of conf/, and raise what it raises."""
    cfg = None if return_hydra_config else _composed(name, words)
    return hydra.compose(name, list(words), return_hydra_config) if cfg is None else cfg


def compose_from(name: str, words: Sequence[str]) -> DictConfig:
    """Return what `config.compose_from` returns, and raise what it raises."""
    GlobalHydra.instance().clear()
    with mock.patch.object(composition, "compose", compose):
        return config.compose_from(name, words)


def _composed(name: str, words: Sequence[str]) -> DictConfig | None:
    """Return the configuration, or None where Hydra itself is to be asked, for what is unusual or an error."""
    try:
        parsed = [_parsed(word) for word in words]
    except HydraException:
        return None
    if any(_is_unusual(one) for one in parsed):
        return None
    options = tuple(word for word, one in zip(words, parsed, strict=True) if _is_option(one))
    try:
        cfg = pickle.loads(_with_options(name, options))  # which takes a fifth of deepcopy's time
        for one in parsed:
            if _is_option(one):
                continue
            key = one.key_or_group
            if one.is_add() and OmegaConf.select(cfg, key, throw_on_missing=False) is not None:
                return None  # which Hydra refuses, or merges
            new = one.is_add() or one.is_force_add()
            OmegaConf.update(cfg, key, one.value(), merge=True, force_add=new)
    except (HydraException, OmegaConfBaseException):
        return None
    return cfg


@functools.cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _is_unusual(one: Override) -> bool:
    """Return whether a word is about Hydra itself, places an option elsewhere, is a grid, or removes a key."""
    by_hand = one.is_hydra_override() or one.package is not None or one.is_sweep_override()
    return by_hand or (one.is_delete() and not _is_option(one))


def _is_option(one: Override) -> bool:
    """Return whether a word chooses an option of a group, as `hydra/_internal/defaults_list.py` decides it."""
    return Path(CONF, one.key_or_group).is_dir() and not isinstance(one.value(), dict)


@functools.cache
def _with_options(name: str, options: tuple[str, ...]) -> bytes:
    return pickle.dumps(hydra.compose(name, list(options)))
