"""Attention over maps: dense, and in the two kinds of groups of interlaced sparse self-attention. Pure PyTorch.

Each core maps query (B, D, H, W), key (B, D, H, W) and value (B, V, H, W) to a context (B, V, H, W).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from isaseg.models.attend import attend
from isaseg.models.regroup import (
    Size,
    deinterlace,
    for_any_size,
    interlace,
    merge_windows,
    pad_to_multiple,
    padded,
    split_windows,
)

Core = Callable[[Tensor, Tensor, Tensor], Tensor]


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Let every position of a map attend to every other: softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, D, H, W).
        k: (B, D, H, W).
        v: (B, V, H, W).
        mask: Positions that may be attended to, bool (B, 1, H, W); None means all.

    Returns:
        (B, V, H, W).
    """
    q_BLD, k_BLD, v_BLV = (t.flatten(2).transpose(1, 2) for t in (q, k, v))
    mask_B1L = None if mask is None else mask.flatten(2)
    context = attend(q_BLD, k_BLD, v_BLV, q.shape[1] ** -0.5, mask_B1L)
    return context.transpose(1, 2).reshape(*v.shape[:2], *q.shape[-2:])


def long_range(q: Tensor, k: Tensor, v: Tensor, group_size: Size, *, fits: bool = False) -> Tensor:
    """Attend among the positions that lie a multiple of `group_size` apart (the lattice of the query).

    A map that is not a multiple of `group_size` is padded; padding is never attended to. Shapes as in `dense`.
    `fits` promises that the map is a multiple, which cannot be asked while an ONNX graph is recorded.
    """
    return _grouped(q, k, v, group_size, interlace, partial(deinterlace, group_size=group_size), fits)


def short_range(q: Tensor, k: Tensor, v: Tensor, group_size: Size, *, fits: bool = False) -> Tensor:
    """Attend inside each P_h x P_w window. Padding is never attended to. Shapes and `fits` as in `long_range`."""
    size = (padded(q.shape[2], group_size[0]), padded(q.shape[3], group_size[1]))
    return _grouped(q, k, v, group_size, split_windows, partial(merge_windows, size=size), fits)


def _grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group_size: Size,
    split: Callable[[Tensor, Size], Tensor],
    merge: Callable[[Tensor], Tensor],
    fits: bool,
) -> Tensor:
    height, width = q.shape[-2:]
    mask, top, left = None, 0, 0
    if not fits and (for_any_size() or height % group_size[0] or width % group_size[1]):
        (q, (top, left)), (k, _), (v, _) = (pad_to_multiple(t, group_size) for t in (q, k, v))
        inside = q.new_zeros((q.shape[0], 1, *q.shape[-2:]), dtype=torch.bool)
        inside[..., top : top + height, left : left + width] = True
        mask = split(inside, group_size)
        # Groups of nothing but padding are cropped away below, but must not become NaN: they attend to all of it.
        mask = mask | ~mask.flatten(1).any(1)[:, None, None, None]
    q, k, v = (split(t, group_size) for t in (q, k, v))
    context = merge(dense(q, k, v, mask))
    return context[..., top : top + height, left : left + width]
