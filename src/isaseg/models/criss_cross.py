"""Criss-cross attention: CCNet's module, and its pattern in the block of an ISA stage.

Contract and legend as in interlaced.py.
"""

from functools import partial

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock
from isaseg.models.layers import Cost, Pointwise, total, width


def criss_cross(q: Tensor, k: Tensor, v: Tensor, scale: float = 1.0) -> Tensor:
    """Attend to the row and the column of each position with one softmax over both (CCNet, arXiv 1811.11721).

    The position itself counts once. Shapes as in `attention_cores.dense`. CCNet does not scale the scores.
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


class CrissCrossAttention(nn.Module):
    """CCNet's recurrent criss-cross module with one set of weights for all passes (arXiv 1811.11721).

    Query and key are 1x1 convolutions to C / 8 with bias, the value is one to C. The scores are not scaled. Each pass
    returns `gamma * context + x`, where `gamma` starts at 0. Two passes reach every position.

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
        """Return the cost for one map. There are R N (H + W) scores."""
        keys, channels = self.query.weight.shape[:2]
        positions = height * width
        scores = self.recurrence * positions * (height + width)
        conv = self.recurrence * positions * channels * (2 * keys + channels)
        return Cost(conv + scores * (keys + channels), scores * (keys + channels), scores)


class PlainCrissCross(nn.Module):
    """The criss-cross pattern in the block of an ISA stage: only the pattern differs from ISA and dense attention.

    Args:
        channels: C of input and output.
        passes: How many blocks follow each other, each with weights of its own, like ISA's two stages.
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
        blocks = [AttentionBlock(channels, key_channels, value_channels) for _ in range(passes)]
        self.out_channels = channels
        self.blocks = nn.ModuleList(blocks)
        self.core = partial(criss_cross, scale=blocks[0].key_channels ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        for block in self.blocks:
            x = block(x, self.core)
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N (H + W) scores in each pass."""
        positions = height * width
        scores = positions * (height + width)
        return total([block.cost_of(positions, scores) for block in self.blocks])  # type: ignore[operator]
