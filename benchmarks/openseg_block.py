"""The ISA block as openseg.pytorch defines it, for comparison: written from its definition, not from its code.

In each group, queries and keys are two convolutions with norm and ReLU, values are one without norm or bias, and the
context is projected with norm and ReLU. Maps are contiguous, layers are torch's own, and scores are held.
"""

import torch
from torch import Tensor, nn


class OpensegBlock(nn.Module):
    """Long-range, then short-range attention with groups of 8 x 8; (B, C, H, W) to the same, for any H and W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.long_range, self.short_range = _Attention(channels), _Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), padded evenly on both sides to multiples of 8."""
        batch, channels, height, width = x.shape
        more_h, more_w = -height % 8, -width % 8
        top, left = more_h // 2, more_w // 2
        x = nn.functional.pad(x, (left, more_w - left, top, more_h - top))
        rows, columns = x.shape[2] // 8, x.shape[3] // 8
        x = x.reshape(batch, channels, rows, 8, columns, 8).permute(0, 3, 5, 1, 2, 4)
        x = self.long_range(x.reshape(-1, channels, rows, columns))
        x = x.reshape(batch, 8, 8, channels, rows, columns).permute(0, 4, 5, 3, 1, 2)
        x = self.short_range(x.reshape(-1, channels, 8, 8))
        x = x.reshape(batch, rows, columns, channels, 8, 8).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, channels, rows * 8, columns * 8)
        return x[..., top : top + height, left : left + width]


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        keys = channels // 2
        self.query = nn.Sequential(*_layers(channels, keys), *_layers(keys, keys))
        self.key = nn.Sequential(*_layers(channels, keys), *_layers(keys, keys))
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.proj = nn.Sequential(*_layers(channels, channels))
        self.scale = keys**-0.5

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key * self.scale, -1)
        out: Tensor = self.proj((value @ weights.transpose(1, 2)).view_as(x))
        return out


def _layers(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
