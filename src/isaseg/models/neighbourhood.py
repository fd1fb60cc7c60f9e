"""Neighbourhood attention, plain and dilated, in the block of an ISA stage.

Contract and legend as in interlaced.py. K neighbours per axis.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_kernels import held, is_by_definition
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import for_any_size, viewed

# Positions that are worked on at a time without gradients. Each needs K * K (D + V) numbers: with 7 x 7 neighbours, keys
# of 256 and values of 512 channels, 150 kB in float32.
_POSITIONS = 256


class Neighbourhood(nn.Module):
    """Let every position attend to its K x K nearest ones, in one stage for each dilation (NAT, arXiv 2204.07143).

    With a dilation d, a position sees only those whose row and column differ from its own by multiples of d (DiNAT, arXiv
    2209.15001). At the border the window is moved inwards, so that it stays complete. Where there are fewer than K such
    rows or columns, it holds all of them. NAT's relative position biases are left out.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        kernel_size: K, odd.
        dilations: d of each stage; every stage has weights of its own.
        recompute: As in `InterlacedSparseAttention`.

    Raises:
        ValueError: If `kernel_size` is not odd, or there is no dilation or one below 1.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        kernel_size: int = 7,
        dilations: Sequence[int] = (1, 1),
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if int(kernel_size) != kernel_size or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"expected kernel_size as an odd positive integer, got {kernel_size=}")
        given = () if isinstance(dilations, int) else tuple(dilations)
        if not given or any(int(d) != d or d < 1 for d in given):
            raise ValueError(f"expected dilations as a list of integers of at least 1, got {dilations=}")
        self.out_channels = channels
        self.kernel_size = int(kernel_size)
        self.dilations = tuple(int(d) for d in given)
        self.recompute = recompute
        self.blocks = nn.ModuleList(AttentionBlock(channels, key_channels, value_channels) for _ in given)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        for block, dilation in zip(self.blocks, self.dilations, strict=True):
            core = partial(neighbourhood, kernel_size=self.kernel_size, dilation=dilation)
            x = run_block(block, x, core, recompute=self.recompute)
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N K^2 scores in each stage, with those of missing neighbours."""
        positions = height * width
        scores = positions * self.kernel_size**2
        return total([block.cost_of(positions, scores) for block in self.blocks])  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        return f"kernel_size={self.kernel_size}, dilations={self.dilations}"


def neighbourhood(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int) -> Tensor:
    """Attend to the `kernel_size` x `kernel_size` nearest positions. Shapes as in `attention_cores.dense`.

    Keys and values of all neighbours are copied, K * K for each position. Without gradients this happens for a few rows
    at a time.
    """
    batch, keys, height, width = q.shape
    traced = torch.compiler.is_compiling() or for_any_size()
    fits = fits_natten(q.device.type, {q.dtype, k.dtype, v.dtype}, (height, width), kernel_size * dilation)
    if fits and not (traced or is_by_definition() or keys % 8 or v.shape[1] % 8) and (natten := _natten()):
        one_head = (t.permute(0, 2, 3, 1).unsqueeze(3).contiguous() for t in (q, k, v))  # (B, H, W, 1, D)
        out: Tensor = natten.na2d(*one_head, kernel_size=kernel_size, dilation=dilation, scale=keys**-0.5)
        return out.squeeze(3).permute(0, 3, 1, 2)
    rows = neighbours(height, kernel_size, dilation, q.device)
    columns = neighbours(width, kernel_size, dilation, q.device)
    complete = not traced and min(height, width) // dilation >= kernel_size
    q_BHWD = q.permute(0, 2, 3, 1)
    k_BND, v_BNV = (viewed(t.permute(0, 2, 3, 1), batch, height * width, t.shape[1]) for t in (k, v))

    def attend(first: int, number: int) -> Tensor:
        """Return (B, `number`, W, V) for as many rows from `first` on."""
        here = slice(first, first + number)
        (row, row_inside), (column, column_inside) = [part[here] for part in rows], columns
        index = (row[:, None, :, None] * width + column[:, None]).reshape(-1)  # of (number, W, K, K)
        tokens, window = batch * number * width, kernel_size**2
        k_GKD, v_GKV = (viewed(t.index_select(1, index), tokens, window, t.shape[2]) for t in (k_BND, v_BNV))
        mask_G1K = None
        if not complete:
            inside = (row_inside[:, None, :, None] & column_inside[:, None]).expand(
                batch, number, width, kernel_size, kernel_size
            )
            mask_G1K = viewed(inside, tokens, 1, window)
        q_G1D = viewed(q_BHWD[:, here], tokens, 1, keys)
        return viewed(held(q_G1D, k_GKD, v_GKV, keys**-0.5, mask_G1K), batch, number, width, v.shape[1])

    if traced or torch.is_grad_enabled():
        return attend(0, height).permute(0, 3, 1, 2)
    few = max(_POSITIONS // max(batch * width, 1), 1)
    parts = [attend(first, min(few, height - first)) for first in range(0, height, few)]
    return torch.cat(parts, 1).permute(0, 3, 1, 2)


def neighbours(length: int, kernel_size: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which positions each one of an axis attends to, (length, K), and which of these exist, likewise.

    The positions with the same remainder modulo `dilation` form a class. A window holds K neighbours within the class.
    """
    position = torch.arange(length, device=device)[:, None]
    remainder = position % dilation
    size = (length - remainder + dilation - 1) // dilation  # of the class
    start = torch.minimum(position // dilation - kernel_size // 2, size - kernel_size).clamp(min=0)
    place = start + torch.arange(kernel_size, device=device)
    return remainder + dilation * torch.minimum(place, size - 1), place < size


# ---------------------------------------------------------------- NATTEN


def fits_natten(device: str, dtypes: set[torch.dtype], size: tuple[int, int], extent: int) -> bool:
    """Return whether NATTEN takes a map whose window spans `extent` positions.

    It wants `extent` positions at least per axis, and channels in multiples of 8 (its `can_run_cutlass_fna` and
    `check_args_against_input`). It also takes float32, but whether it rounds the products to TF32 was not examined.
    """
    half = dtypes in ({torch.bfloat16}, {torch.float16})
    return device == "cuda" and half and min(size) >= extent > 1


@cache
def _natten() -> Any:
    """Return the module `natten` if it is installed with its kernels, else None."""
    try:
        import natten  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    return natten if getattr(natten, "HAS_LIBNATTEN", False) else None
