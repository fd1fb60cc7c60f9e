"""The tensors of an ISANet: what mmsegmentation and openseg call ours, and where openseg's values differ."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

__all__ = ["MMSEG_NAMES", "openseg_names", "openseg_values", "renamed"]

_PARTS = (
    *(f"{part}.{i}" for part in ("query", "key") for i in (0, 1, 3, 4)),  # conv, norm, conv, norm
    *("value", "proj.0", "proj.1"),
)


def _names(parts: dict[str, str], blocks: dict[str, str], in_block: Collection[str]) -> dict[str, str]:
    """Return our prefixes with those of the file."""
    inner = {
        f"head.attention.{ours}.{part}": f"{theirs}.{name}"
        for ours, theirs in blocks.items()
        for part, name in zip(_PARTS, in_block, strict=True)
    }
    return {"backbone.model": "backbone", **parts, **inner}


MMSEG_NAMES = _names(
    {
        "backbone.model.conv1": "backbone.stem",
        "backbone.model.bn1": "backbone.stem.7",
        "head.reduce.0": "decode_head.in_conv.conv",
        "head.reduce.1": "decode_head.in_conv.bn",
        "head.fuse.0": "decode_head.out_conv.conv",
        "head.fuse.1": "decode_head.out_conv.bn",
        "head.classifier": "decode_head.conv_seg",
        "aux_head.reduce.0": "auxiliary_head.convs.0.conv",
        "aux_head.reduce.1": "auxiliary_head.convs.0.bn",
        "aux_head.classifier": "auxiliary_head.conv_seg",
    },
    {"long_range": "decode_head.global_relation", "short_range": "decode_head.local_relation"},
    (
        *(f"{p}_project.{i}.{m}" for p in ("query", "key") for i in (0, 1) for m in ("conv", "bn")),
        *("value_project", "output_project.conv", "output_project.bn"),
    ),
)


def openseg_names(level: str) -> dict[str, str]:
    """Return our prefixes with openseg's.

    Args:
        level: "" for InPlaceABN, which is norm and activation in one; ".0" for torchbn and torchsyncbn, where both are
            modules of their own, one level deeper in the heads.
    """
    stem = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3"}
    return _names(
        {f"backbone.model.{ours}": f"backbone.resinit.{name}" for ours, name in stem.items()}
        | {
            "backbone.model.bn1": "backbone.resinit.bn3",
            "head.reduce.0": "isa_head.0",
            "head.reduce.1": f"isa_head.1{level}",
            "head.fuse.0": "isa_head.2.conv_bn.0",
            "head.fuse.1": f"isa_head.2.conv_bn.1{level}",
            "head.classifier": "cls_head",
            "aux_head.reduce.0": "dsn_head.0",
            "aux_head.reduce.1": f"dsn_head.1{level}",
            "aux_head.classifier": "dsn_head.3",
        },
        {f"{r}_range": f"isa_head.2.stages.0.{r}_range_sa" for r in ("long", "short")},
        (
            *(f"f_{part}.{i}" for part in ("query", "key") for i in ("0", f"1{level}", "2", f"3{level}")),
            *("f_value", "W.0", f"W.1{level}"),
        ),
    )


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Replace the longest of our prefixes that `name` has."""
    ours = max((prefix for prefix in names if name.startswith(f"{prefix}.")), key=len)
    return names[ours] + name.removeprefix(ours)


def openseg_values(weights: Mapping[str, Tensor], is_torch: bool) -> dict[str, Tensor]:
    """Return the tensors of an openseg file as our layers take them; `is_torch`: its norms are torch's."""
    values = dict(weights)
    fusion = values.get("isa_head.2.conv_bn.0.weight")
    if fusion is not None and fusion.ndim == 4:  # openseg concatenates [x, context], we [context, x]
        values["isa_head.2.conv_bn.0.weight"] = torch.cat(fusion.chunk(2, dim=1)[::-1], dim=1)
    if is_torch:
        return values
    for norm in [name.removesuffix("running_mean") for name in weights if name.endswith(".running_mean")]:
        values.setdefault(f"{norm}num_batches_tracked", torch.tensor(0))  # InPlaceABN does not count them
    return values
