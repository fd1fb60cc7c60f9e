"""Interlaced sparse self-attention over maps: the science of this project.

Pure PyTorch. Each context module maps a feature map (B, C, H, W) to (B, `out_channels`, H, W) for any H and W, adds no
outer residual, and reports its analytic `cost(height, width)`, so that one can replace another. The other
context modules are in the files beside this one.

Legend: B batch, C channels, H W map, D key channels, V value channels, N positions; `group_size` P = (P_h, P_w) is the
number of long-range groups and the short-range window, per axis; Q = (ceil(H / P_h), ceil(W / P_w)).
ISA: arXiv 1907.12273, section 3; details of the modules: openseg.pytorch, mmsegmentation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block, run_on_tokens
from isaseg.models.attention_cores import dense, grouped
from isaseg.models.attention_kernels import is_by_definition
from isaseg.models.layers import Cost, total
from isaseg.models.multi_head import offset_bias
from isaseg.models.regroup import (
    Kind,
    compiles,
    crop,
    for_any_size,
    in_groups,
    lattice,
    pad_to_multiple,
    regroup,
    two_positive,
)

Order = Literal["long_short", "short_long", "long", "short"]

_STAGES: dict[str, tuple[Kind, ...]] = {
    "long_short": ("long_range", "short_range"),
    "short_long": ("short_range", "long_range"),
    "long": ("long_range",),
    "short": ("short_range",),
}
_TOKENS = 4096  # of a piece that stays in the cache of a CPU: 8 MB of 512 channels in float32


class InterlacedSparseAttention(nn.Module):
    """Interlaced sparse self-attention: a long-range stage, then a short-range one (arXiv 1907.12273).

    The long-range stage attends among positions `group_size` apart, the short-range stage inside windows of
    `group_size`. After both, every position has received information from every other one (except with
    `mask_padding`, where a window cut by the border lacks some of the lattices). The stages share no weights. The
    long-range stage is dense attention if `group_size` is (1, 1), the short-range stage if it is (H, W).

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2 (256 for the published 512).
        value_channels: V; default C.
        group_size: (P_h, P_w), the published value is (8, 8).
        order: The stages in their order: `long_short` (published), `short_long`, `long` or `short`.
        mask_padding: How to treat a map whose H or W is not a multiple of `group_size`. False pads the input with
            zeros, which are projected and attended to; every published checkpoint was trained like this. True pads
            after the projection and masks, so that no result depends on padding.
        value_bias: Whether the value projection has a bias: True in mmsegmentation and PaddleSeg, False in openseg.
        depth: How many times the stages are repeated, each time with weights of their own; 1 as published. The
            first are named `long_range` and `short_range`, the second `long_range_2`, and so on.
        recompute: Keep less for the backward pass and compute each block a second time in it; the same results.
        heads: Number of attention heads, slices of the channels with scores of their own; 1 as published.
        position_bias: R, to add a learned bias to the scores for each offset inside the group, up to R rows and
            columns either way; offsets beyond share the bias of the nearest. HRFormer has it in windows of 7x7, where R
            is 6 (arXiv 2110.09408). None, as published, adds nothing.
        residual: Whether each stage adds its result to its input; False as published.

    Raises:
        ValueError: If `group_size` is not two positive integers, `order` is unknown, `depth` or `position_bias` is below
            1, or `heads` does not divide D and V.
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
        heads: int = 1,
        position_bias: int | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if order not in _STAGES:
            raise ValueError(f"expected order to be one of {', '.join(_STAGES)}, got {order=}")
        if int(depth) != depth or depth < 1:
            raise ValueError(f"expected depth as an integer of at least 1, got {depth=}")
        if position_bias is not None and (int(position_bias) != position_bias or position_bias < 1):
            raise ValueError(
                f"expected position_bias as an integer of at least 1, or None, got {position_bias=}"
            )
        self.out_channels = channels
        self.group_size = two_positive("group_size", group_size)
        self.order = order
        self.mask_padding = mask_padding
        self.depth = int(depth)
        self.recompute = recompute
        self.heads = heads
        self.residual = residual
        for name, _ in self._stages():
            self.add_module(name, AttentionBlock(channels, key_channels, value_channels, value_bias, heads))
        names = [name for name, _ in self._stages()] if position_bias is not None else []
        side = 2 * int(position_bias or 0) + 1
        self.position_bias = nn.ParameterDict({name: torch.zeros(heads, side, side) for name in names})

    def _stages(self) -> list[tuple[str, Kind]]:
        """Return name and kind of each stage in running order."""
        kinds = _STAGES[self.order]
        return [(k if n == 1 else f"{k}_{n}", k) for n in range(1, self.depth + 1) for k in kinds]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), any H and W."""
        if compiles() and not (self.mask_padding or is_by_definition()):
            return self._on_tokens(x)
        size, offset = (x.shape[2], x.shape[3]), (0, 0)
        if not self.mask_padding:
            x, offset = pad_to_multiple(x, self.group_size)
        fast = self._may_run_in_groups(x)
        for number, (name, kind) in enumerate(self._stages()):
            reuse = number > 0 and not self.residual
            out = self._stage_in_groups(name, kind, x, reuse) if fast else self._stage(name, kind, x)
            x = x + out if self.residual else out
        return x if self.mask_padding else crop(x, offset, size)

    def _on_tokens(self, x: Tensor) -> Tensor:
        """Run all stages on lists of tokens, for torch.compile: see `regroup`."""
        batch, size, given = x.shape[0], x.shape[2:], "map"
        for name, kind in self._stages():
            block = self.get_submodule(name)
            x = regroup(x, batch, size, self.group_size, given, kind)  # (G, L, C)
            shape = lattice(size, self.group_size) if kind == "long_range" else self.group_size
            bias = offset_bias(self.position_bias[name], *shape) if self.position_bias else None
            out = run_on_tokens(block, x, self.recompute and block.training, self.heads, bias)
            x, given = x + out if self.residual else out, kind
        result: Tensor = regroup(x, batch, size, self.group_size, given, "map")
        return result

    def _scores(self, name: str) -> dict[str, Any]:
        """Return how a stage's core is to make its scores."""
        return {"heads": self.heads, "position_bias": self.position_bias.get(name)}

    def _stage(self, name: str, kind: Kind, x: Tensor) -> Tensor:
        """Run a stage by its definition: project the map, attend within the groups, project back."""
        how = self._scores(name)
        core = partial(grouped, group_size=self.group_size, kind=kind, fits=not self.mask_padding, **how)
        return run_block(self.get_submodule(name), x, core, recompute=self.recompute)

    def _stage_in_groups(self, name: str, kind: Kind, x: Tensor, reuse: bool) -> Tensor:
        """Run a stage on the groups of the map, which is faster: one tensor is regrouped, not four.

        Projections treat all positions alike, so the result is the same. Without gradients, a CPU handles a few groups
        at a time; with `reuse` it writes them over `x`, which must not belong to the caller of `forward`.
        """
        block = self.get_submodule(name)
        at_once = torch.is_grad_enabled() or x.device.type != "cpu"
        # a norm in training mode takes its statistics from the whole map
        tokens = None if at_once or any(part.training for part in block.modules()) else _TOKENS
        core = partial(dense, **self._scores(name)) if self.heads > 1 or self.position_bias else dense
        attend = partial(run_block, block, core=core, recompute=self.recompute)
        return in_groups(attend, x, self.group_size, kind, tokens, reuse)

    def _may_run_in_groups(self, x: Tensor) -> bool:
        """Return whether a stage may run on groups: their positions must all be those of the padded map."""
        if is_by_definition() or for_any_size() or torch.compiler.is_compiling():
            return False
        return x.shape[2] % self.group_size[0] == 0 and x.shape[3] % self.group_size[1] == 0

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N(P + Q) scores, times the depth, with N = P Q padded positions."""
        window = self.group_size[0] * self.group_size[1]
        lattice = -(-height // self.group_size[0]) * -(-width // self.group_size[1])
        padded = window * lattice
        positions = height * width if self.mask_padding else padded
        per_query = {"long_range": lattice, "short_range": window}
        stages = ((self.get_submodule(name), padded * per_query[kind]) for name, kind in self._stages())
        return total([stage.cost_of(positions, scores) for stage, scores in stages])  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        shown = f"group_size={self.group_size}, order={self.order}, mask_padding={self.mask_padding}"
        more = {"depth": (self.depth, 1), "heads": (self.heads, 1), "residual": (self.residual, False)}
        return ", ".join(
            [shown, *(f"{key}={value}" for key, (value, usual) in more.items() if value != usual)]
        )


class ParallelInterlacedSparseAttention(nn.Module):
    """Several ISA blocks of different group sizes side by side, concatenated (openseg's list of `factors`).

    Args:
        channels: C of the input; the output has len(group_sizes) * C.
        group_sizes: One (P_h, P_w) for each block.
        key_channels: This and the rest as in `InterlacedSparseAttention`.

    Raises:
        ValueError: If there is no group size, or one is not two positive integers.
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
        if not group_sizes:
            raise ValueError(f"expected at least one pair in group_sizes, got {group_sizes=}")
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
