"""Context modules: interlaced sparse, dense and criss-cross self-attention, pyramid pooling, none.

Pure PyTorch. Each module maps a feature map (B, C, H, W) to (B, `out_channels`, H, W) for any H and W,
adds no outer residual, and reports its analytic `cost(height, width)`, so that one can replace another.

Legend: B batch, C channels, H W map, D key channels, V value channels, G groups, N positions in a group;
`group_size` P = (P_h, P_w) is the number of long-range groups and the short-range window, per axis;
Q = (ceil(H / P_h), ceil(W / P_w)).
ISA: arXiv 1907.12273, section 3; module details: openseg.pytorch, mmsegmentation. More context modules: context.py.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AttentionBlock",
    "Cost",
    "CrissCrossAttention",
    "InterlacedSparseAttention",
    "NoContext",
    "ParallelInterlacedSparseAttention",
    "PlainCrissCross",
    "Pointwise",
    "PyramidPooling",
    "SelfAttention2d",
    "criss_cross",
    "deinterlace",
    "dense",
    "interlace",
    "long_range",
    "merge_windows",
    "pad_to_multiple",
    "short_range",
    "split_windows",
    "unfused",
]

Order = Literal["long_short", "short_long", "long", "short"]
Size = tuple[int, int]
Core = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B,D,H,W), k (B,D,H,W), v (B,V,H,W) -> (B,V,H,W)

_STAGES: dict[str, tuple[str, ...]] = {
    "long_short": ("long_range", "short_range"),
    "short_long": ("short_range", "long_range"),
    "long": ("long_range",),
    "short": ("short_range",),
}


class Cost(NamedTuple):
    """What one forward pass over one map (batch size 1) takes, by the definition of the module.

    Sums of products are counted as torch.utils.flop_counter counts them (it gives two for each multiply-add):
    convolutions, with the taps that lie on their zero padding, and products of matrices. Norms, activations, softmax,
    pooling and resizing are not. A fused kernel is counted as the two products that it stands for, keys as wide as they
    are: `dense` widens them with zeros for some kernels, which is no part of the definition. Under `unfused` exactly
    what is counted runs.

    Attributes:
        mult_adds: Multiply-adds of the convolutions and of the attention products together.
        attention_mult_adds: Multiply-adds of query-key and weight-value products alone.
        score_entries: Entries of all the attention maps.
    """

    mult_adds: int
    attention_mult_adds: int
    score_entries: int


# ---------------------------------------------------------------- regrouping
# Each is one copy, into channels-last memory: attention wants the channels of a token together.


def interlace(x: Tensor, group_size: Size) -> Tensor:
    """Regroup a map so that each group holds every P-th position.

    Position (i, j) joins group (i mod P_h, j mod P_w); within a group the order is row-major.

    Args:
        x: Feature map, (B, C, H, W), H and W multiples of `group_size`.
        group_size: (P_h, P_w).

    Returns:
        (B * P_h * P_w, C, H / P_h, W / P_w), the batch index slowest. `deinterlace` is the exact inverse.

    Raises:
        ValueError: If H or W is not a multiple.
    """
    x = _split_axes(x, group_size)  # (B, C, Q_h, P_h, Q_w, P_w)
    return x.permute(0, 3, 5, 2, 4, 1).flatten(0, 2).permute(0, 3, 1, 2)


def deinterlace(x: Tensor, group_size: Size) -> Tensor:
    """Undo `interlace`: (B * P_h * P_w, C, Q_h, Q_w) to (B, C, Q_h * P_h, Q_w * P_w)."""
    x = x.reshape(-1, *group_size, *x.shape[1:])  # (B, P_h, P_w, C, Q_h, Q_w)
    return x.permute(0, 4, 1, 5, 2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def split_windows(x: Tensor, group_size: Size) -> Tensor:
    """Cut a map (B, C, H, W) into its windows, (B * Q_h * Q_w, C, P_h, P_w), row-major.

    Raises:
        ValueError: If H or W is not a multiple of the window.
    """
    x = _split_axes(x, group_size)  # (B, C, Q_h, P_h, Q_w, P_w)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(0, 2).permute(0, 3, 1, 2)


def merge_windows(x: Tensor, size: Size) -> Tensor:
    """Undo `split_windows`: (B * Q_h * Q_w, C, P_h, P_w) to (B, C, H, W), where `size` = (H, W)."""
    rows, cols = size[0] // x.shape[2], size[1] // x.shape[3]
    x = x.reshape(-1, rows, cols, *x.shape[1:])  # (B, Q_h, Q_w, C, P_h, P_w)
    return x.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def pad_to_multiple(x: Tensor, group_size: Size) -> tuple[Tensor, Size]:
    """Pad a map with zeros, evenly on both sides, to a multiple of `group_size`.

    The smaller half goes to the top and left, as in openseg and mmsegmentation.

    Returns:
        The padded map (B, C, Q_h * P_h, Q_w * P_w), and the (top, left) offset of the original in it.
    """
    height, width = x.shape[-2:]
    pad_h, pad_w = _ceil(height, group_size[0]) - height, _ceil(width, group_size[1]) - width
    top, left = pad_h // 2, pad_w // 2
    if _for_any_size() or pad_h or pad_w:
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))
    return x, (top, left)


def _ceil(size: int, multiple: int) -> int:
    """Return the next multiple, in terms that torch.export can simplify where `size` is a symbol."""
    return (size + multiple - 1) // multiple * multiple


def _for_any_size() -> bool:
    """Tell whether an ONNX graph is being recorded, which serves every size: no branch may then depend on one."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def _split_axes(x: Tensor, group_size: Size) -> Tensor:
    height, width = x.shape[-2:]
    if height % group_size[0] or width % group_size[1]:
        raise ValueError(
            f"expected a map whose height and width are multiples of {group_size=}, got {height=}, {width=}; "
            "pad it first with pad_to_multiple"
        )
    rows, cols = height // group_size[0], width // group_size[1]
    return x.reshape(*x.shape[:2], rows, group_size[0], cols, group_size[1])


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
    scale = q.shape[1] ** -0.5
    narrower = v.shape[1] - q.shape[1]
    if _unfused or _is_small(q):
        return _held(q, k, v, mask, scale)
    # The kernels that never hold the score matrix want tokens whose channels lie together and keys as wide as
    # values (zeros change no product). Without either, torch silently takes the slow one that holds it.
    q_B1ND, k_B1ND, v_B1NV = (t.flatten(2).transpose(1, 2).unsqueeze(1).contiguous() for t in (q, k, v))
    if narrower > 0:
        q_B1ND, k_B1ND = F.pad(q_B1ND, (0, narrower)), F.pad(k_B1ND, (0, narrower))
    mask_B11N = None if mask is None else mask.flatten(2).unsqueeze(2)
    context = F.scaled_dot_product_attention(q_B1ND, k_B1ND, v_B1NV, attn_mask=mask_B11N, scale=scale)
    return context.squeeze(1).transpose(1, 2).reshape(*v.shape[:2], *q.shape[-2:])


