"""The published ISANet checkpoints of mmsegmentation and openseg: what such a file says, and under which names.

Sources: mmsegmentation 1.2.2 (ISAHead, FCNHead, ResNetV1c), openseg.pytorch (ISANet, deepbase_resnet, InPlaceABN).
Nothing here reads a file or builds a network.
"""

import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from isaseg.checkpoints.published_tensors import MMSEG_NAMES, openseg_names, openseg_values, renamed
from isaseg.errors import CheckpointError
from isaseg.models.description import is_names, is_palette

_DEPTHS = {6: 50, 23: 101}  # by the number of blocks in the third stage
_GROUP_SIZE = [
    8,
    8,
]  # mmseg's down_factor, openseg's factors, but for its ade20k/R_101_D_8_TEST.json: [8, 16]

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
        kind: Who wrote the file: "mmseg", "openseg", or "isaseg" for ours.
        description: What `build_described` takes.
        weights: Tensors under the file's own names, with the values that our layers need.
        key: Returns the file's name for one of ours.
    """

    kind: str
    description: dict[str, Any]
    weights: dict[str, Tensor]
    key: Callable[[str], str]


def recognise(checkpoint: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Published:
    """Recognise a published network by the names of its tensors, and describe it.

    Args:
        checkpoint: What the file holds; `meta` (mmseg) or `config_dict` (openseg) is read if it is there.
        weights: The tensors of the network.

    Raises:
        CheckpointError: If it is not an ISANet of a published layout.
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
    if not any(name.startswith("decode_head.global_relation.") for name in weights):
        found = {name.split(".")[1] for name in weights if name.startswith("decode_head.")}
        raise CheckpointError(
            f"expected mmsegmentation's ISAHead, got a decode_head of {_listed(found)}; no other is supported"
        )
    is_deep = any(name.startswith("backbone.stem.") for name in weights)
    pools = "backbone.layer1.0.downsample.2.weight" in weights  # in its shortcuts: ResNetV1d
    depth = _depth(weights, "ResNetV1c", is_deep and not pools)
    text = _mmseg_text(meta)
    factor = _search(text, r"down_factor=[\(\[](\d{1,4},\d{1,4})\b")
    corners = _search(text.partition("decode_head=dict(")[2], r"align_corners=(\w+)")
    key = partial(renamed, names=MMSEG_NAMES)
    description = _describe(
        weights,
        key,
        backbone={"name": f"resnet{depth}c", **_mmseg_input(text)},
        group_size=[int(p) for p in factor.split(",")] if factor else _GROUP_SIZE,
        head={"dropout": 0.1, "align_corners": corners == "True"},
        data=_MMSEG_DATA.get(_search(text, r"type='(\w+Dataset\w*)'") or ""),
        protocol="mmseg",
    )
    labels = _node(meta, "dataset_meta") or meta  # mmengine's place, or mmcv's
    names, palette = (labels.get(k, labels.get(k.upper())) for k in ("classes", "palette"))
    if is_names(names, description["num_classes"]):
        description["classes"] = list(names)
    if is_palette(palette, description["num_classes"]):
        description["palette"] = [list(colour) for colour in palette]
    return Published("mmseg", description, dict(weights), key)


def _mmseg_text(meta: Mapping[str, Any]) -> str:
    """Return the configuration, which mmcv (`config`) and mmengine (`cfg`) keep as text, without white space.

    Raises:
        CheckpointError: If it describes another network whose tensors have the same shapes.
    """
    text = next((meta[k] for k in ("config", "cfg") if isinstance(meta.get(k), str)), "")
    text = re.sub(r"\s+", "", text[: 2**16])  # theirs have some 10 KB
    for key, value, wanted in (
        ("dilations", r"[\(\[]([\d,]*?),?[\)\]]", "1,1,2,4"),
        ("style", r"'(\w+)'", "pytorch"),
        ("contract_dilation", r"(\w+)", "True"),
    ):
        found = _search(text, rf"\b{key}={value}")
        if found is not None and found != wanted:
            raise CheckpointError(
                f"expected mmsegmentation's ResNetV1c with {key}={wanted}, got {key}={found[:40]}; "
                "only the published layout, dilated to stride 8, is supported"
            )
    return text


def _mmseg_input(text: str) -> dict[str, Any]:
    """Return the normalisation: ImageNet's, as in all of mmsegmentation's configurations, if the file has none."""
    found: dict[str, Any] = {"bgr": _search(text, r"to_rgb=(\w+)") == "False"}
    for key, default in (("mean", "123.675,116.28,103.53"), ("std", "58.395,57.12,57.375")):
        values = _search(text, rf"\b{key}=[\(\[]([-\d.,]+?),?[\)\]]") or default
        try:
            found[key] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise _unsupported(f"{key} as three numbers", values) from error
    return found


# ---------------------------------------------------------------- openseg


