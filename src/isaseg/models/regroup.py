"""How a map is cut into the groups of interlaced sparse self-attention, and put together again.

Legend: B batch, C channels, H W map, P = `group_size`, Q = (H / P_h, W / P_w). Each function is one copy, into
channels-last memory: attention wants the channels of a token together. Pure PyTorch.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AXES",
    "Grid",
    "Layout",
    "deinterlace",
    "for_any_size",
    "grid",
    "interlace",
    "merge_windows",
    "pad_to_multiple",
    "padded",
    "regroup",
    "split_windows",
]

Size = tuple[int, int]
Layout = Literal["map", "long_range", "short_range"]

# Where the axes (B, Q_h, P_h, Q_w, P_w) of a map stand: first those that number the groups, then those inside one.
AXES: dict[str, tuple[int, ...]] = {
    "map": (0, 1, 2, 3, 4),
    "long_range": (0, 2, 4, 1, 3),
    "short_range": (0, 1, 3, 2, 4),
}


class Grid(NamedTuple):
    """A map of `batch` images of (Q_h * P_h) x (Q_w * P_w)."""

    batch: int
    rows: int
    group_rows: int
    columns: int
    group_columns: int

    def shape(self, layout: Layout) -> tuple[int, int, int]:
        """Return number, height and width of the groups; of the map itself, of the images."""
        axes = [self[axis] for axis in AXES[layout]]
        if layout == "map":
            return axes[0], axes[1] * axes[2], axes[3] * axes[4]
        return axes[0] * axes[1] * axes[2], axes[3], axes[4]


def grid(batch: int, size: Size, group_size: Size) -> Grid:
    """Return the grid of a map.

    Raises:
        ValueError: If `size` is not a multiple of `group_size`.
    """
    height, width = size
    if height % group_size[0] or width % group_size[1]:
        raise ValueError(
            f"expected a map whose height and width are multiples of {group_size=}, got {height=}, {width=}; "
            "pad it first with pad_to_multiple"
        )
    return Grid(batch, height // group_size[0], group_size[0], width // group_size[1], group_size[1])


def regroup(x: Tensor, grid: Grid, before: Layout, after: Layout) -> Tensor:
    """Take a map, or its groups, from one layout to another.

    Args:
        x: (n, C, h, w) with n, h, w = `grid.shape(before)`.
        grid: Of the whole map.
        before: How `x` is laid out: `map`, the groups of the long-range stage, or the windows of the short-range one.
        after: How it is to be.

    Returns:
        (n, C, h, w) with n, h, w = `grid.shape(after)`.
    """
    axes = AXES[before]
    x = x.permute(0, 2, 3, 1).reshape(*(grid[axis] for axis in axes), x.shape[1])
    x = x.permute(*(axes.index(axis) for axis in AXES[after]), 5)
    return x.reshape(*grid.shape(after), x.shape[-1]).permute(0, 3, 1, 2)


def interlace(x: Tensor, group_size: Size) -> Tensor:
    """Regroup a map so that each group holds every P-th position.

    Position (i, j) joins group (i mod P_h, j mod P_w); within a group the order is row-major.

    Args:
        x: Feature map, (B, C, H, W), H and W multiples of `group_size`.
        group_size: (P_h, P_w).

    Returns:
        (B * P_h * P_w, C, H / P_h, W / P_w), the batch index slowest. `deinterlace` is the exact inverse.

    Raises:
        ValueError: If H or W is not a multiple.
    """
    return regroup(x, grid(x.shape[0], (x.shape[2], x.shape[3]), group_size), "map", "long_range")


def deinterlace(x: Tensor, group_size: Size) -> Tensor:
    """Undo `interlace`: (B * P_h * P_w, C, Q_h, Q_w) to (B, C, Q_h * P_h, Q_w * P_w)."""
    batch = x.shape[0] // (group_size[0] * group_size[1])
    return regroup(x, Grid(batch, x.shape[2], group_size[0], x.shape[3], group_size[1]), "long_range", "map")


def split_windows(x: Tensor, group_size: Size) -> Tensor:
    """Cut a map (B, C, H, W) into its windows, (B * Q_h * Q_w, C, P_h, P_w), row-major.

    Raises:
        ValueError: If H or W is not a multiple of the window.
    """
    return regroup(x, grid(x.shape[0], (x.shape[2], x.shape[3]), group_size), "map", "short_range")


def merge_windows(x: Tensor, size: Size) -> Tensor:
    """Undo `split_windows`: (B * Q_h * Q_w, C, P_h, P_w) to (B, C, H, W), where `size` = (H, W)."""
    rows, columns = size[0] // x.shape[2], size[1] // x.shape[3]
    batch = x.shape[0] // (rows * columns)
    return regroup(x, Grid(batch, rows, x.shape[2], columns, x.shape[3]), "short_range", "map")


def pad_to_multiple(x: Tensor, group_size: Size) -> tuple[Tensor, Size]:
    """Pad a map with zeros, evenly on both sides, to a multiple of `group_size`.

    The smaller half goes to the top and left, as in openseg and mmsegmentation.

    Returns:
        The padded map (B, C, Q_h * P_h, Q_w * P_w), and the (top, left) offset of the original in it.
    """
    height, width = x.shape[-2:]
    pad_h, pad_w = padded(height, group_size[0]) - height, padded(width, group_size[1]) - width
    top, left = pad_h // 2, pad_w // 2
    if for_any_size() or pad_h or pad_w:
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))
    return x, (top, left)


def padded(size: int, multiple: int) -> int:
    """Return the next multiple, in terms that torch.export can simplify where `size` is a symbol."""
    return (size + multiple - 1) // multiple * multiple


def for_any_size() -> bool:
    """Tell whether an ONNX graph is being recorded, which serves every size: no branch may then depend on one."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
