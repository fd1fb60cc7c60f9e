"""The published ISANet checkpoints of mmsegmentation and openseg: what such a file tells, and under which names.

Sources: mmsegmentation 1.2.2 (ISAHead, FCNHead, ResNetV1c), openseg.pytorch (ISANet, deepbase_resnet, InPlaceABN).
Nothing here reads a file or builds a network.
"""

import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from isaseg.checkpoints.description import is_names, is_palette
from isaseg.checkpoints.published_tensors import MMSEG_NAMES, openseg_names, openseg_values, renamed
from isaseg.errors import CheckpointError

_DEPTHS = {6: 50, 23: 101}  # by the number of blocks in the third stage
_GROUP_SIZE = [8, 8]  # the only published value: mmseg's down_factor, openseg's factors
_ABN_SLOPE = 0.01

# Data sets by their name in the other code base: our name, and the number of classes that it has there.
_MMSEG_DATA = {
    "CityscapesDataset": ("cityscapes", 19),
    "ADE20KDataset": ("ade20k", 150),
    "PascalVOCDataset": ("pascal_voc", 21),
    "PascalContextDataset": ("pascal_context_60", 60),
    "PascalContextDataset59": ("pascal_context", 59),
    "LIPDataset": ("lip", 20),
}
_OPENSEG_DATA = {"cityscapes": 19, "ade20k": 150, "lip": 20, "pascal_context": 59, "coco_stuff": 171}


class Published(NamedTuple):
    """What a file holds, ready to be compared with our network.

    Attributes:
        kind: Whose file it is: "mmseg", "openseg", or "isaseg" for one of ours.
        description: What `build_described` takes.
        weights: Tensors under the file's own names, with the values that our layers need.
        key: Gives the file's name for one of ours.
    """

    kind: str
    description: dict[str, Any]
    weights: dict[str, Tensor]
    key: Callable[[str], str]


