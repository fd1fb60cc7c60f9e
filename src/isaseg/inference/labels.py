"""From coarse logits to the label map at full size, without the logits at full size. Pure PyTorch.

The plain way resizes all K channels to H x W and takes the largest: K * H * W numbers, hundreds of megabytes. But a
bilinear value lies between the coarse values around it. Where one class is above all others at every corner of a
cell, it wins in the whole cell, and elsewhere only the few classes that could win need to be interpolated.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = Sequence[int]

_BUDGET = 2**19  # numbers that a step holds: what fits a cache
_MANY = 48  # classes from which the largest is found faster where the classes of a pixel lie together
_SPARSE = 8  # a band is interpolated cell by cell if it has so many times fewer candidates than pairs of cell and class


def resize(x: Tensor, sizes: Sequence[Size], align_corners: bool) -> Tensor:
    """Resize (B, K, h, w) bilinearly to each of `sizes` in turn."""
    for size in sizes:
        if tuple(size) != x.shape[-2:]:
            x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
    return x


def predict_from(coarse: Tensor, sizes: Sequence[Size], align_corners: bool) -> Tensor:
    """Return `resize(coarse, sizes, align_corners).argmax(1)`, up to ties, in a fraction of its time and memory.

    Args:
        coarse: Logits, float (B, K, h, w), K at most 256.
        sizes: (H, W) to which they are resized, one after the other.
        align_corners: As in `torch.nn.functional.interpolate`.

    Returns:
        Labels, uint8 (B, H, W).
    """
    with torch.autocast(coarse.device.type, enabled=False):
        coarse = coarse.float()
        height, width = sizes[-1]
        rows = _Axis(coarse.shape[2], [s[0] for s in sizes], align_corners, coarse.device)
        columns = _Axis(coarse.shape[3], [s[1] for s in sizes], align_corners, coarse.device)
        labels = coarse.new_empty((len(coarse), height, width), dtype=torch.uint8)
        for one, out in zip(coarse, labels, strict=True):
            for first, last in _bands(rows, _BUDGET // (one.shape[0] * one.shape[2])):
                _band(one, out, rows, columns, first, last, [s[1] for s in sizes], align_corners)
        return labels


def largest(logits: Tensor) -> Tensor:
    """Return the labels, uint8 (H, W), of full-size logits (K, H, W), which are spoilt."""
    if len(logits) >= _MANY:
        return _argmax_last(logits.permute(1, 2, 0).contiguous()).to(torch.uint8)
    return _first_largest(logits.flatten(1)[None])[0].view(logits.shape[1:]).to(torch.uint8)


class _Axis:
    """How one axis is resized: each output pixel is a sum of `span` neighbouring coarse values with weights.

    Pixels that need the same coarse values are a cell; a cell is cut into blocks of at most `side` pixels, so that all
    blocks can be treated as equally large (a shorter one repeats its last pixel).

    Attributes:
        matrix: All weights, (output, coarse).
        first: First coarse value of each cell, consecutive numbers or nearly so.
        cell: Cell of each pixel.
        cell_of_block: Cell of each block.
        pixel: Pixels of each block, (blocks, side).
        weight: Weights of these, (blocks, side, span).
    """

    def __init__(self, coarse: int, sizes: Sequence[int], align_corners: bool, device: torch.device) -> None:
        # what torch does with each unit vector is what it does with any
        unit = torch.eye(coarse, device=device)[None, :, :, None]
        self.matrix = resize(unit, [(n, 1) for n in sizes], align_corners)[0, :, :, 0].T.contiguous()
        used = (self.matrix != 0).int()
        low = used.argmax(1)
        high = coarse - 1 - used.flip(1).argmax(1)
        self.span = int((high - low).max()) + 1
        low = low.clamp(max=coarse - self.span)
        self.first, self.cell, count = torch.unique_consecutive(low, return_inverse=True, return_counts=True)
        self.start = count.cumsum(0) - count
        self.end = self.start + count
        side = max(1, -(-sizes[-1] // coarse))
        blocks = -(-count // side)
        self.cell_of_block = torch.arange(len(count), device=device).repeat_interleave(blocks)
        number = (
            torch.arange(len(self.cell_of_block), device=device)
            - (blocks.cumsum(0) - blocks)[self.cell_of_block]
        )
        begin = self.start[self.cell_of_block] + side * number
        self.pixel = begin[:, None] + torch.arange(side, device=device)
        self.pixel = torch.minimum(self.pixel, self.end[self.cell_of_block][:, None] - 1)
        taps = low[:, None] + torch.arange(self.span, device=device)
        self.weight = self.matrix.gather(1, taps)[self.pixel]


def _bands(rows: _Axis, most: int) -> Iterator[tuple[int, int]]:
    cells = len(rows.first)
    step = max(1, most)
    for first in range(0, cells, step):
        yield first, min(first + step, cells)


def _band(
    coarse: Tensor,
    out: Tensor,
    rows: _Axis,
    columns: _Axis,
    first: int,
    last: int,
    widths: Sequence[int],
    align_corners: bool,
) -> None:
    """Write the labels of the cells of rows `first` to `last`."""
    classes = len(coarse)
    low, high = _extremes(coarse, rows, 1, first, last)
    low, high = _extremes(low, columns, 2)[0], _extremes(high, columns, 2)[1]
    surest, label = low.max(0)
    # rounding may lift a value a little above its corners
    alive = high >= surest - 1e-5 * surest.abs()  # (K, cells, cells)
    del low, high
    number = alive.sum(0, dtype=torch.int16)
    top, bottom = int(rows.start[first]), int(rows.end[last - 1])
    open_cells = number > 1
    candidates = int(number[open_cells].sum())
    if candidates * _SPARSE > classes * number.numel():
        _dense(coarse, out, rows, top, bottom, widths, align_corners)
        return
    across = label.to(torch.uint8).index_select(1, columns.cell)
    out[top:bottom] = across.index_select(0, rows.cell[top:bottom] - first)
    if not candidates:
        return
    mine = ((rows.cell_of_block >= first) & (rows.cell_of_block < last)).nonzero()[:, 0]
    by_block = number.index_select(0, rows.cell_of_block[mine] - first).index_select(1, columns.cell_of_block)
    size = rows.pixel.shape[1] * columns.pixel.shape[1]
    least = 1
    while least < classes:
        most = min(2 * least, classes)
        blocks = ((by_block > least) & (by_block <= most)).nonzero()
        for part in torch.split(blocks, max(1, _BUDGET // (most * size))):
            if len(part):
                row, column = mine[part[:, 0]], part[:, 1]
                _decide(coarse, out, alive, rows, columns, row, column, first, most)
        least = most


def _extremes(
    x: Tensor, axis: _Axis, dim: int, first: int = 0, last: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest of the coarse values that each cell of an axis needs."""
    starts = axis.first[first:last]
    begin, count = int(starts[0]), int(starts[-1]) - int(starts[0]) + 1
    low = high = x.narrow(dim, begin, count)
    for step in range(1, axis.span):
        other = x.narrow(dim, begin + step, count)
        low, high = torch.minimum(low, other), torch.maximum(high, other)
    if count == len(starts):
        return low, high
    return low.index_select(dim, starts - begin), high.index_select(dim, starts - begin)


