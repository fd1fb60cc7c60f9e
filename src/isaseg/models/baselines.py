"""Context modules to compare with ISA: dense attention, pyramid pooling, ASPP, double attention, CGNL, and none.

Contract and legend as in interlaced.py. The outer residual that some papers add is left out, because the head
concatenates the input.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_cores import dense
from isaseg.models.layers import Cost, Pointwise, conv_norm_act, width
from isaseg.models.regroup import for_any_size


class SelfAttention2d(nn.Module):
    """Dense self-attention in the block of an ISA stage, so that a comparison changes nothing but the pattern.

    Computes softmax(q k^T / sqrt(D)) v over all H * W positions. openseg's BaseOC also differs in other things: its
    values have 256 channels and its output projection has no batch norm.

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
        return run_block(self.block, x, dense, recompute=self.recompute)

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N^2 scores."""
        return self.block.cost_of(height * width, (height * width) ** 2)


class PyramidPooling(nn.Module):
    """PSPNet's pyramid: pool to each bin size, 1x1 convolution to C / len(bins), resize, concatenate.

    arXiv 1612.01105, section 3.2. The head concatenates the input and has the fusing convolution.

    Args:
        channels: C of input and output, a multiple of len(bins).
        bins: Height and width of each pooled map.

    Raises:
        ValueError: If C is not a multiple of len(bins), or a bin is below 1.
    """

    def __init__(self, channels: int, bins: Sequence[int] = (1, 2, 3, 6)) -> None:
        super().__init__()
        if not bins or channels % len(bins) or any(int(b) != b or b < 1 for b in bins):
            raise ValueError(f"expected bins of at least 1 whose number divides {channels=}, got {bins=}")
        self.out_channels = channels
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(conv_norm_act(channels, channels // len(bins)) for _ in bins)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W). In training the batch norm of the 1x1 bin needs B >= 2."""
        size = x.shape[-2:]
        pool = _pool_any_size if for_any_size() else F.adaptive_avg_pool2d
        pooled = [branch(pool(x, b)) for b, branch in zip(self.bins, self.branches, strict=True)]
        return torch.cat(
            [F.interpolate(p, size=size, mode="bilinear", align_corners=False) for p in pooled], dim=1
        )

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map: the 1x1 convolutions on the pooled maps. There are no scores."""
        positions = sum(b * b for b in self.bins)
        return Cost(positions * self.out_channels * (self.out_channels // len(self.bins)), 0, 0)


def _pool_any_size(x: Tensor, bins: int) -> Tensor:
    """Compute `F.adaptive_avg_pool2d(x, bins)` as two matrix products, which an ONNX graph can record for any size."""
    weights = []
    index = torch.arange(bins, device=x.device)[:, None]
    for length in x.shape[-2:]:
        position = torch.arange(length, device=x.device)
        first, last = index * length // bins, ((index + 1) * length + bins - 1) // bins
        inside = (position >= first) & (position < last)  # (bins, H), then (bins, W)
        weights.append(inside.to(x.dtype) / (last - first))
    return weights[0] @ x @ weights[1].T


class NoContext(nn.Module):
    """Return the map unchanged, for a head without context.

    The head still concatenates and fuses, so it has the same parameters as with any other module.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, H, W)."""
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return zero."""
        return Cost(0, 0, 0)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling of DeepLabv3 (arXiv 1706.05587, section 3.3).

    The branches are a 1x1 convolution, a 3x3 convolution for each rate, and a 1x1 convolution of the mean over the map,
    each with batch norm and ReLU. They are concatenated and fused by a 1x1 convolution with batch norm and ReLU.

    Args:
        channels: C of input and output.
        rates: Dilation of each 3x3 convolution; (12, 24, 36) at output stride 8.
        branch_channels: Width of each branch; default C / 2 (256 for 512, as in DeepLabv3).

    Raises:
        ValueError: If a rate is below 1.
    """

    def __init__(
        self, channels: int, rates: Sequence[int] = (12, 24, 36), branch_channels: int | None = None
    ) -> None:
        super().__init__()
        if any(int(rate) != rate or rate < 1 for rate in rates):
            raise ValueError(f"expected rates as integers of at least 1, got {rates=}")
        branch = width(branch_channels, channels // 2)
        self.out_channels = channels
        self.point = conv_norm_act(channels, branch)
        self.atrous = nn.ModuleList(conv_norm_act(channels, branch, 3, int(rate)) for rate in rates)
        self.pool = conv_norm_act(channels, branch)
        self.fuse = conv_norm_act((2 + len(rates)) * branch, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W). In training the pooled branch's batch norm needs B >= 2."""
        pooled = self.pool(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        out: Tensor = self.fuse(torch.cat([self.point(x), *(branch(x) for branch in self.atrous), pooled], 1))
        return out

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map: only convolutions. There are no scores."""
        channels, fused = self.fuse.get_parameter("0.weight").shape[:2]
        branch = fused // (2 + len(self.atrous))
        a_pixel = channels * (branch * (1 + 9 * len(self.atrous)) + fused)
        return Cost(height * width * a_pixel + channels * branch, 0, 0)


class DoubleAttention(nn.Module):
    """Double attention of A2-Nets: gather M descriptors of the whole map, then distribute them to the positions.

    Of three 1x1 convolutions of x, a has `value_channels` maps, b and d have M each. The descriptors are
    g = a softmax(b)^T, softmax over all positions. The context is g softmax(d), softmax over the M descriptors. A 1x1
    convolution leads back to C (arXiv 1810.11579, section 3).

    Args:
        channels: C of input and output.
        value_channels: Width of a descriptor; default C / 4.
        descriptors: M, the number of descriptors; default C / 4.
    """

    def __init__(
        self, channels: int, value_channels: int | None = None, descriptors: int | None = None
    ) -> None:
        super().__init__()
        values, number = width(value_channels, channels // 4), width(descriptors, channels // 4)
        self.out_channels = channels
        self.value = Pointwise(channels, values)
        self.gather = Pointwise(channels, number)
        self.distribute = Pointwise(channels, number)
        self.proj = Pointwise(values, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        value_BNV = self.value(x).flatten(2).transpose(1, 2)
        gather_BMN = self.gather(x).flatten(2).softmax(-1)
        descriptors_BMV = gather_BMN @ value_BNV
        share_BNM = self.distribute(x).flatten(2).transpose(1, 2).softmax(-1)
        context = (share_BNM @ descriptors_BMV).transpose(1, 2)
        out: Tensor = self.proj(context.reshape(len(x), -1, *x.shape[-2:]))
        return out

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. Each of the two attentions has N M scores."""
        channels, values = self.proj.weight.shape[:2]
        scores = 2 * height * width * self.gather.out_channels
        conv = 2 * channels * (values + self.gather.out_channels)
        return Cost(height * width * conv + scores * values, scores * values, scores)


class CGNL(nn.Module):
    """Compact generalised non-local: every channel of every position attends to every channel of every position.

    theta, phi and g are 1x1 convolutions of x to (D, H, W), cut into G groups of channels. In a group, whose D / G * N
    entries form one vector, the context is theta (phi^T g): that is (theta phi^T) g of the dot-product kernel, without
    forming the matrix. A 1x1 convolution in G groups leads back to C, followed by a group norm (arXiv 1810.13125).
    phi^T g is divided by the root of its number of terms, an option of the authors' code: the norm undoes it, and
    float16 does not overflow.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        groups: G, a divisor of C and D.

    Raises:
        ValueError: If `groups` does not divide both widths.
    """

    def __init__(self, channels: int, key_channels: int | None = None, groups: int = 8) -> None:
        super().__init__()
        keys = width(key_channels, channels // 2)
        if groups < 1 or channels % groups or keys % groups:
            raise ValueError(f"expected groups to divide {channels=} and key_channels={keys}, got {groups=}")
        self.out_channels = channels
        self.groups = groups
        self.theta, self.phi, self.g = (Pointwise(channels, keys, bias=False) for _ in range(3))
        self.proj = nn.Conv2d(keys, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        phi, g = self.phi(x), self.g(x)
        rows = phi.reshape(len(x) * self.groups, 1, -1)  # the D / G * H * W entries of each group
        dot = rows / rows.shape[-1] ** 0.5 @ g.reshape(len(x) * self.groups, -1, 1)
        del phi, g, rows
        each = dot.view(len(x), self.groups).repeat_interleave(self.theta.out_channels // self.groups, 1)
        out: Tensor = self.norm(self.proj(self.theta(x) * each[..., None, None]))
        return out

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. A dot product is one number per group, so there are no scores."""
        keys, channels = self.theta.weight.shape[:2]
        conv = 3 * channels * keys + channels * keys // self.groups
        return Cost(height * width * (conv + keys), height * width * keys, 0)