def _openseg(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Published:
    is_deep = any(name.startswith("backbone.resinit.conv2.") for name in weights)
    depth = _depth(weights, "deepbase_resnet", is_deep)
    if any(name.startswith(("isa_head.2.stages.1.", "isa_head.2.up_conv.")) for name in weights):
        raise _unsupported("one ISA block", "isa_head.2.stages.1")
    is_torch = any(name.startswith("isa_head.1.0.") for name in weights)
    key = partial(renamed, names=openseg_names(".0" if is_torch else ""))
    data = config.get("dataset") if isinstance(config.get("dataset"), str) else ""
    description = _describe(
        weights,
        key,
        backbone={"name": f"resnet{depth}s", "ceil_pool": True, **_openseg_input(config)},
        group_size=_openseg_factor(_node(config, "network")),
        head={"dropout": 0.05, "align_corners": True, "norm": "batch" if is_torch else "inplace_abn"},
        data=(data, _OPENSEG_DATA[data]) if data in _OPENSEG_DATA else None,
        protocol="openseg",
    )
    return Published("openseg", description, openseg_values(weights, is_torch), key)


def _openseg_factor(network: Mapping[str, Any]) -> list[int]:
    """Return the group size; raise for a network other than the published one."""
    name, grid, factors = (network.get(key) for key in ("backbone", "multi_grid", "factors"))
    if name is not None and not re.fullmatch(r"deepbase_resnet\d+_dilated8", str(name)):
        raise _unsupported(
            "network.backbone of deepbase_resnet50_dilated8 or deepbase_resnet101_dilated8", name
        )
    if grid is not None and not (_are_numbers(grid, 3) and set(grid) == {1}):
        raise _unsupported("network.multi_grid of [1, 1, 1] or none", grid)
    if factors is None:
        return _GROUP_SIZE
    if not isinstance(factors, (list, tuple)) or len(factors) != 1 or not _are_numbers(factors[0], 2):
        raise _unsupported("one ISA block with network.factors as [[P_h, P_w]]", factors)
    return list(factors[0])


def _openseg_input(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how the image is normalised, in units of 0 to 255: openseg divides by `div_value` first."""
    normalise = _node(config, "normalize")
    mode, scale = _node(config, "data").get("input_mode", "BGR"), normalise.get("div_value", 1.0)
    mean = normalise.get("mean", [102.9801, 115.9465, 122.7717])  # of its ResNet configurations
    std = normalise.get("std", [1.0, 1.0, 1.0])
    if not isinstance(mode, str) or mode not in ("BGR", "RGB"):
        raise _unsupported("data.input_mode of BGR or RGB", mode)
    if not _are_numbers([scale], 1) or not _are_numbers(mean, 3) or not _are_numbers(std, 3):
        raise _unsupported("normalize with div_value and three numbers each for mean and std", normalise)
    return {"bgr": mode == "BGR", "mean": [m * scale for m in mean], "std": [s * scale for s in std]}


# ---------------------------------------------------------------- both


def _depth(weights: Mapping[str, Tensor], wanted: str, is_right: bool) -> int:
    """Return the number of layers of the ResNet; raise if it is not `wanted`."""
    if not is_right:
        found = {".".join(n.split(".")[1:3]) for n in weights if n.startswith("backbone.")}
        raise CheckpointError(
            f"expected a {wanted} of 50 or 101 layers, got a backbone of {_listed(found)}; no other is supported"
        )
    blocks = {name.split(".")[2] for name in weights if name.startswith("backbone.layer3.")}
    if len(blocks) not in _DEPTHS:
        raise CheckpointError(
            f"expected a ResNet of 50 or 101 layers, with 6 or 23 blocks in layer3, got {len(blocks)} blocks"
        )
    return _DEPTHS[len(blocks)]


def _describe(
    weights: Mapping[str, Tensor],
    key: Callable[[str], str],
    *,
    backbone: dict[str, Any],
    group_size: list[int],
    head: dict[str, Any],
    data: tuple[str, int] | None,
    protocol: str,
) -> dict[str, Any]:
    """Return the description of a network; its sizes are read off the tensors. Missing ones are reported later."""

    def outputs(name: str, default: int) -> int:
        tensor = weights.get(key(name))
        return default if tensor is None or not tensor.ndim else tensor.shape[0]

    aux = key("aux_head.classifier.weight").split(".")[0]
    has_aux = any(name.startswith(f"{aux}.") for name in weights)
    count = outputs("head.classifier.weight", outputs("head.classifier.bias", 1))
    return {
        "backbone": {**backbone, "output_stride": 8, "out_indices": [-2, -1]},
        "attention": {
            "name": "InterlacedSparseAttention",
            "key_channels": outputs("head.attention.long_range.key.0.weight", 256),
            "group_size": group_size,
            "value_bias": key("head.attention.long_range.value.bias") in weights,
        },
        "head": {
            **head,
            "channels": outputs("head.reduce.0.weight", 512),
            "aux_channels": outputs("aux_head.reduce.0.weight", 256) if has_aux else None,
        },
        "num_classes": count,
        "data": data[0] if data is not None and data[1] == count else None,
        "protocol": protocol,
        "classes": None,
        "palette": None,
    }


def _node(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _search(text: str, pattern: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def _are_numbers(value: Any, count: int) -> bool:
    is_list = isinstance(value, (list, tuple)) and len(value) == count
    return is_list and all(type(v) in (int, float) and abs(v) <= 4096 for v in value)


def _unsupported(wanted: str, value: Any) -> CheckpointError:
    return CheckpointError(f"expected {wanted}, got {reprlib.repr(value)}; no other is supported")


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
