"""Attention of tokens in groups, by the kernel that suits their number, type and device. Pure PyTorch.

Legend: G groups, L tokens in a group, D key channels, V value channels.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from isaseg.models.regroup import for_any_size

__all__ = ["attend", "by_definition", "holds_scores", "is_by_definition", "without_autocast"]

_by_definition = _hold = False


@contextmanager
def by_definition(*, hold_scores: bool = True) -> Iterator[None]:
    """Let context modules run exactly what their definition says, operation by operation; to count and to compare.

    No two matrices are multiplied beforehand, no batch norm is folded, each core maps whole maps; and no fused kernel
    saves the scores, unless `hold_scores` is False.
    """
    global _by_definition, _hold
    before, (_by_definition, _hold) = (_by_definition, _hold), (True, hold_scores)
    try:
        yield
    finally:
        _by_definition, _hold = before


def is_by_definition() -> bool:
    """Tell whether `by_definition` is in force."""
    return _by_definition


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Return a context in which products have the type of their factors."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def holds_scores(tokens: int, device: str, with_gradient: bool) -> bool:
    """Tell whether two batched products, with the scores between them, are to be preferred to the fused kernel.

    On a CPU they are faster by a third to a half up to some thousand tokens (float32, keys of 256 and values of 512
    channels, one core with AVX-512: 71 against 41 GFLOP/s at 256 tokens, 37 against 15 at 64; with the gradient
    74 against 36 and 56 against 17). With more, the fused kernel catches up and holds nothing; with a gradient, held
    scores stay until the backward pass, so they may not be larger than the values by much. On a GPU always the
    fused kernel.
    """
    return device == "cpu" and tokens <= (512 if with_gradient else 1024)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Let every token attend to those of its group: softmax(scale q k^T) v.

    Args:
        q: (G, L, D).
        k: (G, L, D).
        v: (G, L, V).
        scale: Of the scores.
        mask: Tokens that may be attended to, bool (G, 1, L); None means all.

    Returns:
        (G, L, V). Scores are in float32 at least, whatever the type of the tokens.
    """
    if _hold or for_any_size():  # ONNX has no fused kernel to record
        return _held(q, k, v, scale, mask)
    # a compiled or exported graph may serve other sizes too
    if torch.compiler.is_compiling() or not holds_scores(q.shape[1], q.device.type, torch.is_grad_enabled()):
        return _fused(q, k, v, scale, mask)
    return _held(q, k, v, scale, mask)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    # The kernels that never hold the score matrix want tokens whose channels lie together and keys as wide as
    # values (zeros change no product). Without either, torch silently takes the slow one that holds it.
    q_G1LD, k_G1LD, v_G1LV = (t.unsqueeze(1).contiguous() for t in (q, k, v))
    narrower = v.shape[-1] - q.shape[-1]
    if narrower > 0:
        q_G1LD, k_G1LD = F.pad(q_G1LD, (0, narrower)), F.pad(k_G1LD, (0, narrower))
    mask_G11L = None if mask is None else mask.unsqueeze(1)
    context = F.scaled_dot_product_attention(q_G1LD, k_G1LD, v_G1LV, attn_mask=mask_G11L, scale=scale)
    return context.squeeze(1)


def _held(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    if v.dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # the rounding of a score of 100 would be a factor of the weight
        q, k = q.float(), k.float()
    with without_autocast(q.device.type):
        return _weights(q, k, scale, mask).to(v.dtype) @ v


def _weights(q: Tensor, k: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    scores_GLL = (q if scale == 1 else q * scale) @ k.transpose(1, 2)
    if mask is not None:
        scores_GLL = scores_GLL.masked_fill(~mask, float("-inf"))
    return scores_GLL.softmax(-1)  # the scores, as large as the weights, end here