_SMALL = 64  # positions up to which two batched products on a CPU are faster than the fused kernel
_unfused = False


@contextmanager
def unfused() -> Iterator[None]:
    """Let `dense`, and with it ISA, hold its scores, as code without fused kernels does; to count and to measure."""
    global _unfused
    before, _unfused = _unfused, True
    try:
        yield
    finally:
        _unfused = before


def _is_small(q: Tensor) -> bool:
    if _for_any_size():  # ONNX has no fused kernel to record
        return True
    if q.device.type != "cpu" or torch.is_autocast_enabled("cpu"):  # which would round the scores
        return False
    # a compiled or exported graph may serve other sizes too
    return not torch.compiler.is_compiling() and q.shape[2] * q.shape[3] <= _SMALL


def _held(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Compute `dense` with the scores held: for many small groups, where a fused kernel has nothing to save."""
    q_BND, k_BND, v_BNV = (t.flatten(2).transpose(1, 2) for t in (q, k, v))
    scores_BNN = (q_BND * scale) @ k_BND.transpose(1, 2)
    if mask is not None:
        scores_BNN = scores_BNN.masked_fill(~mask.flatten(2), float("-inf"))
    weights_BNN = scores_BNN.softmax(-1)
    del scores_BNN  # as large as the weights
    context = weights_BNN @ v_BNV
    return context.transpose(1, 2).reshape(*v.shape[:2], *q.shape[-2:])


def long_range(q: Tensor, k: Tensor, v: Tensor, group_size: Size, *, fits: bool = False) -> Tensor:
    """Attend among the positions that lie a multiple of `group_size` apart (the lattice of the query).

    A map that is not a multiple of `group_size` is padded; padding is never attended to.
    Shapes as in `dense`. `fits` promises that the maps are multiples, which an ONNX graph cannot ask.
    """
    return _grouped(q, k, v, group_size, interlace, partial(deinterlace, group_size=group_size), fits)


def short_range(q: Tensor, k: Tensor, v: Tensor, group_size: Size, *, fits: bool = False) -> Tensor:
    """Attend inside each P_h x P_w window. Padding is never attended to. Shapes and `fits` as in `long_range`."""
    size = (_ceil(q.shape[2], group_size[0]), _ceil(q.shape[3], group_size[1]))
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
    if not fits and (_for_any_size() or height % group_size[0] or width % group_size[1]):
        (q, (top, left)), (k, _), (v, _) = (pad_to_multiple(t, group_size) for t in (q, k, v))
        inside = q.new_zeros((q.shape[0], 1, *q.shape[-2:]), dtype=torch.bool)
        inside[..., top : top + height, left : left + width] = True
        mask = split(inside, group_size)
        # A group that holds nothing but padding is cropped away below; it only must not become NaN.
        mask = mask | ~mask.flatten(1).any(1)[:, None, None, None]
    q, k, v = (split(t, group_size) for t in (q, k, v))
    context = merge(dense(q, k, v, mask))
    return context[..., top : top + height, left : left + width]


def criss_cross(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """Attend to the row and the column of each position, one softmax over both (CCNet, arXiv 1811.11721).

    The position itself counts once. Shapes as in `dense`; CCNet uses no scale.
    """
    height = q.shape[2]
    q = q * scale
    column_BHWH = torch.einsum("bdhw,bdgw->bhwg", q, k)
    own = torch.eye(height, dtype=torch.bool, device=q.device)[:, None]  # (H, 1, H)
    column_BHWH = column_BHWH.masked_fill(own, float("-inf"))
    row_BHWW = torch.einsum("bdhw,bdhu->bhwu", q, k)
    weights = torch.cat((column_BHWH, row_BHWW), dim=-1).softmax(dim=-1)
    from_column = torch.einsum("bhwg,bvgw->bvhw", weights[..., :height], v)
    return from_column + torch.einsum("bhwu,bvhu->bvhw", weights[..., height:], v)


# ---------------------------------------------------------------- modules


class Pointwise(nn.Conv2d):
    """A 1x1 convolution as one matrix product over channels-last memory; parameters are those of `nn.Conv2d`.

    On one CPU thread torch takes a slow way for 1x1 convolutions of small batches; this is faster.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W) for `x` (B, inputs, H, W)."""
        if (
            x.device.type != "cpu" or _for_any_size()
        ):  # ONNX Runtime folds batch norms into convolutions alone
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """Project to query, key and value, attend, project back: the block inside each ISA stage.

    Query and key are two 1x1 convolutions each with batch norm and ReLU, value is one plain 1x1 convolution,
    the output is a 1x1 convolution with batch norm and ReLU, and there is no residual
    (mmsegmentation ISAHead; openseg is the same with `value_bias=False`). Batch norm and ReLU on the output
    keep the scale alike for the next stage (openseg#35).
    """

    def __init__(
        self, channels: int, key_channels: int, value_channels: int, *, value_bias: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.key_channels, self.value_channels = channels, key_channels, value_channels
        self.query = _query(channels, key_channels)
        self.key = _query(channels, key_channels)
        self.value = Pointwise(channels, value_channels, bias=value_bias)
        self.proj = _conv_norm_act(value_channels, channels)

    def forward(self, x: Tensor, core: Core) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W); `core` maps query, key and value to context."""
        out: Tensor = self.proj(core(self.query(x), self.key(x), self.value(x)))
        return out

    def cost(self, positions: int, score_entries: int) -> Cost:
        """Return the cost for a map of `positions` pixels with `score_entries` in its attention maps."""
        conv = (
            2 * (self.channels + self.key_channels) * self.key_channels
            + 2 * self.channels * self.value_channels
        )
        attention = score_entries * (self.key_channels + self.value_channels)
        return Cost(positions * conv + attention, attention, score_entries)


def width(given: int | None, default: int) -> int:
    """Return a number of channels: the given one, or for None the default, which may round down to 1.

    Raises:
        ValueError: If the given one is below 1.
    """
    if given is not None and given < 1:
        raise ValueError(f"expected a number of channels of at least 1, got {given}")
    return max(default, 1) if given is None else given


def _conv_norm_act(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(Pointwise(inputs, outputs, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _query(channels: int, key_channels: int) -> nn.Sequential:
    return nn.Sequential(*_conv_norm_act(channels, key_channels), *_conv_norm_act(key_channels, key_channels))


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
        for name, _ in self._stages():
            keys, values = width(key_channels, channels // 2), width(value_channels, channels)
            block = AttentionBlock(channels, keys, values, value_bias=value_bias)
            self.add_module(name, block)

    def _stages(self) -> list[tuple[str, str]]:
        """Return name and kind of each stage, in the order in which they run."""
        kinds = _STAGES[self.order]
        return [(k if n == 1 else f"{k}_{n}", k) for n in range(1, self.depth + 1) for k in kinds]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), any H and W."""
        height, width = x.shape[-2:]
        top = left = 0
        if not self.mask_padding:
            x, (top, left) = pad_to_multiple(x, self.group_size)
        for name, kind in self._stages():
            core = long_range if kind == "long_range" else short_range
            core = partial(core, group_size=self.group_size, fits=not self.mask_padding)
            x = self.get_submodule(name)(x, core)
        return x[..., top : top + height, left : left + width]

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map; scores N(P + Q) times depth, for the padded N = P Q positions."""
        window = self.group_size[0] * self.group_size[1]
        lattice = -(-height // self.group_size[0]) * -(-width // self.group_size[1])
        padded = window * lattice
        positions = height * width if self.mask_padding else padded
        per_query = {"long_range": lattice, "short_range": window}
        stages = ((self.get_submodule(name), padded * per_query[kind]) for name, kind in self._stages())
        return _total([stage.cost(positions, scores) for stage, scores in stages])  # type: ignore[operator]

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
        return _total([block.cost(height, width) for block in self.blocks])  # type: ignore[operator]


class SelfAttention2d(nn.Module):
    """Dense self-attention in the block of an ISA stage, so that a comparison changes the pattern alone.

    Computes softmax(q k^T / sqrt(D)) v over all H * W positions. openseg's BaseOC differs outside the
    pattern: values of 256 channels and an output projection without batch norm.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
    """

    def __init__(
        self, channels: int, key_channels: int | None = None, value_channels: int | None = None
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.block = AttentionBlock(
            channels, width(key_channels, channels // 2), width(value_channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        out: Tensor = self.block(x, dense)
        return out

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map; N^2 scores."""
        return self.block.cost(height * width, (height * width) ** 2)


class CrissCrossAttention(nn.Module):
    """CCNet's recurrent criss-cross module, one set of weights for all passes (arXiv 1811.11721).

    q and k are 1x1 convolutions to C / 8 with bias, v one to C; the scores are not scaled; each pass returns
    `gamma * context + x` with `gamma` starting at 0. Two passes reach every position.

    Args:
        channels: C of input and output.
        recurrence: R, the number of passes; CCNet uses 2.
        key_channels: D; default C / 8.
    """

    def __init__(self, channels: int, recurrence: int = 2, key_channels: int | None = None) -> None:
        super().__init__()
        if recurrence < 1:
            raise ValueError(f"expected recurrence of at least 1, got {recurrence=}")
        keys = width(key_channels, channels // 8)
        self.out_channels = channels
        self.recurrence = recurrence
        self.query = Pointwise(channels, keys)
        self.key = Pointwise(channels, keys)
        self.value = Pointwise(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        for _ in range(self.recurrence):
            x = self.gamma * criss_cross(self.query(x), self.key(x), self.value(x)) + x
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map; R N (H + W) scores."""
        keys, channels = self.query.weight.shape[:2]
        positions = height * width
        scores = self.recurrence * positions * (height + width)
        conv = self.recurrence * positions * channels * (2 * keys + channels)
        return Cost(conv + scores * (keys + channels), scores * (keys + channels), scores)


class PlainCrissCross(nn.Module):
    """The criss-cross pattern in the block of an ISA stage: the pattern alone differs from ISA and dense.

    Args:
        channels: C of input and output.
        passes: How many blocks in a row, each with weights of its own, as ISA's two stages have.
        key_channels: D; default C / 2.
        value_channels: V; default C.
    """

    def __init__(
        self,
        channels: int,
        passes: int = 2,
        key_channels: int | None = None,
        value_channels: int | None = None,
    ) -> None:
        super().__init__()
        if passes < 1:
            raise ValueError(f"expected at least one pass, got {passes=}")
        keys, values = width(key_channels, channels // 2), width(value_channels, channels)
        self.out_channels = channels
        self.blocks = nn.ModuleList(AttentionBlock(channels, keys, values) for _ in range(passes))
        self.core = partial(criss_cross, scale=keys**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        for block in self.blocks:
            x = block(x, self.core)
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map; N (H + W) scores a pass."""
        positions = height * width
        scores = positions * (height + width)
        return _total([block.cost(positions, scores) for block in self.blocks])  # type: ignore[operator]


class PyramidPooling(nn.Module):
    """PSPNet's pyramid: pool to each bin size, 1x1 convolution to C / len(bins), resize, concatenate.

    arXiv 1612.01105, section 3.2. The concatenation with the input and the fusing convolution are the head's.

    Args:
        channels: C of input and output, a multiple of len(bins).
        bins: Side of each pooled map.

    Raises:
        ValueError: If C is not a multiple of len(bins).
    """

    def __init__(self, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        if channels % len(bins):
            raise ValueError(
                f"expected channels to be a multiple of the number of bins, got {channels=}, {bins=}"
            )
        self.out_channels = channels
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(_conv_norm_act(channels, channels // len(bins)) for _ in bins)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W); the 1x1 bin's batch norm needs B >= 2 in training."""
        size = x.shape[-2:]
        pool = _pool_any_size if _for_any_size() else F.adaptive_avg_pool2d
        pooled = [branch(pool(x, b)) for b, branch in zip(self.bins, self.branches, strict=True)]
        return torch.cat(
            [F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in pooled], dim=1
        )

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map: the 1x1 convolutions on the pooled maps; no attention, no scores."""
        positions = sum(b * b for b in self.bins)
        return Cost(positions * self.out_channels * (self.out_channels // len(self.bins)), 0, 0)


def _pool_any_size(x: Tensor, bins: int) -> Tensor:
    """Compute `F.adaptive_avg_pool2d(x, bins)` as two matrix products, which ONNX can record for any size."""
    weights = []
    index = torch.arange(bins, device=x.device)[:, None]
    for length in x.shape[-2:]:
        position = torch.arange(length, device=x.device)
        first, last = index * length // bins, ((index + 1) * length + bins - 1) // bins
        inside = (position >= first) & (position < last)  # (bins, H), then (bins, W)
        weights.append(inside.to(x.dtype) / (last - first))
    return weights[0] @ x @ weights[1].T


class NoContext(nn.Module):
    """Return the map unchanged: the head as it is, without context.

    The head still concatenates and fuses, so that it keeps the parameters it has with any other module.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W)."""
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return zero."""
        return Cost(0, 0, 0)


def _total(costs: Sequence[Cost]) -> Cost:
    return Cost(*(sum(column) for column in zip(*costs, strict=True)))
