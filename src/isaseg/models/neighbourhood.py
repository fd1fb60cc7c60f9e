"""Neighbourhood attention, plain and dilated, in the block of an ISA stage.

Contract and legend as in interlaced.py. K neighbours per axis.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_kernels import held, is_by_definition
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import for_any_size, viewed

_SIDE = 8  # of the tiles of queries that share a block of keys; with 7 x 7 neighbours that has 14 x 14
_TILES = (
    16  # worked on at a time without gradients: 10 MB of keys and values of 256 and 512 channels in float32
)


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

    A tile of queries attends to all that any of them may see, with a mask. This makes about four times as many scores as
    there are, and copies a key three times instead of K * K times.
    """
    keys, height, width = q.shape[1:]
    traced = torch.compiler.is_compiling() or for_any_size()
    fits = fits_natten(q.device.type, {q.dtype, k.dtype, v.dtype}, (height, width), kernel_size * dilation)
    if traced or is_by_definition():
        return _one_by_one(q, k, v, kernel_size, dilation, complete=not traced)
    if fits and not (keys % 8 or v.shape[1] % 8) and (natten := _natten()):
        one_head = (t.permute(0, 2, 3, 1).unsqueeze(3).contiguous() for t in (q, k, v))  # (B, H, W, 1, D)
        out: Tensor = natten.na2d(*one_head, kernel_size=kernel_size, dilation=dilation, scale=keys**-0.5)
        return out.squeeze(3).permute(0, 3, 1, 2)
    return _in_tiles(q, k, v, kernel_size, dilation)


def _one_by_one(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int, complete: bool) -> Tensor:
    """Compute `neighbourhood` with a copy of its K * K keys and values for each position.

    `complete` says that H and W are numbers, so that it can be tested whether every window has all its neighbours.
    """
    batch, keys, height, width = q.shape
    row, row_inside = neighbours(height, kernel_size, dilation, q.device)
    column, column_inside = neighbours(width, kernel_size, dilation, q.device)
    index = (row[:, None, :, None] * width + column[:, None]).reshape(-1)  # of (H, W, K, K)
    tokens, window = batch * height * width, kernel_size**2
    k_BND, v_BNV = (viewed(t.permute(0, 2, 3, 1), batch, height * width, t.shape[1]) for t in (k, v))
    k_GKD, v_GKV = (viewed(t.index_select(1, index), tokens, window, t.shape[2]) for t in (k_BND, v_BNV))
    mask_G1K = None
    if not (complete and min(height, width) // dilation >= kernel_size):
        inside = row_inside[:, None, :, None] & column_inside[:, None]
        mask_G1K = viewed(inside.expand(batch, *inside.shape), tokens, 1, window)
    q_G1D = viewed(q.permute(0, 2, 3, 1), tokens, 1, keys)
    out = held(q_G1D, k_GKD, v_GKV, keys**-0.5, mask_G1K)
    return viewed(out, batch, height, width, v.shape[1]).permute(0, 3, 1, 2)


def _in_tiles(q: Tensor, k: Tensor, v: Tensor, kernel_size: int, dilation: int) -> Tensor:
    batch, keys, height, width = q.shape
    rows, columns = (_tiles(length, kernel_size, dilation, q.device) for length in (height, width))
    q_BND, k_BND, v_BNV = (t.permute(0, 2, 3, 1).reshape(batch, height * width, -1) for t in (q, k, v))
    across, side = len(columns.queries), rows.queries.shape[1]

    def picked(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return the tokens of each pair of tiles, (B T_h T_w, tokens, C)."""
        index = row[:, None, :, None] * width + column[:, None]  # (T_h, T_w, rows, columns)
        return x.index_select(1, index.reshape(-1)).reshape(-1, row.shape[1] * column.shape[1], x.shape[2])

    def attend(here: slice) -> Tensor:
        """Return (B, t T_h, t T_w, V) for some of the tiles along H."""
        query, key, inside = rows.queries[here], rows.keys[here], rows.inside[here]
        pairs = inside[:, None, :, None, :, None] & columns.inside[:, None, :, None]  # (T_h, T_w, t, t, u, u)
        mask = pairs.flatten(4).flatten(2, 3).flatten(0, 1).repeat(batch, 1, 1)
        out = held(
            picked(q_BND, query, columns.queries),
            picked(k_BND, key, columns.keys),
            picked(v_BNV, key, columns.keys),
            keys**-0.5,
            mask,
        )
        out = out.reshape(batch, len(query), across, side, side, -1).transpose(2, 3)
        return out.reshape(batch, len(query) * side, across * side, -1)

    few = len(rows.queries) if torch.is_grad_enabled() else max(_TILES // (batch * across), 1)
    parts = [attend(slice(first, first + few)) for first in range(0, len(rows.queries), few)]
    out = torch.cat(parts, 1).index_select(1, rows.place).index_select(2, columns.place)
    return out.permute(0, 3, 1, 2)


class Tiles(NamedTuple):
    """An axis in T tiles of t queries, each with the u keys that any of them may attend to.

    Attributes:
        queries: Positions, (T, t); the last tile of a class repeats its last position.
        keys: Positions, (T, u).
        inside: Which query attends to which key, (T, t, u).
        place: Where each position of the axis is among the queries.
    """

    queries: Tensor
    keys: Tensor
    inside: Tensor
    place: Tensor


def _tiles(length: int, kernel_size: int, dilation: int, device: torch.device) -> Tiles:
    """Cut an axis into tiles; with a dilation, the class of each remainder on its own, see `neighbours`."""
    sizes = [-(-(length - remainder) // dilation) for remainder in range(min(dilation, length))]
    number = min(_SIDE + kernel_size - 1, sizes[0])
    parts, places, before = [], torch.empty(length, dtype=torch.int64, device=device), 0
    for remainder, size in enumerate(sizes):
        first = torch.arange(0, size, _SIDE, device=device)[:, None]
        query = (first + torch.arange(_SIDE, device=device)).clamp(max=size - 1)
        begin = (first - kernel_size // 2).clamp(min=0, max=max(size - number, 0))
        key = begin + torch.arange(number, device=device)
        start = (query - kernel_size // 2).clamp(max=size - kernel_size).clamp(min=0)[..., None]
        inside = (start <= key[:, None]) & (key[:, None] < (start + kernel_size).clamp(max=size))
        at = [remainder + dilation * place for place in (query, key.clamp(max=size - 1))]
        parts.append((*at, inside))
        places[remainder::dilation] = before + torch.arange(size, device=device)
        before += query.numel()
    queries, keys, inside = (torch.cat(held) for held in zip(*parts, strict=True))
    return Tiles(queries, keys, inside, places)


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
