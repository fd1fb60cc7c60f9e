"""The kernels of attention: tokens of groups, with the scores in memory or in torch's fused kernel.

Legend: G groups, L tokens in a group, D key channels, V value channels.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isaseg.models.multi_head import in_heads
from isaseg.models.regroup import for_any_size

_HALVES = (torch.bfloat16, torch.float16)
_FLASH = 256  # channels of a head that torch's flash kernels take at most
_by_definition = _hold = False


@contextmanager
def by_definition(*, hold_scores: bool = True) -> Iterator[None]:
    """Make context modules run their definition operation by operation, to count and to compare.

    Weights are not merged, and each core gets whole maps. The scores are held in memory, unless `hold_scores` is False:
    then a fused kernel may be used.
    """
    global _by_definition, _hold
    before, (_by_definition, _hold) = (_by_definition, _hold), (True, hold_scores)
    try:
        yield
    finally:
        _by_definition, _hold = before


def is_by_definition() -> bool:
    """Return whether `by_definition` is active."""
    return _by_definition


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off, so that a product has the type of its factors."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def holds_scores(
    tokens: int, keys: int, values: int, dtype: torch.dtype, device: str, with_gradient: bool
) -> bool:
    """Return whether two batched products with the scores in memory between them beat the fused kernel.

    On a CPU they do up to about a thousand tokens (float32, keys of 256 and values of 512 channels, one core with
    AVX-512: 71 against 41 GFLOP/s at 256 tokens, 37 against 15 at 64; with the gradient 74 against 36 and 56 against
    17). For more tokens the fused kernel catches up and needs no memory for scores. With a gradient the scores stay in
    memory until the backward pass, so the limit is lower.

    On a GPU they do for tokens of half precision that are too wide for flash kernels. Measured are forward passes of ISA
    with those channels on an H200 in bfloat16: 1.53 against 2.15 ms for groups of 256 and 64, 2.7 against 3.5 ms for
    1024 and 64. With a gradient it is reasoned, not measured: torch's other kernel is then slower too. The limits are
    those of a CPU, which keep the scores of a token within the memory of a few of its keys and values. Flash kernels,
    and float32 on a GPU, were not measured against it: there the fused kernel runs. Apple's GPUs have one of their own.
    """
    if device == "mps" or (device != "cpu" and (dtype not in _HALVES or max(keys, values) <= _FLASH)):
        return False
    return tokens <= (512 if with_gradient else 1024)


def key_width(keys: int, values: int, dtype: torch.dtype, device: str, masked: bool) -> int:
    """Return how wide the fused kernel wants query and key, which are padded with zeros: these change no product.

    Otherwise torch silently falls back to a kernel that holds the score matrix. By its source (`sdp_utils.cpp` and
    `sdp_utils_cpp.cpp`, read, not measured) flash kernels, on a CPU and on a GPU, want keys as wide as the values. Those
    of a GPU take half precision, at most 256 channels and no mask. The memory-efficient kernel takes all else, keys of
    any width that fills 16 bytes.
    """
    is_for_flash = dtype in _HALVES and max(keys, values) <= _FLASH and not masked
    if is_for_flash or device in ("cpu", "mps"):  # mps: pytorch#176767, wrong results for other widths
        return max(keys, values)
    step = 16 // dtype.itemsize
    return (keys + step - 1) // step * step


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    few: bool = False,
    heads: int = 1,
    bias: Tensor | None = None,
) -> Tensor:
    """Let every token attend to the tokens of its group: softmax(scale q k^T + bias) v.

    Args:
        q: (G, L, D).
        k: (G, L, D).
        v: (G, L, V).
        scale: Factor of the scores.
        mask: Tokens that may be attended to, bool (G, 1, L); None means all.
        few: Promises that groups are small, which cannot be tested while torch.compile records a graph for any size.
        heads: K, how many slices of the channels attend each on its own; it divides D and V.
        bias: (K, L, L); with it the scores are held in memory.

    Returns:
        (G, L, V). Scores are computed in float32 at least, whatever the type of the tokens.
    """
    if heads > 1 or bias is not None:
        each = partial(attend, few=few) if bias is None else partial(held, bias=bias)
        return in_heads(partial(each, scale=scale), q, k, v, mask, heads)
    kernel: Callable[[Tensor, Tensor, Tensor, float, Tensor | None], Tensor]
    if _hold or for_any_size():  # ONNX has no fused kernel to record
        kernel = held
    elif torch.compiler.is_compiling():  # the graph may run at other sizes too
        # The views of four axes around the fused kernel are what inductor fails at on a CPU: see `regroup`.
        kernel = held if few and q.device.type == "cpu" and torch.is_grad_enabled() else _fused
    else:
        widths, with_gradient = (q.shape[2], v.shape[2]), torch.is_grad_enabled()
        holds = holds_scores(q.shape[1], *widths, v.dtype, q.device.type, with_gradient)
        kernel = held if holds else _fused
    return kernel(q, k, v, scale, mask)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    # a kernel that never holds the score matrix needs contiguous channels
    q_G1LD, k_G1LD, v_G1LV = (t.unsqueeze(1).contiguous() for t in (q, k, v))
    wider = key_width(q.shape[-1], v.shape[-1], v.dtype, q.device.type, mask is not None) - q.shape[-1]
    if wider > 0:
        q_G1LD, k_G1LD = F.pad(q_G1LD, (0, wider)), F.pad(k_G1LD, (0, wider))
    mask_G11L = None if mask is None else mask.unsqueeze(1)
    context = F.scaled_dot_product_attention(q_G1LD, k_G1LD, v_G1LV, attn_mask=mask_G11L, scale=scale)
    return context.squeeze(1)


def held(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """Compute `attend` with the scores in memory; there may be more or fewer queries than keys."""
    with without_autocast(q.device.type):
        scores_GLL = _scores(q, k, v.dtype).mul_(scale)
        if bias is not None:  # (K, L, L), the same for each of G / K groups
            scores_GLL = torch.unflatten(scores_GLL, 0, (-1, bias.shape[0])).add(bias).flatten(0, 1)
        if mask is not None:
            scores_GLL = scores_GLL.masked_fill(~mask, float("-inf"))
        scores_GLL = scores_GLL.softmax(-1).to(v.dtype)  # frees the scores before the product takes memory
        return scores_GLL @ v


def _scores(q: Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    """Return q k^T, (G, L, L), in float32 at least for values of `dtype`.

    A score of 100, rounded to half precision, would change its weight by a large factor.
    """
    if dtype not in _HALVES:
        return q @ k.transpose(1, 2)
    has_product = q.device.type in ("cuda", "meta") and not torch.compiler.is_compiling()
    if has_product and q.dtype == k.dtype == dtype:
        scores: Tensor = _ExactScores.apply(q, k)
        return scores
    return q.float() @ k.float().transpose(1, 2)


class _ExactScores(torch.autograd.Function):
    """q k^T in float32 from half precision, without float32 copies of q and k: a product of such numbers is exact.

    torch has the product, but no gradient of it. The gradient of the scores is rounded, as in fused kernels.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(q, k)
        return torch.bmm(q, k.transpose(1, 2), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        gradient = gradient.to(q.dtype)
        return gradient @ k, gradient.transpose(1, 2) @ q