def _decide(
    coarse: Tensor,
    out: Tensor,
    alive: Tensor,
    rows: _Axis,
    columns: _Axis,
    row: Tensor,
    column: Tensor,
    first: int,
    most: int,
) -> None:
    """Interpolate in n blocks the classes that may win, at most `most` in each, and write the winners."""
    cells = (rows.cell_of_block[row] - first, columns.cell_of_block[column])
    candidate = _listed(alive[:, cells[0], cells[1]].T, most)  # (n, C)
    height, width = coarse.shape[1:]
    down = rows.first[cells[0] + first][:, None] + torch.arange(rows.span, device=coarse.device)
    along = columns.first[cells[1]][:, None] + torch.arange(columns.span, device=coarse.device)
    place = (down * width)[:, None, :, None] + along[:, None, None, :]  # (n, 1, span, span)
    value = coarse.reshape(-1)[candidate[:, :, None, None] * (height * width) + place]  # (n, C, span, span)
    value = _weighted(value, columns.weight[column][:, None, None])  # (n, C, span, side)
    value = _weighted(
        value.transpose(2, 3), rows.weight[row][:, None, None]
    )  # (n, C, side, side): columns, rows
    winner = candidate.gather(1, _first_largest(value.flatten(2))).to(torch.uint8)
    pixel = columns.pixel[column][:, :, None] + (rows.pixel[row] * out.shape[1])[:, None, :]
    out.view(-1)[pixel.flatten()] = winner.flatten()


