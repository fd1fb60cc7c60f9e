"""MaxViT's pattern in the block of an ISA stage: attention in windows, and on a grid that spans the map.

Contract and legend as in interlaced.py.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_cores import Core, grouped, grouped_within
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import Size, compiles, crop, pad_to_multiple, two_positive

_ORDERS = {"window_grid": ("window", "grid"), "grid_window": ("grid", "window")}


def on_grid(q: Tensor, k: Tensor, v: Tensor, grid_size: Size) -> Tensor:
    """Attend among positions (ceil(H / G_h), ceil(W / G_w)) apart. Shapes as in `attention_cores.dense`.

    The map is padded to a multiple of `grid_size` = (G_h, G_w), which sizes that are symbols allow; padding is never
    attended to. No grid is all padding, for a map has at least as many rows and columns as lie between two positions.
    """
    whole, (high, wide) = (q.shape[2], q.shape[3]), grid_size
    # not by -(-a // b), which torch.export does not simplify
    stride = (whole[0] + high - 1) // high, (whole[1] + wide - 1) // wide
    fits = not torch.compiler.is_compiling() and whole[0] % high == whole[1] % wide == 0
    if fits or compiles():
        return grouped(q, k, v, stride, "long_range", fits=fits)
    inside, offset = pad_to_multiple(q.new_ones(q.shape[0], 1, *whole), grid_size)
    q, k, v = (pad_to_multiple(t, grid_size)[0] for t in (q, k, v))
    return crop(grouped_within(q, k, v, inside, stride, "long_range"), offset, whole)


class GridBlock(nn.Module):
    """Attention in windows, then on grids: MaxViT's block and grid attention (arXiv 2204.01697, timm maxxvit.py).

    A grid is a lattice of ISA whose stride follows the map, (ceil(H / G_h), ceil(W / G_w)): it has at most G_h x G_w
    positions, so the cost grows with the number of positions alone. MaxViT wants H and W to be multiples; here any map
    will do. Without the convolutions, feed-forward layers and position biases of MaxViT's blocks.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        window_size: (P_h, P_w), one window of the window stage. MaxViT's is (7, 7), this one is ISA's.
        grid_size: (G_h, G_w), the most positions of a grid. MaxViT's is (7, 7).
        order: The stages in their order: `window_grid` (published) or `grid_window`.
        recompute: As in `InterlacedSparseAttention`.

    Raises:
        ValueError: If a size is not two positive integers, or `order` is unknown.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        window_size: Sequence[int] = (8, 8),
        grid_size: Sequence[int] = (8, 8),
        order: Literal["window_grid", "grid_window"] = "window_grid",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if order not in _ORDERS:
            raise ValueError(f"expected order to be one of {', '.join(_ORDERS)}, got {order=}")
        self.out_channels = channels
        self.window_size = two_positive("window_size", window_size)
        self.grid_size = two_positive("grid_size", grid_size)
        self.order = order
        self.recompute = recompute
        for name in _ORDERS[order]:
            self.add_module(name, AttentionBlock(channels, key_channels, value_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), any H and W."""
        in_windows = partial(grouped, group_size=self.window_size, kind="short_range")
        cores: dict[str, Core] = {"window": in_windows, "grid": partial(on_grid, grid_size=self.grid_size)}
        for name in _ORDERS[self.order]:
            x = run_block(self.get_submodule(name), x, cores[name], recompute=self.recompute)
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N P scores and N G, with N the positions padded for the stage."""
        costs = []
        for name, (high, wide) in (("window", self.window_size), ("grid", self.grid_size)):
            padded = -(-height // high) * -(-width // wide) * high * wide
            block = self.get_submodule(name)
            costs.append(block.cost_of(height * width, padded * high * wide))  # type: ignore[operator]
        return total(costs)

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        return f"window_size={self.window_size}, grid_size={self.grid_size}, order={self.order}"
