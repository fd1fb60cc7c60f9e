"""The description of a network in a checkpoint: plain data, perhaps from a stranger, checked before it is built."""

import inspect
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isaseg.errors import CheckpointError, ConfigError
from isaseg.models import context_modules
from isaseg.models.backbone import Backbone
from isaseg.trust import import_trusted, is_trusted

_LARGEST = 4096  # of any number in a description: no published width, window or class count comes near
_LONGEST = 64  # of any list of arguments
# a description must not name further files, and only training freezes parts
NOT_DESCRIBED = {"pretrained", "weights", "weights_sha256", "freeze", "norm_eval"}
# of timm's models: sizes, rates, flags and names of layers, nothing that reads a file
_MODEL_ARGS = {"feature_location", "img_size", "strict_img_size", "dynamic_img_size", "dynamic_img_pad"}
_MODEL_ARGS |= {"patch_size", "window_size", "always_partition", "init_values", "act_layer", "norm_layer"}
_MODEL_ARGS |= {f"{part}drop_rate" for part in ("", "pos_", "proj_", "attn_", "patch_")}
_MODEL_ARGS |= {"drop_path_rate", "drop_block_rate", "feature_cls"}
_HEAD = {"channels", "dropout", "aux_channels", "align_corners"}
_HEAD_OPTIONAL = {"norm"}  # in a head that was described before there was a choice
_REQUIRED = {"backbone", "attention", "head", "num_classes"}
_OPTIONAL = {"negative_slope", "data", "protocol", "classes", "palette"}


def described_parts(description: Any) -> tuple[Callable[[], Backbone], dict[str, Any]]:
    """Return what builds the backbone of a description, perhaps a stranger's, and the rest for `build_segmenter`.

    It can name only `Backbone` without weights, the context modules of `isaseg.models`, and modules of packages that the
    user trusts, with bounded numbers, short strings, flags and short lists as arguments. Nothing is fetched, no other
    file is read, and a package without trust is not imported.

    Args:
        description: Plain data: `backbone`, arguments of `Backbone`; `attention`, `name` and arguments of a context
            module; either with `_target_` and the arguments of a class outside this project instead; `head`, with
            `channels`, `dropout`, `aux_channels`, `align_corners` and optionally `norm`; `num_classes`; and optionally
            `negative_slope`, `data` (an option of conf/data), `protocol` (one of conf/protocol), `classes` (names) and
            `palette` (RGB of each).

    Raises:
        CheckpointError: If it holds anything else.
    """
    _check_names(description, "the description", _REQUIRED | _OPTIONAL, _REQUIRED)
    _check_facts(description)
    head = description["head"]
    _check_arguments(head, "head", _HEAD | _HEAD_OPTIONAL, _HEAD)
    backbone = _backbone(description["backbone"])
    return backbone, {
        "num_classes": description["num_classes"],
        "attention": _attention(description["attention"]),
        **head,
        "negative_slope": description.get("negative_slope", 0.0),
    }


def differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], key: Callable[[str], str]) -> str:
    """List what is missing, unexpected or of another shape or type, under the file's names; "" if nothing is.

    Args:
        wanted: The tensors of the network.
        found: The tensors of the file, under its names.
        key: Returns the file's name for one of the network's.
    """
    names = {key(name): tensor for name, tensor in wanted.items()}
    faults = {
        "missing": [name for name in names if name not in found],
        "unexpected": [name for name in found if name not in names],
        "mismatched (file -> model)": [
            f"{name} {tuple(found[name].shape)} -> {tuple(tensor.shape)}"
            for name, tensor in names.items()
            if name in found and found[name].shape != tensor.shape
        ],
        "mismatched type (file -> model)": [
            f"{name} {found[name].dtype} -> {tensor.dtype}"
            for name, tensor in names.items()
            if name in found and found[name].is_floating_point() != tensor.is_floating_point()
        ],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)


def part_name(part: Any) -> Any:
    """Return how a description names its backbone or context module."""
    return part.get("_target_") or part.get("name")


def other_name(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, str, str] | None:
    """Return index and both names of the first class on which two lists of equal length differ; None if they agree.

    Case, punctuation and synonyms after a comma are ignored.
    """
    pairs = enumerate(zip(theirs, ours, strict=True))
    return next(((number, a, b) for number, (a, b) in pairs if _letters(a) != _letters(b)), None)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.split(",")[0].split(";")[0].lower())


def _backbone(node: Any) -> Callable[..., Any]:
    if isinstance(node, dict) and "_target_" in node:
        return _own_part(node, "backbone")
    _check_arguments(node, "backbone", set(inspect.signature(Backbone).parameters) - NOT_DESCRIBED, {"name"})
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)?", str(node["name"])):
        raise _fault("backbone.name", "the name of a timm model", node["name"])
    return partial(Backbone, **node)