def _listed(chosen: Tensor, most: int) -> Tensor:
    """Return the numbers of the true entries in each row of a bool (n, K), (n, most), the last one repeated."""
    row, number = chosen.nonzero().unbind(1)
    count = torch.bincount(row, minlength=len(chosen))
    start = count.cumsum(0) - count
    slot = torch.arange(most, device=chosen.device).expand(len(chosen), most)
    return number[start[:, None] + torch.minimum(slot, count[:, None] - 1)]


def _weighted(value: Tensor, weight: Tensor) -> Tensor:
    """Return the sum over the last axis of value (..., span) with weight (..., side, span), (..., side)."""
    total = value[..., :1] * weight[..., 0]
    for step in range(1, value.shape[-1]):
        total.addcmul_(value[..., step : step + 1], weight[..., step])
    return total


def _dense(
    coarse: Tensor,
    out: Tensor,
    rows: _Axis,
    top: int,
    bottom: int,
    widths: Sequence[int],
    align_corners: bool,
) -> None:
    """Write rows `top` to `bottom` with all classes interpolated, a few rows at a time."""
    classes, width = len(coarse), out.shape[1]
    together = classes >= _MANY
    step = max(1, _BUDGET // (classes * width))
    for y in range(top, bottom, step):
        end = min(y + step, bottom)
        low, high = int(rows.first[rows.cell[y]]), int(rows.first[rows.cell[end - 1]]) + rows.span
        x = coarse[None, :, low:high]
        if together:
            x = x.contiguous(memory_format=torch.channels_last)
        x = resize(x, [(high - low, n) for n in widths], align_corners)[0]  # (K, h, W)
        weight = rows.matrix[y:end, low:high]
        if together:
            value = (weight @ x.permute(1, 2, 0).reshape(high - low, -1)).view(end - y, width, classes)
            out[y:end] = _argmax_last(value)
        else:
            value = (weight @ x.permute(1, 0, 2).reshape(high - low, -1)).view(end - y, classes, width)
            out[y:end] = _first_largest(value)


def _argmax_last(value: Tensor) -> Tensor:
    if value.device.type == "cpu":  # NumPy's is vectorised along the axis, torch's is not
        return torch.from_numpy(value.numpy().argmax(-1))
    return value.argmax(-1)


def _first_largest(value: Tensor) -> Tensor:
    """Return `value.argmax(1)` of (n, K, m); `value` is spoilt. Made of vectorised steps, five times as fast on a CPU.

    Differences to the largest below 1e-30 count as none.
    """
    classes = value.shape[1]
    rank = torch.arange(classes, 0, -1, device=value.device, dtype=value.dtype)[:, None]
    value.sub_(value.amax(1, keepdim=True))
    torch.add(rank, value, alpha=1e30, out=value)
    return (classes - value.amax(1)).long()
