"""The description of a network in a checkpoint: plain data, perhaps from a stranger, checked and built."""

import inspect
import re
import reprlib
from collections.abc import Collection
from functools import partial
from typing import Any

from isaseg.errors import CheckpointError
from isaseg.models import context_modules
from isaseg.models.backbone import Backbone
from isaseg.models.segmenter import Segmenter, build_segmenter

_LARGEST = 4096  # of any integer in a description: no published width, window or class count comes near
_LONGEST = 64  # of any list of arguments
_FROM_FILES = {"pretrained", "weights", "weights_sha256"}  # a description names no further files
_MODEL_ARGS = {"feature_location", "img_size", "dynamic_img_size"}
_HEAD = {"channels", "dropout", "aux_channels", "align_corners"}
_REQUIRED = {"backbone", "attention", "head", "num_classes"}
_OPTIONAL = {"negative_slope", "data", "protocol", "classes", "palette"}


def build_described(description: Any) -> Segmenter:
    """Build the network that a file describes, with random weights. The description may come from a stranger.

    Only `Backbone` without weights and the context modules of `isaseg.models` can be named, with numbers of bounded size,
    short strings, flags and short lists as arguments; nothing is fetched and no other file is read.

    Args:
        description: Plain data: `backbone`, arguments of `Backbone`; `attention`, `name` and arguments of a context
            module; `head`, with `channels`, `dropout`, `aux_channels` and `align_corners`; `num_classes`; and optionally
            `negative_slope`, `data` (an option of conf/data), `protocol` (one of conf/protocol), `classes` (names) and
            `palette` (RGB of each).

    Raises:
        CheckpointError: If anything else stands in it, or the network cannot be built.
    """
    node = _checked(description, "the description", _REQUIRED | _OPTIONAL, _REQUIRED)
    _check_facts(node)
    parameters = set(inspect.signature(Backbone).parameters) - _FROM_FILES
    backbone = _checked(node["backbone"], "backbone", parameters, {"name"})
    _checked(backbone.get("model_args") or {}, "backbone.model_args", _MODEL_ARGS)
    _check_arguments(backbone, "backbone")
    if not isinstance(backbone["name"], str) or not re.fullmatch(
        r"[a-z0-9_]+(\.[a-z0-9_]+)?", backbone["name"]
    ):
        raise _fault("backbone.name", "the name of a timm model", backbone["name"])
    module = _checked(node["attention"], "attention", None, {"name"})
    kinds = context_modules()
    if not isinstance(module["name"], str) or module["name"] not in kinds:
        raise _fault("attention.name", f"one of {', '.join(kinds)}", module["name"])
    kind = kinds[module["name"]]
    arguments = {k: v for k, v in module.items() if k != "name"}
    _checked(arguments, "attention", set(inspect.signature(kind).parameters) - {"channels"})
    _check_arguments(arguments, "attention")
    head = _checked(node["head"], "head", _HEAD, _HEAD)
    _check_arguments(head, "head")
    try:
        return build_segmenter(
            Backbone(**backbone),
            node["num_classes"],
            partial(kind, **arguments),
            **head,
            negative_slope=node.get("negative_slope", 0.0),
        )
    except Exception as error:  # constructors have many words for an argument that does not fit
        raise CheckpointError(
            f"expected the description of a network that can be built, got one that cannot: {error}"
        ) from error


def _checked(
    node: Any, where: str, known: Collection[str] | None, required: Collection[str] = ()
) -> dict[str, Any]:
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise _fault(where, "a mapping of names to values", node)
    for key in node:
        if known is not None and key not in known:
            raise _fault(f"{where}.{key}", f"only {', '.join(sorted(known))} in {where}", node[key])
    for key in required:
        if key not in node:
            raise _fault(f"{where}.{key}", "a value", None)
    return node


def _check_arguments(node: dict[str, Any], where: str) -> None:
    for key, value in node.items():
        if not (key == "model_args" and isinstance(value, dict)) and not _is_plain(value):
            wanted = f"a flag, short text, a number of at most {_LARGEST} or a short list of them"
            raise _fault(f"{where}.{key}", wanted, value)
        if key == "model_args" and value is not None:
            _check_arguments(value, f"{where}.{key}")


def _is_plain(value: Any, depth: int = 2) -> bool:
    if isinstance(value, (list, tuple)):
        return depth > 0 and len(value) <= _LONGEST and all(_is_plain(v, depth - 1) for v in value)
    if isinstance(value, str):
        return len(value) <= 100
    if isinstance(value, (int, float)):
        return abs(value) <= _LARGEST  # false for NaN too
    return value is None


def _check_facts(node: dict[str, Any]) -> None:
    """Check what is not needed to build the network but tells whose and of what it is."""
    count = node["num_classes"]
    if type(count) is not int or not 1 <= count <= _LARGEST:
        raise _fault("num_classes", f"an integer from 1 to {_LARGEST}", count)
    slope = node.get("negative_slope", 0.0)
    if not isinstance(slope, (int, float)) or not 0 <= slope < 1:
        raise _fault("negative_slope", "a number from 0 to 1", slope)
    for key, wanted in (("data", "the name of a data set"), ("protocol", "the name of a protocol")):
        name = node.get(key)
        if name is not None and not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)):
            raise _fault(key, wanted, name)
    names, palette = node.get("classes"), node.get("palette")
    if names is not None and not is_names(names, count):
        raise _fault("classes", f"{count} names", names)
    if palette is not None and not is_palette(palette, count):
        raise _fault("palette", f"{count} colours of three integers from 0 to 255", palette)


def is_names(value: Any, count: int) -> bool:
    """Tell whether `value` is a list of `count` names of classes."""
    is_list = isinstance(value, (list, tuple)) and len(value) == count
    return is_list and all(isinstance(name, str) and len(name) <= 200 for name in value)


def is_palette(value: Any, count: int) -> bool:
    """Tell whether `value` is a list of `count` colours, each three integers from 0 to 255."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return False
    return all(
        isinstance(colour, (list, tuple))
        and len(colour) == 3
        and all(type(c) is int and 0 <= c <= 255 for c in colour)
        for colour in value
    )


def _fault(where: str, wanted: str, value: Any) -> CheckpointError:
    return CheckpointError(f"expected {wanted}, got {where}={reprlib.repr(value)}")
