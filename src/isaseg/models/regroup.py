"""How a map is cut into the groups of interlaced sparse self-attention, and put together again.

Legend: B batch, C channels, H W map, P = `group_size`, Q = (H / P_h, W / P_w). Pure PyTorch.

All goes through the cells of a map, a view (B, Q_h, P_h, Q_w, P_w, C). Groups are one copy of it into channels-last
memory: attention wants the channels of a token together.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]
Kind = Literal["long_range", "short_range"]

# The order of the axes of cells that gives groups: first the three that number them, then the two inside one, then C.
_TO_GROUPS = {"long_range": (0, 2, 4, 1, 3, 5), "short_range": (0, 1, 3, 2, 4, 5)}
_TO_CELLS = {"long_range": (0, 3, 1, 4, 2, 5), "short_range": (0, 1, 3, 2, 4, 5)}


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
    return _groups(_cells(x, group_size), "long_range")


def deinterlace(x: Tensor, group_size: Size) -> Tensor:
    """Undo `interlace`: (B * P_h * P_w, C, Q_h, Q_w) to (B, C, Q_h * P_h, Q_w * P_w)."""
    return _map(_cells_of_groups(x, "long_range", group_size))


def split_windows(x: Tensor, group_size: Size) -> Tensor:
    """Cut a map (B, C, H, W) into its windows, (B * Q_h * Q_w, C, P_h, P_w), row-major.

    Raises:
        ValueError: If H or W is not a multiple of the window.
    """
    return _groups(_cells(x, group_size), "short_range")


def merge_windows(x: Tensor, size: Size) -> Tensor:
    """Undo `split_windows`: (B * Q_h * Q_w, C, P_h, P_w) to (B, C, H, W), where `size` = (H, W)."""
    return _map(_cells_of_groups(x, "short_range", (size[0] // x.shape[2], size[1] // x.shape[3])))


def in_groups(
    run: Callable[[Tensor], Tensor], x: Tensor, group_size: Size, kind: Kind, tokens: int | None, reuse: bool
) -> Tensor:
    """Return what `run` makes of the groups of a map, as a map.

    Args:
        run: Takes groups as a batch, (n, C, h, w), and treats each like any other.
        x: The map, (B, C, H, W).
        group_size: (P_h, P_w), which divides H and W.
        kind: Which groups: those of `interlace` or those of `split_windows`.
        tokens: About how many positions `run` is given at a time; None means all.
        reuse: With `tokens`, write the result into the memory of `x`. `run` must keep the number and type of channels.
    """
    cells = _cells(x, group_size)
    axis, other = _TO_GROUPS[kind][1:3]
    if tokens is None:
        out = run(_groups(cells, kind))
        return _map(_cells_of_groups(out, kind, (cells.shape[axis], cells.shape[other])))
    done = cells if reuse else None
    few = max(tokens * cells.shape[axis] // max(cells[..., 0].numel(), 1), 1)
    for start in range(0, cells.shape[axis], few):
        part = cells.narrow(axis, start, min(few, cells.shape[axis] - start))
        out = _cells_of_groups(run(_groups(part, kind)), kind, (part.shape[axis], part.shape[other]))
        if done is None:
            done = out.new_empty((*cells.shape[:-1], out.shape[-1]))
        done.narrow(axis, start, part.shape[axis]).copy_(out)  # while it is in the cache
    assert done is not None
    return _map(done)


def _cells(x: Tensor, group_size: Size) -> Tensor:
    height, width = x.shape[-2:]
    if height % group_size[0] or width % group_size[1]:
        raise ValueError(
            f"expected a map whose height and width are multiples of {group_size=}, got {height=}, {width=}; "
            "pad it first with pad_to_multiple"
        )
    x_BHWC = x.permute(0, 2, 3, 1)
    return torch.unflatten(torch.unflatten(x_BHWC, 2, (-1, group_size[1])), 1, (-1, group_size[0]))


def _map(cells: Tensor) -> Tensor:
    batch, n_h, h, n_w, w, channels = cells.shape
    return viewed(cells, batch, n_h * h, n_w * w, channels).permute(0, 3, 1, 2)


def _groups(cells: Tensor, kind: str) -> Tensor:
    """Return (n, C, h, w)."""
    groups = cells.permute(_TO_GROUPS[kind])
    batch, n_h, n_w, *shape = groups.shape
    return viewed(groups, batch * n_h * n_w, *shape).contiguous().permute(0, 3, 1, 2)


def _cells_of_groups(x: Tensor, kind: str, number: Size) -> Tensor:
    """Return the cells of groups (B * n_h * n_w, C, h, w), where `number` = (n_h, n_w)."""
    return torch.unflatten(x.permute(0, 2, 3, 1), 0, (-1, *number)).permute(_TO_CELLS[kind])


@torch.library.custom_op("isaseg::regroup", mutates_args=(), tags=torch.Tag.flexible_layout)
def regroup(x: Tensor, batch: int, size: list[int], group_size: list[int], given: str, wanted: str) -> Tensor:
    """Take a map, or the tokens of its groups, to another of these forms, as one operator of torch.compile.

    Traced step by step, regrouping gives the compiler views whose strides are products of rounded sizes. Compilation
    then takes many minutes, and on a CPU, beside a convolution, it fails where strides are compared: "cannot determine
    truth value of Relational" (pytorch#185510, pytorch#172204). Regrouping only copies, so hiding it costs nothing.

    Args:
        x: (B, C, H, W) where `given` is `map`, (G, L, C) where it is a `Kind`.
        batch: B.
        size: (H, W).
        group_size: (P_h, P_w).
        given: The form of `x`: `map`, `long_range` or `short_range`.
        wanted: The form of the result, likewise.

    Returns:
        A new tensor, (B, C, H, W) or (G, L, C). Groups are those of the map padded with zeros; a map is cropped.
    """
    window = (group_size[0], group_size[1])
    number = lattice(size, group_size)
    if given == "map":
        cells = _cells(pad_to_multiple(x, window)[0], window)
    else:
        of_groups, in_group = (window, number) if given == "long_range" else (number, window)
        x = torch.unflatten(x, 1, in_group).permute(0, 3, 1, 2)
        cells = _cells_of_groups(x, given, of_groups)
    if wanted == "map":
        offset = [(n * p - length) // 2 for n, p, length in zip(number, window, size, strict=True)]
        out = crop(_map(cells), (offset[0], offset[1]), (size[0], size[1]))
    else:
        out = _groups(cells, wanted).flatten(2).transpose(1, 2)
    out = out.contiguous()
    return out.clone() if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() else out


@regroup.register_fake
def _(x: Tensor, batch: int, size: list[int], group_size: list[int], given: str, wanted: str) -> Tensor:
    channels = x.shape[1 if given == "map" else 2]
    if wanted == "map":
        return x.new_empty(batch, channels, *size)
    return x.new_empty(*groups_of(batch, size, group_size, wanted), channels)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.call = inputs[1:]


def _back(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    batch, size, group_size, given, wanted = (
        ctx.call
    )  # padding and cropping are adjoint, a permutation is orthogonal
    return regroup(gradient, batch, size, group_size, wanted, given), None, None, None, None, None


regroup.register_autograd(_back, setup_context=_keep)


def two_positive(name: str, value: Sequence[int]) -> Size:
    """Return a pair of integers.

    Raises:
        ValueError: If there are not two, or one is below 1 or no integer.
    """
    pair = () if isinstance(value, int) else value
    if len(pair) != 2 or any(int(p) != p or p < 1 for p in pair):
        raise ValueError(f"expected {name} as two positive integers [rows, columns], got {name}={value}")
    return int(pair[0]), int(pair[1])


def groups_of(batch: int, size: Sequence[int], group_size: Sequence[int], kind: str) -> Size:
    """Return (G, L), the number of groups and the tokens in each, of a batch of maps of `size`."""
    high, wide = lattice(size, group_size)
    window = group_size[0] * group_size[1]
    return (batch * window, high * wide) if kind == "long_range" else (batch * (high * wide), window)


def lattice(size: Sequence[int], group_size: Sequence[int]) -> Size:
    """Return (Q_h, Q_w), the windows of a padded map in each direction."""
    return padded(size[0], group_size[0]) // group_size[0], padded(size[1], group_size[1]) // group_size[1]


def viewed(x: Tensor, *shape: int) -> Tensor:
    """Return `x.reshape(shape)`; for torch.compile and torch.export by way of one axis.

    Otherwise they compare sizes with products of sizes, which with symbols they cannot always decide.
    """
    return (x.reshape(-1) if torch.compiler.is_compiling() else x).reshape(shape)


def pad_to_multiple(x: Tensor, group_size: Size) -> tuple[Tensor, Size]:
    """Pad a map with zeros, evenly on both sides, to a multiple of `group_size`.

    The smaller half goes to the top and left, as in openseg and mmsegmentation.

    Returns:
        The padded map (B, C, Q_h * P_h, Q_w * P_w), and the (top, left) offset of the original in it.
    """
    height, width = x.shape[-2:]
    size = padded(height, group_size[0]), padded(width, group_size[1])
    pad_h, pad_w = size[0] - height, size[1] - width
    top, left = pad_h // 2, pad_w // 2
    if _exports():
        (more_h, more_w) = group_size
        x = _picked(F.pad(x, (more_w, more_w, more_h, more_h)), (more_h - top, more_w - left), size)
    elif torch.compiler.is_compiling() or pad_h or pad_w:  # a compiled graph serves other sizes too
        x = F.pad(x, (left, pad_w - left, top, pad_h - top))
    return x, (top, left)


def crop(x: Tensor, offset: Size, size: Size) -> Tensor:
    """Return the `size` = (H, W) of a map at `offset` = (top, left): what `pad_to_multiple` has padded."""
    if _exports():
        return _picked(x, offset, size)
    return x[..., offset[0] : offset[0] + size[0], offset[1] : offset[1] + size[1]]


def _picked(x: Tensor, offset: Size, size: Size) -> Tensor:
    """Crop by the numbers of rows and columns: of a slice, torch.export wants to prove that it lies inside."""
    for axis, (start, length) in enumerate(zip(offset, size, strict=True), start=2):
        x = x.index_select(axis, torch.arange(length, device=x.device) + start)
    return x


def _exports() -> bool:
    """Return whether torch.export records a program, other than for ONNX, whose graph has slices."""
    return torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export()


def padded(size: int, multiple: int) -> int:
    """Return the next multiple, in terms that torch.export can simplify where `size` is a symbol."""
    return (size + multiple - 1) // multiple * multiple


def compiles() -> bool:
    """Return whether torch.compile records a graph: a program of torch.export must not need operators of this project."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def for_any_size() -> bool:
    """Return whether an ONNX graph is being recorded. It must serve every size, so no branch may depend on one."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()
