"""Axial attention in the block of an ISA stage: along the rows, then along the columns, or the other way round.

Contract and legend as in interlaced.py.
"""

from typing import Literal

from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock, run_block
from isaseg.models.attention_kernels import attend
from isaseg.models.layers import Cost, total
from isaseg.models.regroup import viewed


def along_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let each position attend to its row. Shapes as in `attention_cores.dense`."""
    batch, _, height, width = q.shape
    q_RWD, k_RWD, v_RWV = (
        viewed(t.permute(0, 2, 3, 1), batch * height, width, t.shape[1]) for t in (q, k, v)
    )
    context = attend(q_RWD, k_RWD, v_RWV, q.shape[1] ** -0.5, few=True)
    return viewed(context, batch, height, width, v.shape[1]).permute(0, 3, 1, 2)


def along_columns(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let each position attend to its column. Shapes as in `attention_cores.dense`."""
    return along_rows(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3)).transpose(2, 3)


_ORDERS = {"rows_columns": ("rows", "columns"), "columns_rows": ("columns", "rows")}
_CORES = {"rows": along_rows, "columns": along_columns}


class Axial(nn.Module):
    """Attention along one axis at a time (arXiv 2003.07853), without the position terms of Axial-DeepLab.

    Two stages join every position with every other one. The same as ISA with `group_size` (1, W), whose windows are the
    rows and whose lattices are the columns.

    Args:
        channels: C of input and output.
        key_channels: D; default C / 2.
        value_channels: V; default C.
        order: The stages in their order: `rows_columns` or `columns_rows`.
        recompute: As in `InterlacedSparseAttention`.

    Raises:
        ValueError: If `order` is unknown.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        order: Literal["rows_columns", "columns_rows"] = "rows_columns",
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if order not in _ORDERS:
            raise ValueError(f"expected order to be one of {', '.join(_ORDERS)}, got {order=}")
        self.out_channels = channels
        self.order = order
        self.recompute = recompute
        for name in _ORDERS[order]:
            self.add_module(name, AttentionBlock(channels, key_channels, value_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W)."""
        for name in _ORDERS[self.order]:
            x = run_block(self.get_submodule(name), x, _CORES[name], recompute=self.recompute)
        return x

    def cost(self, height: int, width: int) -> Cost:
        """Return the cost for one map. There are N (H + W) scores."""
        positions = height * width
        per_query = {"rows": width, "columns": height}
        stages = ((self.get_submodule(name), positions * number) for name, number in per_query.items())
        return total([block.cost_of(positions, scores) for block, scores in stages])  # type: ignore[operator]

    def extra_repr(self) -> str:
        """Return what defines the operation, for printing."""
        return f"order={self.order}"