def recognise(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Published:
    """Tell by the names of its tensors whose network a file holds, and describe it.

    Args:
        checkpoint: What the file holds; `meta` (mmseg) or `config_dict` (openseg) is read where it is there.
        weights: The tensors of the network.

    Raises:
        CheckpointError: If it is no ISANet of a published layout.
    """
    if weights and all(name.startswith("module.") for name in weights):  # saved from DataParallel
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    parts = {name.split(".")[0] for name in weights}
    if "decode_head" in parts:
        return _mmseg(_node(checkpoint, "meta"), weights)
    if "isa_head" in parts:
        return _openseg(_node(checkpoint, "config_dict"), weights)
    raise CheckpointError(
        "expected a checkpoint of isaseg, or an ISANet of mmsegmentation (decode_head.global_relation...) or of openseg "
        f"(isa_head...), got {_listed(parts)}; no other network is supported"
    )


# ---------------------------------------------------------------- mmsegmentation


def _mmseg(meta: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Published:
    head = "decode_head.global_relation"
    if not any(name.startswith(f"{head}.") for name in weights):
        found = {name.split(".")[1] for name in weights if name.startswith("decode_head.")}
        raise CheckpointError(
            f"expected mmsegmentation's ISAHead, got a decode_head of {_listed(found)}; no other is supported"
        )
    is_deep = any(name.startswith("backbone.stem.") for name in weights)
    pools = "backbone.layer1.0.downsample.2.weight" in weights  # in its shortcuts: ResNetV1d
    _check_backbone(weights, "ResNetV1c", is_deep and not pools)
    text = _mmseg_text(meta)
    count = _size(weights, 1, "decode_head.conv_seg.weight", "decode_head.conv_seg.bias")
    data = _MMSEG_DATA.get(_said(text, r"type='(\w+Dataset\w*)'") or "")
    facts = _node(meta, "dataset_meta") or meta  # of mmengine, or of mmcv
    names, palette = (facts.get(key, facts.get(key.upper())) for key in ("classes", "palette"))
    factor = _said(text, r"down_factor=[\(\[](\d+,\d+)")
    description = {
        "backbone": {"name": f"resnet{_depth(weights)}c", **_DILATED, **_mmseg_input(text)},
        "attention": {
            "name": "InterlacedSparseAttention",
            "key_channels": _size(weights, 256, f"{head}.key_project.0.conv.weight"),
            "group_size": [int(p) for p in factor.split(",")] if factor else _GROUP_SIZE,
            "value_bias": any(name.endswith("value_project.bias") for name in weights),
        },
        "head": {
            "channels": _size(weights, 512, "decode_head.in_conv.conv.weight"),
            "dropout": 0.1,
            "aux_channels": _aux_channels(weights, "auxiliary_head", "convs.0.conv.weight"),
            "align_corners": _said(text.partition("decode_head=dict(")[2], r"align_corners=(\w+)") == "True",
        },
        "num_classes": count,
        "negative_slope": 0.0,
        "data": data[0] if data is not None and data[1] == count else None,
        "protocol": "mmseg",
        "classes": list(names) if is_names(names, count) else None,
        "palette": [list(colour) for colour in palette] if is_palette(palette, count) else None,
    }
    return Published("mmseg", description, dict(weights), partial(renamed, names=MMSEG_NAMES))


def _mmseg_text(meta: Mapping[str, Any]) -> str:
    """Return the configuration, which mmcv (`config`) and mmengine (`cfg`) keep as text, without white space.

    Raises:
        CheckpointError: If it tells of another network with tensors of the same shapes.
    """
    text = next((meta[k] for k in ("config", "cfg") if isinstance(meta.get(k), str)), "")
    text = re.sub(r"\s+", "", text[: 2**16])  # theirs have some 10 KB
    for key, value, wanted in (
        ("dilations", r"[\(\[]([\d,]*?),?[\)\]]", "1,1,2,4"),
        ("style", r"'(\w+)'", "pytorch"),
        ("contract_dilation", r"(\w+)", "True"),
    ):
        found = _said(text, rf"\b{key}={value}")
        if found is not None and found != wanted:
            raise CheckpointError(
                f"expected mmsegmentation's ResNetV1c with {key}={wanted}, got {key}={found[:40]}; "
                "only the published layout, dilated to stride 8, is supported"
            )
    return text


def _mmseg_input(text: str) -> dict[str, Any]:
    """Return the normalisation; that of all its configurations, ImageNet's, where the file tells none."""
    found: dict[str, Any] = {"bgr": _said(text, r"to_rgb=(\w+)") == "False"}
    for key, default in (("mean", "123.675,116.28,103.53"), ("std", "58.395,57.12,57.375")):
        values = _said(text, rf"\b{key}=[\(\[]([-\d.,]+?),?[\)\]]") or default
        try:
            found[key] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise CheckpointError(f"expected {key} as three numbers, got {reprlib.repr(values)}") from error
    return found


# ---------------------------------------------------------------- openseg


def _openseg(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Published:
    _check_backbone(weights, "deepbase_resnet", any(n.startswith("backbone.resinit.conv2.") for n in weights))
    if any(name.startswith(("isa_head.2.stages.1.", "isa_head.2.up_conv.")) for name in weights):
        raise _several("isa_head.2.stages.1")
    is_torch = any(name.startswith("isa_head.1.0.") for name in weights)
    count = _size(weights, 1, "cls_head.weight", "cls_head.bias")
    data = config.get("dataset")
    description = {
        "backbone": {
            "name": f"resnet{_depth(weights)}s",
            **_DILATED,
            "ceil_pool": True,
            **_openseg_input(config),
        },
        "attention": {
            "name": "InterlacedSparseAttention",
            "key_channels": _size(weights, 256, "isa_head.2.stages.0.long_range_sa.f_key.0.weight"),
            "group_size": _openseg_factor(_node(config, "network")),
            "value_bias": any(name.endswith("f_value.bias") for name in weights),
        },
        "head": {
            "channels": _size(weights, 512, "isa_head.0.weight"),
            "dropout": 0.05,
            "aux_channels": _aux_channels(weights, "dsn_head", "0.weight"),
            "align_corners": True,
        },
        "num_classes": count,
        "negative_slope": 0.0 if is_torch else _ABN_SLOPE,
        "data": data if isinstance(data, str) and _OPENSEG_DATA.get(data) == count else None,
        "protocol": "openseg",
        "classes": None,
        "palette": None,
    }
    names = openseg_names(".0" if is_torch else "")
    return Published("openseg", description, openseg_values(weights, is_torch), partial(renamed, names=names))


def _openseg_factor(network: Mapping[str, Any]) -> list[int]:
    """Return the group size; raise for a network that is not the published one."""
    name, grid, factors = (network.get(key) for key in ("backbone", "multi_grid", "factors"))
    if name is not None and not (
        isinstance(name, str) and re.fullmatch(r"deepbase_resnet\d+_dilated8", name)
    ):
        raise CheckpointError(
            f"expected network.backbone of deepbase_resnet50_dilated8 or deepbase_resnet101_dilated8, got "
            f"{reprlib.repr(name)}; no other is supported"
        )
    if grid is not None and not (_are_numbers(grid, 3) and set(grid) == {1}):
        raise CheckpointError(
            f"expected network.multi_grid of [1, 1, 1] or none, got {reprlib.repr(grid)}; no other is supported"
        )
    if factors is None:
        return _GROUP_SIZE
    if isinstance(factors, (list, tuple)) and len(factors) > 1:
        raise _several(f"network.factors={reprlib.repr(factors)}")
    if not isinstance(factors, (list, tuple)) or len(factors) != 1 or not _are_numbers(factors[0], 2):
        raise CheckpointError(f"expected network.factors as [[P_h, P_w]], got {reprlib.repr(factors)}")
    return list(factors[0])


def _several(what: str) -> CheckpointError:
    return CheckpointError(
        f"expected one ISA block, got {what}; several side by side, with openseg's up_conv, were never published for "
        "ISANet and are not supported"
    )


def _openseg_input(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the image is normalised, in units of 0 to 255: openseg divides by `div_value` first."""
    normalise = _node(config, "normalize")
    mode, scale = _node(config, "data").get("input_mode", "BGR"), normalise.get("div_value", 1.0)
    mean = normalise.get("mean", [102.9801, 115.9465, 122.7717])  # of its ResNet configurations
    std = normalise.get("std", [1.0, 1.0, 1.0])
    if not isinstance(mode, str) or mode not in ("BGR", "RGB"):
        raise CheckpointError(f"expected data.input_mode of BGR or RGB, got {reprlib.repr(mode)}")
    if not _are_numbers([scale], 1) or not _are_numbers(mean, 3) or not _are_numbers(std, 3):
        raise CheckpointError(
            "expected normalize with div_value and three numbers each for mean and std, got "
            f"{reprlib.repr(dict(normalise))}"
        )
    return {"bgr": mode == "BGR", "mean": [m * scale for m in mean], "std": [s * scale for s in std]}


# ---------------------------------------------------------------- what a file tells

_DILATED = {"output_stride": 8, "out_indices": [-2, -1]}


def _check_backbone(weights: Mapping[str, Tensor], wanted: str, is_right: bool) -> None:
    if not is_right:
        found = {".".join(n.split(".")[1:3]) for n in weights if n.startswith("backbone.")}
        raise CheckpointError(
            f"expected a {wanted} of 50 or 101 layers, got a backbone of {_listed(found)}; no other is supported"
        )


def _depth(weights: Mapping[str, Tensor]) -> int:
    blocks = {name.split(".")[2] for name in weights if name.startswith("backbone.layer3.")}
    if len(blocks) not in _DEPTHS:
        raise CheckpointError(
            f"expected a ResNet of 50 or 101 layers, with 6 or 23 blocks in layer3, got {len(blocks)} blocks"
        )
    return _DEPTHS[len(blocks)]


def _size(weights: Mapping[str, Tensor], default: int, *names: str) -> int:
    """Return the outputs of the first of these tensors that is there; what is missing is told later, all of it."""
    return next((weights[n].shape[0] for n in names if n in weights and weights[n].ndim), default)


def _aux_channels(weights: Mapping[str, Tensor], part: str, name: str) -> int | None:
    if not any(n.startswith(f"{part}.") for n in weights):
        return None
    return _size(weights, 256, f"{part}.{name}")


def _node(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _said(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def _are_numbers(value: Any, count: int) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) == count
    return is_list and all(type(v) in (int, float) and abs(v) <= 4096 for v in value)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
