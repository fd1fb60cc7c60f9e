"""The head of every experiment: the context module inside it is its only degree of freedom.

A callable `attention(channels)` builds the context module: an `nn.Module` that maps (B, C, H, W) to
(B, out_channels, H, W) for any H and W, has the attribute `out_channels` unless that is C, adds no outer residual and
knows no classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isaseg.models.layers import Pointwise, conv_norm_act


class ContextHead(nn.Module):
    """ISANet's head: reduce (3x3), add context, concatenate, fuse (1x1), drop out, classify (1x1).

    Its layout is that of mmsegmentation's ISAHead: the fusing convolution gets [context, x].

    Args:
        in_channels: Channels of the backbone's map.
        channels: C, the width of the head; 512 as published.
        num_classes: K.
        attention: Builds the context module for `channels`.
        dropout: Probability of dropping a channel before the classifier; 0.1 in mmsegmentation, 0.05 in openseg.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        attention: Callable[[int], nn.Module],
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.reduce = conv_norm_act(in_channels, channels, 3)
        self.attention = attention(channels)
        width = int(getattr(self.attention, "out_channels", channels))
        # openseg lifts x to the width of several parallel contexts before it concatenates
        self.lift = Pointwise(channels, width) if width != channels else nn.Identity()
        self.fuse = conv_norm_act(2 * width, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Pointwise(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K, h, w) for `features` (B, in_channels, h, w)."""
        x = self.reduce(features)
        x = self.fuse(torch.cat((self.attention(x), self.lift(x)), dim=1))
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


class AuxHead(nn.Module):
    """Auxiliary head on an earlier stage, for training only: 3x3 convolution, dropout, classifier.

    Args:
        in_channels: Channels of the backbone's map.
        num_classes: K.
        channels: Width; 256 in mmsegmentation, 512 in openseg.
        dropout: As in `ContextHead`.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.reduce = conv_norm_act(in_channels, channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = Pointwise(channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K, h, w) for `features` (B, in_channels, h, w)."""
        logits: Tensor = self.classifier(self.dropout(self.reduce(features)))
        return logits
