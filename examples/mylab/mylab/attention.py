"""A context module: any `nn.Module` that is built for a number of channels and maps (B, C, H, W) to (B, C, H, W)."""

from torch import Tensor, nn


class StripMean(nn.Module):
    """Give every position the mean of its row and the mean of its column, as strip pooling does (arXiv 2003.13328)."""

    def __init__(self, channels: int, bias: bool = True) -> None:
        super().__init__()
        self.row = nn.Conv2d(channels, channels, 1, bias=bias)
        self.column = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        rows: Tensor = self.row(x.mean(3, keepdim=True))  # (B, C, H, 1)
        columns: Tensor = self.column(x.mean(2, keepdim=True))  # (B, C, 1, W)
        return (rows + columns).relu()
