"""Interlaced sparse and dense self-attention over maps: the science of this project.

Pure PyTorch. Each module maps a feature map (B, C, H, W) to (B, `out_channels`, H, W) for any H and W, adds no outer
residual, and reports its analytic `cost(height, width)`, so that one can replace another; so do criss_cross.py and
context.py.

Legend: B batch, C channels, H W map, D key channels, V value channels, G groups, L positions in a group;
`group_size` P = (P_h, P_w) is the number of long-range groups and the short-range window, per axis;
Q = (ceil(H / P_h), ceil(W / P_w)).
ISA: arXiv 1907.12273, section 3; module details: openseg.pytorch, mmsegmentation.

What runs is the same function as the definition, up to rounding, in another order: regrouping commutes with projecting,
and since the weights of a position sum to 1, the output projection may be applied to the values. Under
`attend.by_definition` the definition itself runs, which tests compare with.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from isaseg.models.attend import attend, is_by_definition
from isaseg.models.block import AttentionBlock, Core, Cost, Pointwise, total, width
from isaseg.models.recompute import recomputed
from isaseg.models.regroup import (
    Layout,
    deinterlace,
    for_any_size,
    grid,
    interlace,
    merge_windows,
    pad_to_multiple,
    padded,
    regroup,
    split_windows,
)

__all__ = [
    "AttentionBlock",
    "Core",
    "Cost",
    "InterlacedSparseAttention",
    "ParallelInterlacedSparseAttention",
    "Pointwise",
    "SelfAttention2d",
    "deinterlace",
    "dense",
    "interlace",
    "long_range",
    "merge_windows",
    "pad_to_multiple",
    "short_range",
    "split_windows",
]

Order = Literal["long_short", "short_long", "long", "short"]
Size = tuple[int, int]

_STAGES: dict[str, tuple[Layout, ...]] = {
    "long_short": ("long_range", "short_range"),
    "short_long": ("short_range", "long_range"),
    "long": ("long_range",),
    "short": ("short_range",),
}


# ---------------------------------------------------------------- attention over maps


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

    A map that is not a multiple of `group_size` is padded; padding is never attended to.
    Shapes as in `dense`. `fits` promises that the maps are multiples, which an ONNX graph cannot ask.
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
        # A group that holds nothing but padding is cropped away below; it only must not become NaN.
        mask = mask | ~mask.flatten(1).any(1)[:, None, None, None]
    q, k, v = (split(t, group_size) for t in (q, k, v))
    context = merge(dense(q, k, v, mask))
    return context[..., top : top + height, left : left + width]


# ---------------------------------------------------------------- modules


class InterlacedSparseAttention(nn.Module):
    """Interlaced sparse self-attention: a long-range stage, then a short-range one (arXiv 1907.12273).

    The long-range stage attends among positions `group_size` apart, the short-range stage inside windows of
    `group_size`; after both, every position has heard from every other (but for `mask_padding`, where a
    window cut by the border lacks some of the lattices). The stages share no weights. With `group_size`
    (1, 1) the long-range stage is dense attention, with (H, W) the short-range stage is.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2 (256 for the published 512).
        value_channels: V; default C.
        group_size: (P_h, P_w), the published value is (8, 8).
        order: Which stages, in which order: `long_short` (published), `short_long`, `long` or `short`.
        mask_padding: What to do where H or W is not a multiple of `group_size`. False pads the input with
            zeros, projects them and attends to them, as every published checkpoint was trained. True pads
            after the projection and masks, so that no result depends on padding.
        value_bias: Bias of the value projection: True in mmsegmentation and PaddleSeg, False in openseg.
        depth: How many times the stages follow each other, each time with weights of their own; 1 as published. The
            first are named `long_range` and `short_range`, the second `long_range_2`, and so on.

    Raises:
        ValueError: If `group_size` is not two positive integers, `order` is unknown or `depth` is below 1.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        group_size: Sequence[int] = (8, 8),
        order: Order = "long_short",
        mask_padding: bool = False,
        value_bias: bool = True,
        depth: int = 1,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if (
            isinstance(group_size, int)
            or len(group_size) != 2
            or any(int(p) != p or p < 1 for p in group_size)
        ):
            raise ValueError(f"expected group_size as two positive integers [P_h, P_w], got {group_size=}")
        if order not in _STAGES:
            raise ValueError(f"expected order to be one of {', '.join(_STAGES)}, got {order=}")
        if int(depth) != depth or depth < 1:
            raise ValueError(f"expected depth as an integer of at least 1, got {depth=}")
        self.out_channels = channels
        self.group_size: Size = (int(group_size[0]), int(group_size[1]))
        self.order = order
        self.mask_padding = mask_padding
        self.depth = int(depth)
        self.recompute = recompute
        for name, _ in self._stages():
            keys, values = width(key_channels, channels // 2), width(value_channels, channels)
            block = AttentionBlock(channels, keys, values, value_bias=value_bias)
            self.add_module(name, block)

    def _stages(self) -> list[tuple[str, Layout]]:
        """Return name and kind of each stage, in the order in which they run."""
        kinds = _STAGES[self.order]
        return [(k if n == 1 else f"{k}_{n}", k) for n in range(1, self.depth + 1) for k in kinds]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), any H and W."""
        height, width = x.shape[-2:]
        if is_by_definition() or for_any_size():
            return self._define(x)
        if self.mask_padding and (height % self.group_size[0] or width % self.group_size[1]):
            return self._define(x)
        x, (top, left) = pad_to_multiple(x, self.group_size)
        cells = grid(x.shape[0], (x.shape[2], x.shape[3]), self.group_size)
        stages = [(cast(AttentionBlock, self.get_submodule(name)), kind) for name, kind in self._stages()]
        before: Layout = "map"
        for block, kind in stages:
            x = regroup(x, cells, before, kind)
            x = recomputed(block, x, dense) if self.recompute and self.training else block(x, dense)
            before = kind
        x = regroup(x, cells, before, "map")
        return x[..., top : top + height, left : left + width]

    def _define(self, x: Tensor) -> Tensor:
        """Compute `forward` on the map as it is: project, regroup query, key and value, attend, put together."""
        height, width = x.shape[-2:]
        top = left = 0
        if not self.mask_padding:
            x, (top, left) = pad_to_multiple(x, self.group_size)
        for name, kind in self._stages():
            core = long_range if kind == "long_range" else short_range
            core = partial(core, group_size=self.group_size, fits=not self.mask_padding)
            block = self.get_submodule(name)
            x = recomputed(block, x, core) if self.recompute and self.training else block(x, core)
        return x[..., top : top + height, left : left + width]

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map; scores N(P + Q) times depth, for the padded N = P Q positions."""
        window = self.group_size[0] * self.group_size[1]
        lattice = -(-height // self.group_size[0]) * -(-width // self.group_size[1])
        padded = window * lattice
        positions = height * width if self.mask_padding else padded
        per_query = {"long_range": lattice, "short_range": window}
        stages = ((self.get_submodule(name), padded * per_query[kind]) for name, kind in self._stages())
        return total([stage.cost_of(positions, scores) for stage, scores in stages])  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Show what defines the operation."""
        shown = f"group_size={self.group_size}, order={self.order}, mask_padding={self.mask_padding}"
        return shown if self.depth == 1 else f"{shown}, depth={self.depth}"


class ParallelInterlacedSparseAttention(nn.Module):
    """Several ISA blocks of different group sizes side by side, concatenated (openseg's list of `factors`).

    Args:
        channels: C of the input; the output has len(group_sizes) * C.
        group_sizes: One (P_h, P_w) for each block.
        key_channels: This and what follows as in `InterlacedSparseAttention`.
        value_channels: See there.
        order: See there.
        mask_padding: See there.
        value_bias: See there.
    """

    def __init__(
        self,
        channels: int,
        group_sizes: Sequence[Sequence[int]] = ((8, 8), (4, 4)),
        key_channels: int | None = None,
        value_channels: int | None = None,
        order: Order = "long_short",
        mask_padding: bool = False,
        value_bias: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels = len(group_sizes) * channels
        self.blocks = nn.ModuleList(
            InterlacedSparseAttention(
                channels, key_channels, value_channels, size, order, mask_padding, value_bias
            )
            for size in group_sizes
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, len(group_sizes) * C, H, W) for `x` (B, C, H, W)."""
        return torch.cat([block(x) for block in self.blocks], dim=1)

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map: the sum over the blocks."""
        return total([block.cost(height, width) for block in self.blocks])  # type: ignore[operator]


class SelfAttention2d(nn.Module):
    """Dense self-attention in the block of an ISA stage, so that a comparison changes the pattern alone.

    Computes softmax(q k^T / sqrt(D)) v over all H * W positions. openseg's BaseOC differs outside the
    pattern: values of 256 channels and an output projection without batch norm.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        recompute: As in `InterlacedSparseAttention`.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.recompute = recompute
        self.block = AttentionBlock(
            channels, width(key_channels, channels // 2), width(value_channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        out: Tensor = (
            recomputed(self.block, x, dense) if self.recompute and self.training else self.block(x, dense)
        )
        return out

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map; N^2 scores."""
        return self.block.cost_of(height * width, (height * width) ** 2)
