"""A source of labelled images of the user's own: what it leaves out, and whether it agrees with the configuration."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from isaseg.data.info import as_palette, default_palette
from isaseg.errors import ConfigError, one_line


def complete(source: Any, split: str, num_classes: int, ignore_index: int) -> None:
    """Set what a source does not define: names, colours, ignored label, no groups, no pairs.

    Raises:
        ConfigError: If it loads nothing, lets nothing be set, or does not agree with the configuration.
    """
    if not (hasattr(source, "load") and hasattr(source, "__len__")):
        raise ConfigError(
            f"expected data.source to return an object with __len__ and load(index), got {type(source).__name__} for the "
            f"split {split}; see docs/your-own-module.md"
        )
    classes = _names(getattr(source, "classes", range(num_classes)))
    if len(classes) != num_classes:
        raise ConfigError(
            f"expected data.num_classes={len(classes)}, the number of class names, got data.num_classes={num_classes}"
        )
    ignored = getattr(source, "ignore_index", ignore_index)
    if ignored != ignore_index:
        raise ConfigError(f"expected data.ignore_index={ignored}, got data.ignore_index={ignore_index}")
    colours = getattr(source, "palette", default_palette(classes))
    found = {
        "classes": classes,
        "palette": as_palette(colours, num_classes, "the palette of data.source"),
        "ignore_index": ignored,
        "groups": getattr(source, "groups", None),
        "flip_pairs": getattr(source, "flip_pairs", ()),
        "name": getattr(source, "name", partial(_numbered, split)),
    }
    for name, value in found.items():
        _set(source, name, value)


def _names(given: Any) -> Sequence[str]:
    """Return names as checkpoints can hold them: NumPy's strings are not plain ones."""
    if not isinstance(given, Sequence | np.ndarray):
        raise ConfigError(f"expected a list of names as classes of data.source, got {given!r}")
    if isinstance(given, list | tuple) and all(type(name) is str for name in given):
        return given
    return tuple(map(str, given))


def _set(source: Any, name: str, value: Any) -> None:
    """Set an attribute, unless the source has it so already: it may be a property."""
    old: Any = getattr(source, name, None)
    is_same = old is value or (type(old) is type(value) and np.array_equal(old, value))
    if hasattr(source, name) and is_same and getattr(old, "dtype", None) == getattr(value, "dtype", None):
        return
    try:
        setattr(source, name, value)
    except AttributeError as error:
        raise ConfigError(
            f"expected data.source to return an object that has {name}, or lets it be set, got {type(source).__name__}: "
            f"{one_line(error)}"
        ) from error


def _numbered(split: str, index: int) -> str:
    return f"{split}_{index:05d}"
