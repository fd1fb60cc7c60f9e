"""The attention block inside every stage, and what all context modules share: their cost, 1x1 convolutions, widths.

Legend: B batch, C channels, H W map, D key channels, V value channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isaseg.models.attend import is_by_definition, without_autocast
from isaseg.models.cores import Core
from isaseg.models.regroup import for_any_size


class Cost(NamedTuple):
    """What one forward pass over one map (batch size 1) takes, by the definition of the module.

    Products are counted as torch.utils.flop_counter counts them (which reports two for each multiply-add): convolutions,
    including the taps on their zero padding, and matrix products. Norms, activations, softmax, pooling and resizing are
    not counted. Under `attend.by_definition` exactly this much runs; otherwise it may be less.

    Attributes:
        mult_adds: Multiply-adds of the convolutions and the attention products together.
        attention_mult_adds: Multiply-adds of the query-key and weight-value products alone.
        score_entries: Number of entries in all attention maps.
    """

    mult_adds: int
    attention_mult_adds: int
    score_entries: int


def total(costs: Sequence[Cost]) -> Cost:
    """Return the sum of several costs."""
    return Cost(*(sum(column) for column in zip(*costs, strict=True)))


def width(given: int | None, default: int) -> int:
    """Return a number of channels: the given one, or the default if None. A default of 0 becomes 1.

    Raises:
        ValueError: If the given number is below 1.
    """
    if given is not None and given < 1:
        raise ValueError(f"expected a number of channels of at least 1, got {given}")
    return max(default, 1) if given is None else given


class Pointwise(nn.Conv2d):
    """A 1x1 convolution with the parameters of `nn.Conv2d`, fast on one thread of a CPU."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H, W) for `x` (B, inputs, H, W)."""
        return pointwise(x, self.weight, self.bias)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 1x1 convolution of a map, by the kernel that is fastest.

    On one CPU thread torch has a slow kernel for 1x1 convolutions of fewer than 16 images (`use_mkldnn` in ATen's
    Convolution.cpp). A matrix product over channels-last memory is faster. Without gradients, oneDNN's convolution is
    faster still, up to 1.6 times: the positions of a map pass for 16 images.
    """
    if x.device.type != "cpu" or for_any_size():  # ONNX Runtime optimises convolutions, not matrix products
        return F.conv2d(x, weight, bias)
    x_BHWC = x.permute(0, 2, 3, 1)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype is torch.float64:
        return F.linear(x_BHWC, weight.flatten(1), bias).permute(0, 3, 1, 2)
    if not x.numel() or x_BHWC[..., 0].numel() % 16:
        return F.linear(x_BHWC, weight.flatten(1), bias).permute(0, 3, 1, 2)
    images = x_BHWC.reshape(16, -1, 1, x.shape[1]).permute(0, 3, 1, 2)
    out = F.conv2d(images, weight, bias)
    return out.permute(0, 2, 3, 1).reshape(*x_BHWC.shape[:3], -1).permute(0, 3, 1, 2)


def conv_norm_act(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution without bias that keeps the size of the map, a batch norm and a ReLU."""
    if kernel == 1:
        conv: nn.Conv2d = Pointwise(inputs, outputs, bias=False)
    else:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class AttentionBlock(nn.Module):
    """Project to query, key and value, attend, project back: the block inside each ISA stage.

    Query and key are two 1x1 convolutions each with batch norm and ReLU, the value is one plain 1x1 convolution, and the
    output is a 1x1 convolution with batch norm and ReLU. There is no residual (mmsegmentation's ISAHead; openseg has the
    same block with `value_bias=False`). The batch norm and ReLU at the end give the next stage an input of the same
    scale (openseg#35). Every layer treats all positions alike, so a block may run on groups as well as on whole maps.
    """

    def __init__(
        self, channels: int, key_channels: int, value_channels: int, *, value_bias: bool = True
    ) -> None:
        super().__init__()
        self.channels, self.key_channels, self.value_channels = channels, key_channels, value_channels
        self.query = _two_layers(channels, key_channels)
        self.key = _two_layers(channels, key_channels)
        self.value = Pointwise(channels, value_channels, bias=value_bias)
        self.proj = conv_norm_act(value_channels, channels)

    def forward(self, x: Tensor, core: Core) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W).

        Args:
            x: The map, or the groups of one as a batch.
            core: Maps query, key and value to the context. Its weights sum to 1 for each position.
        """
        out: Tensor
        if not self._merges(x):
            out = self.proj(core(self.query(x), self.key(x), self.value(x)))
            return out
        conv, *rest = self.proj
        with without_autocast(x.device.type):
            weight, bias = project_values(self.value, conv)  # type: ignore[arg-type]
        out = core(self.query(x), self.key(x), pointwise(x, weight, bias))
        for layer in rest:
            out = layer(out)
        return out

    def _merges(self, x: Tensor) -> bool:
        """Return whether the output projection is applied to the values, which saves one product over all positions.

        It costs a product of the two weights instead, and more in the attention if values are narrower than the map. The
        layers themselves are then not called, nor are their hooks.
        """
        if is_by_definition() or torch.compiler.is_exporting() or self.value_channels < self.channels:
            return False
        return torch.compiler.is_compiling() or x[:, 0].numel() > self.channels

    def cost_of(self, positions: int, score_entries: int) -> Cost:
        """Return the cost for a map of `positions` pixels with `score_entries` in its attention maps."""
        conv = (
            2 * (self.channels + self.key_channels) * self.key_channels
            + 2 * self.channels * self.value_channels
        )
        attention = score_entries * (self.key_channels + self.value_channels)
        return Cost(positions * conv + attention, attention, score_entries)


def run_block(module: nn.Module, x: Tensor, core: Core, *, recompute: bool) -> Tensor:
    """Return `module(x, core)`. With `recompute`, training keeps `x` alone, and the backward pass runs the module again.

    Batch norms count the batch once.
    """
    out: Tensor
    if not (recompute and module.training):
        out = module(x, core)
    elif torch.compiler.is_compiling():  # its backward graph has no running statistics
        out = checkpoint(module, x, core, use_reentrant=False)
    else:
        contexts = partial(_contexts, module)
        out = checkpoint(module, x, core, use_reentrant=False, context_fn=contexts)
    return out


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _as_they_were(module)


@contextmanager
def _as_they_were(module: nn.Module) -> Iterator[None]:
    """Restore the buffers, such as running statistics, at the end."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def project_values(value: nn.Conv2d, proj: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Return weight (C, C, 1, 1) and bias of the output projection applied to the values.

    The attention weights of a position sum to 1, so a bias may be added before attending or after it.
    """
    outer = proj.weight.flatten(1)
    bias = proj.bias
    if value.bias is not None:
        bias = outer @ value.bias if bias is None else outer @ value.bias + bias
    return (outer @ value.weight.flatten(1))[:, :, None, None], bias


def _two_layers(channels: int, key_channels: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm_act(channels, key_channels), *conv_norm_act(key_channels, key_channels))
