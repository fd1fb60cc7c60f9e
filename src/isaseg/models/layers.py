"""What all context modules share: their cost, 1x1 convolutions and widths."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.regroup import for_any_size


class Cost(NamedTuple):
    """What one forward pass over one map (batch size 1) takes, by the definition of the module.

    Products are counted as torch.utils.flop_counter counts them (which reports two for each multiply-add): convolutions,
    including the taps on their zero padding, and matrix products. Norms, activations, softmax, pooling and resizing are
    not counted. Under `by_definition` exactly this much runs; otherwise it may be less.

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
    faster still, up to 1.6 times, if the positions of the map are presented as 16 images.
    """
    if x.device.type != "cpu" or for_any_size():  # ONNX Runtime optimises convolutions, not matrix products
        return F.conv2d(x, weight, bias)
    x_BHWC = x.permute(0, 2, 3, 1)
    as_product = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype is torch.float64
    if as_product or not x.numel() or x_BHWC[..., 0].numel() % 16:
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
