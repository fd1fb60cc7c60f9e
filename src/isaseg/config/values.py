"""Which values a training configuration may have, where no constructor sees them before work begins."""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from isaseg.config.targets import suggest
from isaseg.errors import ConfigError

_LEAST = {
    "trainer.max_steps": 1,
    "trainer.val_check_interval": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.log_every_n_steps": 1,
    "optim.total_steps": 1,
    "data.num_classes": 2,
    "data.batch_size": 1,
    "data.val_batch_size": 1,
    "data.num_workers": 0,
    "data.timeout": 1,
    "data.max_bad_samples": 0,
    "data.ignore_index": 0,
    "checkpoint_every_n_steps": 1,
    "head.channels": 1,
    "callbacks.pictures": 0,
    "callbacks.wandb_pictures": 0,
}
_RANGES = {
    "aux_weight": (0, 1000),
    "head.dropout": (0, 1),
    "optim.weight_decay": (0, 1000),
    "optim.head_lr_mult": (0, 1000),
    "optim.momentum": (0, 1),
    "optim.power": (0, 100),
    "optim.warmup": (0, 1),
    "optim.warmup_steps": (0, 10**9),
}
_FLAGS = (
    "check_data",
    "score_test",
    "head.align_corners",
    "compile",
    "callbacks.profile",
)
_TEXTS = ("name", "data.name", "output_dir", "resume")
_SAME = {
    "loss.ignore_index": "data.ignore_index",
    "data.transform.ignore_index": "data.ignore_index",
    "data.transform.crop_size": "data.crop_size",
    "data.max_steps": "trainer.max_steps",
    "data.accumulate": "trainer.accumulate_grad_batches",
}
_ABSENT = object()


def check_names(plain: Mapping[str, Any], known: Mapping[str, Collection[str]]) -> None:
    """Check the keys that no constructor sees.

    Args:
        plain: A configuration, resolved.
        known: The keys that it may have, "" for those without a dot, and those of its sections.

    Raises:
        ConfigError: Naming an unknown key, and the nearest known one.
    """
    for section, names in known.items():
        if section and not isinstance(plain.get(section), Mapping):
            raise _refused(section, "a section of keys", plain.get(section))
        for key in plain if not section else plain[section]:
            if key not in names:
                dotted = f"{section}.{key}".lstrip(".")
                raise ConfigError(
                    f"no configuration key '{dotted}'; {suggest(str(key), list(names))}known here: {', '.join(names)}"
                )


def check_values(plain: Mapping[str, Any]) -> None:
    """Check types, ranges and what must agree.

    Args:
        plain: A training configuration, resolved.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    for key, least in _LEAST.items():
        value = _get(plain, key)
        if not _is_integer(value) or value < least:
            raise _refused(key, f"an integer of at least {least}", value)
    for key in ("seed", "data.seed"):
        seed = _get(plain, key)
        if not _is_integer(seed) or not 0 <= seed < 2**32:  # NumPy's and Lightning's limit
            raise _refused(key, f"an integer from 0 to {2**32 - 1}", seed)
    for key in _FLAGS:
        if not isinstance(_get(plain, key), bool):
            raise _refused(key, "true or false", _get(plain, key))
    for key in _TEXTS:
        if not isinstance(_get(plain, key), str):
            said = "auto, must, never or the path of a checkpoint" if key == "resume" else "text"
            raise _refused(key, said, _get(plain, key))
    for key in ("name", "data.name"):  # of folders
        if not re.search(r"\w", _get(plain, key)):
            raise _refused(key, "text with a letter or a digit in it", repr(_get(plain, key)))
    for key in ("data.val_length", "head.aux_channels"):
        value = _get(plain, key)
        if value is not None and (not _is_integer(value) or value < 1):
            raise _refused(key, "null or an integer of at least 1", value)
    clip = _get(plain, "trainer.gradient_clip_val")
    if clip is not None and (not _is_number(clip) or not 0 <= clip < math.inf):
        raise _refused("trainer.gradient_clip_val", "null or a number of at least 0", clip)
    lr = _get(plain, "optim.lr")
    if not _is_number(lr) or not 0 < lr < math.inf:
        raise _refused("optim.lr", "a number above 0", lr)
    for key, (low, high) in {**_RANGES, "optim.min_lr": (0, lr)}.items():
        value = _get(plain, key)
        if value is not _ABSENT and (not _is_number(value) or not low <= value <= high):
            raise _refused(key, f"a number from {low} to {high}", value)
    crop = _get(plain, "data.crop_size")
    if not isinstance(crop, list) or len(crop) != 2 or not all(_is_integer(n) and n > 0 for n in crop):
        raise ConfigError(f"expected data.crop_size as [height, width], got data.crop_size={crop}")
    _check_classes(plain)
    for key, first in _SAME.items():
        value, wanted = _get(plain, key), _get(plain, first)
        if value is not _ABSENT and value != wanted:
            raise ConfigError(f"expected {key} to be {first}={wanted}, got {key}={value}; set {first} alone")


def _check_classes(plain: Mapping[str, Any]) -> None:
    ignored, count = _get(plain, "data.ignore_index"), _get(plain, "data.num_classes")
    if ignored < count:
        raise ConfigError(
            f"expected data.ignore_index outside the classes 0 to {count - 1}, got data.ignore_index={ignored}"
        )
    weights = _get(plain, "loss.class_weights")
    if weights is not None and (not isinstance(weights, list) or len(weights) != count):
        raise ConfigError(
            f"expected one weight for each of the {count} classes, got loss.class_weights={weights}; "
            "set loss.class_weights=null or give all of them"
        )
    if weights is not None and not all(_is_number(w) and 0 <= w < math.inf for w in weights):
        raise _refused("loss.class_weights", "numbers of at least 0", weights)


def _get(plain: Any, key: str) -> Any:
    """Return the value of a dotted key."""
    for part in key.split("."):
        if not isinstance(plain, Mapping) or part not in plain:
            return _ABSENT
        plain = plain[part]
    return plain


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _refused(key: str, expected: str, value: Any) -> ConfigError:
    return ConfigError(
        f"expected {key} to be {expected}, got {'none' if value is _ABSENT else f'{key}={value}'}"
    )
