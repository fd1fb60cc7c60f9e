"""MaxViT's pattern in the block of an ISA stage: attention in windows, and on a grid that spans the map.

Contract and legend as in interlaced.py.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_cores import grouped
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import Kind, Size

_ORDERS = {"window_grid": ("window", "grid"), "grid_window": ("grid", "window")}
_KINDS: dict[str, Kind] = {"window": "short_range", "grid": "long_range"}


class GridBlock(nn.Module):
    """Attention in windows, then on grids: MaxViT's block and grid attention (arXiv 2204.01697, timm's models/maxxvit.py).

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
        sizes = {"window": self.window_size, "grid": self._stride(x.shape[2], x.shape[3])}
        for name in _ORDERS[self.order]:
            core = partial(grouped, group_size=sizes[name], kind=_KINDS[name])
            x = run_block(self.get_submodule(name), x, core, recompute=self.recompute)
        return x

    def _stride(self, height: int, width: int) -> Size:
        """Return how far apart the positions of a grid are. Not by `-(-a // b)`: the sizes may be symbols."""
        high, wide = self.grid_size
        return (height + high - 1) // high, (width + wide - 1) // wide

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are at most N(P + G) scores, with N positions padded for the stage."""
        costs = []
        for name, (high, wide) in (("window", self.window_size), ("grid", self._stride(height, width))):
            window, lattice = high * wide, -(-height // high) * -(-width // wide)
            scores = window * lattice * (window if name == "window" else lattice)
            costs.append(self.get_submodule(name).cost_of(height * width, scores))  # type: ignore[operator]
        return total(costs)

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        return f"window_size={self.window_size}, grid_size={self.grid_size}, order={self.order}"


def two_positive(name: str, value: Sequence[int]) -> Size:
    """Return a pair of integers.

    Raises:
        ValueError: If there are not two, or one is below 1 or no integer.
    """
    pair = () if isinstance(value, int) else value
    if len(pair) != 2 or any(int(p) != p or p < 1 for p in pair):
        raise ValueError(f"expected {name} as two positive integers, got {name}={value}")
    return int(pair[0]), int(pair[1])
