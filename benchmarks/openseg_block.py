"""The ISA block as openseg.pytorch defines it, for comparison: written from its definition, not from its code.

Each map is cut into groups; in each, queries and keys are two convolutions with norm and ReLU, values one without norm
or bias, and what attends is projected with norm and ReLU. Contiguous maps, torch's own layers, scores held.
"""

import torch
from torch import Tensor, nn


class OpensegBlock(nn.Module):
    """Long-range, then short-range attention with groups of 8 x 8; (B, C, H, W) to the same, multiples of 8."""

    def __init__(self, channels: int, group: int = 8) -> None:
        super().__init__()
        self.group = group
        self.long_range, self.short_range = _Attention(channels), _Attention(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W), padded on both sides if need be."""
        batch, channels, height, width = x.shape
        group = self.group
        more_h, more_w = -height % group, -width % group
        top, left = more_h // 2, more_w // 2
        x = nn.functional.pad(x, (left, more_w - left, top, more_h - top))
        rows, columns = x.shape[2] // group, x.shape[3] // group
        x = x.reshape(batch, channels, rows, group, columns, group).permute(0, 3, 5, 1, 2, 4)
        x = self.long_range(x.reshape(-1, channels, rows, columns))
        x = x.reshape(batch, group, group, channels, rows, columns).permute(0, 4, 5, 3, 1, 2)
        x = self.short_range(x.reshape(-1, channels, group, group))
        x = x.reshape(batch, rows, columns, channels, group, group).permute(0, 3, 1, 4, 2, 5)
        x = x.reshape(batch, channels, rows * group, columns * group)
        return x[..., top : top + height, left : left + width]


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        keys = channels // 2
        self.query = nn.Sequential(*_layers(channels, keys), *_layers(keys, keys))
        self.key = nn.Sequential(*_layers(channels, keys), *_layers(keys, keys))
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.out = nn.Sequential(*_layers(channels, channels))
        self.scale = keys**-0.5

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).flatten(2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query.transpose(1, 2) @ key * self.scale, -1)
        out: Tensor = self.out((value @ weights.transpose(1, 2)).view_as(x))
        return out


def _layers(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
