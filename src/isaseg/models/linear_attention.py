"""Attention with a linear kernel, in the block of an ISA stage.

Contract and legend as in interlaced.py.
"""

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_kernels import without_autocast
from isaseg.models.layers import Cost
from isaseg.models.regroup import viewed

# Added to each product of a query and a key, so that a position whose query meets no key gets the mean of all values.
# EfficientViT adds 1e-15 to the sum of the weights instead. Then they do not sum to 1, and gradients may reach 1e15.
_EPS = 1e-6


class LinearAttention(nn.Module):
    """Attention of all positions to all, with weights proportional to q_i . k_j instead of exp(q_i . k_j).

    No matrix of weights is needed, since the sum over the keys can be taken first: q (k^T v) / (q sum k). Query and key
    are not negative, as the block ends both with ReLU. The kernel is that of EfficientViT (arXiv 2205.14756), whose
    multi-scale aggregation by depthwise convolutions is left out, so that only the pattern differs from ISA.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        recompute: As in `InterlacedSparseAttention`.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.recompute = recompute
        self.block = AttentionBlock(channels, key_channels, value_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        return run_block(self.block, x, linear, recompute=self.recompute)

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. Beside the block it is N D (2 V + 1) multiply-adds; there are no scores."""
        positions, keys, values = height * width, self.block.key_channels, self.block.value_channels
        attention = positions * keys * (2 * values + 1)
        return Cost(self.block.cost_of(positions, 0).mult_adds + attention, attention, 0)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with weights q_i . k_j + eps, divided by their sum. Shapes as in `attention_cores.dense`; q, k >= 0.

    Computed in float32 at least: k^T v is a sum over all positions.
    """
    batch, height, width = q.shape[0], q.shape[2], q.shape[3]
    wide = torch.promote_types(v.dtype, torch.float32)
    q_BND, k_BND, v_BNV = (
        viewed(t.permute(0, 2, 3, 1), batch, height * width, t.shape[1]).to(wide) for t in (q, k, v)
    )
    with without_autocast(q.device.type):
        weighted = q_BND @ (k_BND.transpose(1, 2) @ v_BNV) + _EPS * v_BNV.sum(1, keepdim=True)
        weights = q_BND @ k_BND.sum(1).unsqueeze(2) + _EPS * (height * width)
        context = (weighted / weights).to(v.dtype)
    return viewed(context, batch, height, width, v.shape[1]).permute(0, 3, 1, 2)
