"""The core of attention, between the projections: among the tokens of a group, and over maps in two kinds of groups.

Each core maps query (B, D, H, W), key (B, D, H, W) and value (B, V, H, W) to a context (B, V, H, W).
Legend: G groups, L tokens in a group, D key channels, V value channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from isaseg.models.attention_kernels import attend
from isaseg.models.multi_head import offset_bias
from isaseg.models.regroup import (
    Kind,
    Size,
    compiles,
    crop,
    deinterlace,
    interlace,
    lattice,
    merge_windows,
    pad_to_multiple,
    regroup,
    split_windows,
    viewed,
)

Core = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    heads: int = 1,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Let every position of a map attend to every other: softmax(q k^T / sqrt(D) + bias) v.

    Args:
        q: (B, D, H, W).
        k: (B, D, H, W).
        v: (B, V, H, W).
        mask: Positions that may be attended to, bool (B, 1, H, W); None means all.
        heads: How many slices of the channels attend each on its own.
        position_bias: What each offset adds to a score, as in `offset_bias`; None means nothing.

    Returns:
        (B, V, H, W).
    """
    number, height, width = q.shape[0], q.shape[2], q.shape[3]
    q_BLD, k_BLD, v_BLV = (
        viewed(t.permute(0, 2, 3, 1), number, height * width, t.shape[1]) for t in (q, k, v)
    )
    mask_B1L = None if mask is None else viewed(mask.permute(0, 2, 3, 1), number, 1, height * width)
    bias = None if position_bias is None else offset_bias(position_bias, height, width)
    context = attend(q_BLD, k_BLD, v_BLV, (q.shape[1] / heads) ** -0.5, mask_B1L, heads=heads, bias=bias)
    return viewed(context, number, height, width, v.shape[1]).permute(0, 3, 1, 2)


def grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group_size: Size,
    kind: Kind,
    *,
    fits: bool = False,
    heads: int = 1,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Attend among the positions of a group. Shapes as in `dense`.

    A map that is not a multiple of `group_size` is padded; padding is never attended to.

    Args:
        group_size: (P_h, P_w).
        kind: `long_range`, positions that lie a multiple of `group_size` apart, or `short_range`, each P_h x P_w window.
        fits: Promises that the map is a multiple, which cannot be tested while an ONNX graph is recorded.
        heads: As in `dense`.
        position_bias: As in `dense`, for offsets inside a group.
    """
    whole = height, width = q.shape[2], q.shape[3]
    fits = fits or not (torch.compiler.is_compiling() or height % group_size[0] or width % group_size[1])
    if fits and not compiles():
        return grouped_within(q, k, v, None, group_size, kind, heads, position_bias)
    inside = q.new_ones(q.shape[0], 1, *whole)
    if compiles():
        return grouped_by_operator(q, k, v, inside, group_size, kind, heads, position_bias)
    offset = pad_to_multiple(inside, group_size)[1]
    q, k, v, inside = (pad_to_multiple(t, group_size)[0] for t in (q, k, v, inside))
    return crop(grouped_within(q, k, v, inside, group_size, kind, heads, position_bias), offset, whole)


def grouped_within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor | None,
    group_size: Size,
    kind: Kind,
    heads: int = 1,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Attend as `grouped` does on a map that is a multiple of `group_size`, to positions `inside` alone.

    Args:
        inside: Of every position, (B, 1, H, W), above 0 if it may be attended to; None means all.
        group_size: (P_h, P_w).
        kind: As in `grouped`.
        heads: As in `dense`.
        position_bias: As in `grouped`.
    """
    size, split = (q.shape[2], q.shape[3]), interlace if kind == "long_range" else split_windows
    mask = None
    if inside is not None:
        inside_G1HW = split(inside, group_size)
        number, tokens = inside_G1HW.shape[0], inside_G1HW.shape[2] * inside_G1HW.shape[3]
        mask = viewed(_some(viewed(inside_G1HW, number, tokens) > 0), *inside_G1HW.shape)
    q, k, v = (split(t, group_size) for t in (q, k, v))
    context = dense(q, k, v, mask, heads, position_bias)
    return deinterlace(context, group_size) if kind == "long_range" else merge_windows(context, size)


def grouped_by_operator(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inside: Tensor,
    group_size: Size,
    kind: Kind,
    heads: int = 1,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Compute `grouped_within` for a map of any size by the operator of torch.compile: see `regroup`."""
    batch, size = q.shape[0], q.shape[2:]
    q, k, v, inside = (
        regroup(t, batch, size, group_size, "map", kind) for t in (q, k, v, inside)
    )  # (G, L, C)
    mask_G1L = _some(inside.transpose(1, 2) > 0)
    shape = lattice(size, group_size) if kind == "long_range" else group_size
    bias = None if position_bias is None else offset_bias(position_bias, *shape)
    context = attend(q, k, v, (q.shape[2] / heads) ** -0.5, mask_G1L, few=True, heads=heads, bias=bias)
    out: Tensor = regroup(context, batch, size, group_size, kind, "map")
    return out


def _some(mask: Tensor) -> Tensor:
    """Let a group (..., L) that may attend to nothing attend to all of its tokens.

    Its result is cropped away, but must not be NaN.
    """
    return mask | ~mask.any(-1, keepdim=True)
