"""Attention in several heads, and the learnt bias of relative positions.

Legend: G groups, L tokens in a group, K heads, D key channels, V value channels.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from isaseg.models.regroup import viewed


def in_heads(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, heads: int
) -> Tensor:
    """Return (G, L, V): `attend` of the heads, as if each were a group of its own.

    Args:
        attend: Takes query and key (G K, L, D / K), value (G K, L, V / K) and `mask`.
        q: (G, L, D).
        k: (G, L, D).
        v: (G, L, V).
        mask: Tokens that may be attended to, bool (G, 1, L); None means all.
        heads: K, which divides D and V.
    """
    number, tokens = q.shape[:2]

    def split(x: Tensor) -> Tensor:
        x_GLKC = viewed(x, number, tokens, heads, x.shape[2] // heads)
        return viewed(x_GLKC.transpose(1, 2), number * heads, tokens, x.shape[2] // heads)

    each = None if mask is None else mask.repeat_interleave(heads, 0)
    context_GKLV = viewed(attend(split(q), split(k), split(v), mask=each), number, heads, tokens, -1)
    return viewed(context_GKLV.transpose(1, 2), number, tokens, v.shape[2])


def offset_bias(table: Tensor, height: int, width: int) -> Tensor:
    """Return what is added to the scores of a group of (height, width) positions, (K, L, L) for L = height * width.

    Args:
        table: A number for each offset from a position to the one that it attends to, up to R rows and columns either
            way, (K, 2R + 1, 2R + 1). Offsets beyond take that of the nearest.
    """
    far = table.shape[1] // 2
    down, right = (_offsets(length, table.device).clamp(-far, far) + far for length in (height, width))
    bias_KHWHW = table[:, down[:, None, :, None], right[None, :, None, :]]
    return viewed(bias_KHWHW, table.shape[0], height * width, height * width)


def _offsets(length: int, device: torch.device) -> Tensor:
    """Return the offset from each position to each other, (length, length)."""
    at = torch.arange(length, device=device)
    return at - at[:, None]
