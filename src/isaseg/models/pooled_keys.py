"""Attention in windows, then attention to the mean of every window, in the block of an ISA stage.

Contract and legend as in interlaced.py, P = `window_size`.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_cores import grouped
from isaseg.models.attention_kernels import attend
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import Size, lattice, pad_to_multiple, two_positive, viewed


class PooledKeys(nn.Module):
    """The pattern of Twins-SVT: a stage inside windows, then one in which every position attends to all windows.

    In the second stage a window has one key and one value, the means of those of its positions. Twins learns a strided
    convolution instead (arXiv 2104.13840, section 3.2); with means only the pattern differs from ISA and dense attention.
    The windows are ISA's, centred on the map. Where the border cuts one, only its positions inside the map count.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        window_size: (P_h, P_w).
        recompute: As in `InterlacedSparseAttention`.

    Raises:
        ValueError: If `window_size` is not two positive integers.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        window_size: Sequence[int] = (8, 8),
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.window_size = two_positive("window_size", window_size)
        self.recompute = recompute
        self.windows = AttentionBlock(channels, key_channels, value_channels)
        self.pooled = AttentionBlock(channels, key_channels, value_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        in_windows = partial(grouped, group_size=self.window_size, kind="short_range")
        x = run_block(self.windows, x, in_windows, recompute=self.recompute)
        return run_block(
            self.pooled, x, partial(pooled, window_size=self.window_size), recompute=self.recompute
        )

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. With Q windows there are Q P^2 scores in the first stage, N Q in the second."""
        high, wide = lattice((height, width), self.window_size)
        window, positions = self.window_size[0] * self.window_size[1], height * width
        return total(
            [
                self.windows.cost_of(positions, high * wide * window**2),
                self.pooled.cost_of(positions, positions * high * wide),
            ]
        )

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        return f"window_size={self.window_size}"


def pooled(q: Tensor, k: Tensor, v: Tensor, window_size: Size) -> Tensor:
    """Let every position attend to the mean key of each window. Shapes as in `attention_cores.dense`."""
    batch, keys, height, width = q.shape
    high, wide = lattice((height, width), window_size)
    share = _sums(
        q.new_ones(1, 1, height, width), window_size
    )  # no window lies outside: the padding is centred
    q_BND = viewed(q.permute(0, 2, 3, 1), batch, height * width, keys)
    k_BQD, v_BQV = (
        viewed((_sums(t, window_size) / share).permute(0, 2, 3, 1), batch, high * wide, t.shape[1])
        for t in (k, v)
    )
    context = attend(q_BND, k_BQD, v_BQV, keys**-0.5)
    return viewed(context, batch, height, width, v.shape[1]).permute(0, 3, 1, 2)


def _sums(x: Tensor, window_size: Size) -> Tensor:
    """Return the sum of each window divided by the size of a whole one, (B, C, Q_h, Q_w)."""
    return F.avg_pool2d(pad_to_multiple(x, window_size)[0], window_size)