def _attention(node: Any) -> Callable[..., nn.Module]:
    if isinstance(node, dict) and "_target_" in node:
        return _own_part(node, "attention", given=1)
    known = context_modules()
    name = node.get("name") if isinstance(node, dict) else None
    kind = known.get(name) if isinstance(name, str) else None
    if kind is None:
        raise _fault("attention.name", f"one of {', '.join(known)}", name)
    parameters = set(inspect.signature(kind).parameters) - {"channels"}
    _check_arguments(node, "attention", parameters | {"name"})
    return partial(kind, **{key: value for key, value in node.items() if key != "name"})


def _own_part(node: dict[str, Any], where: str, given: int = 0) -> Callable[..., nn.Module]:
    """Return what builds a module of a package that the user trusts; `given` of its arguments are passed by position."""
    target, key = node["_target_"], f"{where}._target_"
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    _check_arguments(arguments, where, arguments)  # before anything is imported
    if not isinstance(target, str) or not re.fullmatch(r"[a-zA-Z_]\w*(\.[a-zA-Z_]\w*){1,9}", target[:200]):
        raise _fault(key, "the dotted name of a class", target)
    try:
        kind = import_trusted(target)
    except ConfigError as error:
        raise CheckpointError(f"{key}: {error}") from error
    is_module = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not is_module or not is_trusted(f"{kind.__module__}.{kind.__qualname__}"):
        raise _fault(key, "a torch.nn.Module that is defined in a package that you trust", target)
    parameters = list(inspect.signature(kind).parameters.values())[given:]
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        _check_names(arguments, where, [p.name for p in parameters])

    def build(*inputs: Any) -> nn.Module:
        with torch.device("cpu"):  # a constructor that looks at values cannot be run on meta
            module: nn.Module = kind(*inputs, **arguments)
        return module

    return build


def _check_names(node: Any, where: str, known: Collection[str], required: Collection[str] = ()) -> None:
    if not isinstance(node, dict) or not all(isinstance(key, str) for key in node):
        raise _fault(where, "a mapping of names to values", node)
    for key in node:
        if key not in known:
            raise _fault(f"{where}.{key}", f"only {', '.join(sorted(known))} in {where}", node[key])
    for key in required:
        if key not in node:
            raise _fault(f"{where}.{key}", "a value", None)


def _check_arguments(node: Any, where: str, known: Collection[str], required: Collection[str] = ()) -> None:
    _check_names(node, where, known, required)
    for key, value in node.items():
        if key == "model_args" and value is not None:
            _check_arguments(value, f"{where}.{key}", _MODEL_ARGS)
        elif not _is_plain(value):
            wanted = f"a flag, a short string, a number of at most {_LARGEST} or a short list of these"
            raise _fault(f"{where}.{key}", wanted, value)


def _is_plain(value: Any, depth: int = 2) -> bool:
    if isinstance(value, (list, tuple)):
        return depth > 0 and len(value) <= _LONGEST and all(_is_plain(v, depth - 1) for v in value)
    if isinstance(value, str):
        return len(value) <= 100
    if isinstance(value, (int, float)):
        return abs(value) <= _LARGEST  # false for NaN too
    return value is None


def _check_facts(node: dict[str, Any]) -> None:
    """Check the values that are not arguments of a part of the network."""
    count = node["num_classes"]
    if type(count) is not int or not 1 <= count <= _LARGEST:
        raise _fault("num_classes", f"an integer from 1 to {_LARGEST}", count)
    checks: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
        ("negative_slope", "a number from 0 to 1", lambda v: isinstance(v, (int, float)) and 0 <= v < 1),
        ("data", "a name of at most 64 letters, digits, _ and - for the data set", _is_option),
        ("protocol", "the name of a protocol", _is_option),
        ("classes", f"{count} names", lambda v: is_names(v, count)),
        ("palette", f"{count} colours of three integers from 0 to 255", lambda v: is_palette(v, count)),
    )
    for key, wanted, holds in checks:
        value = node.get(key)
        if value is not None and not holds(value):
            raise _fault(key, wanted, value)


def _is_option(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value))


def is_names(value: Any, count: int) -> bool:
    """Return whether `value` is a list of `count` names of classes."""
    return _is_list(value, count) and all(isinstance(name, str) and len(name) <= 200 for name in value)


def is_palette(value: Any, count: int) -> bool:
    """Return whether `value` is a list of `count` colours, each three integers from 0 to 255."""
    if not _is_list(value, count):
        return False
    return all(_is_list(c, 3) and all(type(v) is int and 0 <= v <= 255 for v in c) for c in value)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length


def _fault(where: str, wanted: str, value: Any) -> CheckpointError:
    return CheckpointError(f"expected {wanted}, got {where}={reprlib.repr(value)}")
