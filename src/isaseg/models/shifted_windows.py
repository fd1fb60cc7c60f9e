"""Swin's pattern in the block of an ISA stage: attention in windows, then in windows shifted by half of one.

Contract and legend as in interlaced.py.
"""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_cores import grouped, grouped_by_operator, grouped_within
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import Size, compiles, crop, pad_to_multiple, two_positive


def shifted(q: Tensor, k: Tensor, v: Tensor, window_size: Size) -> Tensor:
    """Attend in windows that lie half a window from those of `grouped`. Shapes as there; padding is never attended to.

    A window's worth of padding, half of it on each side, moves the windows. It changes nothing in how `pad_to_multiple`
    rounds up, whose halves remain those of the map.
    """
    whole, (top, bottom), (left, right) = (q.shape[2], q.shape[3]), *map(_more, window_size)
    inside = q.new_ones(q.shape[0], 1, *whole)
    q, k, v, inside = (F.pad(t, (left, right, top, bottom)) for t in (q, k, v, inside))
    if compiles():
        return crop(grouped_by_operator(q, k, v, inside, window_size, "short_range"), (top, left), whole)
    (high, wide) = pad_to_multiple(inside, window_size)[1]
    q, k, v, inside = (pad_to_multiple(t, window_size)[0] for t in (q, k, v, inside))
    context = grouped_within(q, k, v, inside, window_size, "short_range")
    return crop(context, (top + high, left + wide), whole)


def _more(window: int) -> Size:
    """Return the padding before and after an axis: none if a window has no half."""
    return -(window // 2) % window, window // 2


class ShiftedWindows(nn.Module):
    """Attention in windows, then in shifted windows: two blocks of Swin (arXiv 2103.14030, section 3.2).

    Windows of the second stage lie half a window lower and further right; the border cuts the first and the last of an
    axis. Swin reaches the same with a cyclic shift and a mask. timm's Swin does not shift along an axis that one window
    covers; here every map is shifted alike, so that one graph serves every size. Without the feed-forward layers and
    position biases of Swin's blocks.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        window_size: (P_h, P_w). Swin's is (7, 7), this one is ISA's.
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
        self.window = AttentionBlock(channels, key_channels, value_channels)
        self.shifted = AttentionBlock(channels, key_channels, value_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), any H and W."""
        in_windows = partial(grouped, group_size=self.window_size, kind="short_range")
        x = run_block(self.window, x, in_windows, recompute=self.recompute)
        return run_block(
            self.shifted, x, partial(shifted, window_size=self.window_size), recompute=self.recompute
        )

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N P scores in each stage, N with the padding of the stage."""
        (high, wide), area = self.window_size, self.window_size[0] * self.window_size[1]
        rows, columns = -(-height // high), -(-width // wide)  # of windows
        more = (rows + (high > 1)) * (columns + (wide > 1))
        stages = ((self.window, rows * columns), (self.shifted, more))
        return total([block.cost_of(height * width, number * area * area) for block, number in stages])

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        return f"window_size={self.window_size}"
