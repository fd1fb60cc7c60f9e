"""What reaches a pixel: field of view, attention support, and the group accuracy that they allow on Lamps.

All of it is measured on the untrained modules, by the support of gradients: there is no formula that could drift from
the code. The bound assumes a perfect decision wherever the cue is in reach, and a guess among three lamp colours
elsewhere.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

LAMP = 7  # class of the lit lamp
GROUPS = 3  # lamp colours
_LARGEST = 1024


class FieldOfView(NamedTuple):
    """The pixels that one feature sees: cell row i sees `size` rows from row i * stride + offset on.

    Attributes:
        size: Height and width of the window in pixels.
        offset: Where the window begins, relative to pixel i * stride: (rows, columns).
        stride: Pixels between neighbouring cells.
    """

    size: tuple[int, int]
    offset: tuple[int, int]
    stride: int


class Bound(NamedTuple):
    """The highest group accuracy that geometry allows, as fractions: over all object pixels, and over the far ones."""

    group_acc: float
    group_acc_far: float


def field_of_view(stages: Sequence[nn.Module]) -> FieldOfView:
    """Measure the pixels that one feature sees after `stages`, e.g. `[backbone, head.reduce]`.

    If a stage returns a list of maps, the next stage takes the last.

    Raises:
        ValueError: If a feature sees more than 1024 pixels.
    """
    # in float32 the border of the window underflows for deep networks
    opened = [_opened(stage, torch.float64) for stage in stages]
    side = 64
    while side <= _LARGEST:
        rows, cols, cell, stride = _seen_from_centre(opened, side)
        if min(rows[0], cols[0]) > 0 and max(rows[-1], cols[-1]) < side - 1:
            size = (rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1)
            return FieldOfView(size, (rows[0] - cell * stride, cols[0] - cell * stride), stride)
        side *= 2
    raise ValueError(
        f"expected a field of view of at most {_LARGEST} pixels, got more; a backbone that sees the whole image sets "
        "no bound"
    )


def attention_support(module: nn.Module, height: int, width: int, channels: int | None = None) -> Tensor:
    """Return which input cells (columns) each output cell (row) of a context module depends on.

    Args:
        module: Context module, (B, C, H, W) to (B, out_channels, H, W).
        height: H.
        width: W.
        channels: C; default `module.out_channels`.

    Returns:
        bool (N, N) with N = H W, row-major.
    """
    opened = _opened(module, torch.float32)  # all terms are positive, so nothing cancels
    depth = channels or int(module.out_channels)  # type: ignore[arg-type]
    cells = height * width
    x_1CHW = _positive((1, depth, height, width), torch.Generator().manual_seed(1), torch.float32)
    chunk = max(1, min(cells, 2**16 // cells))
    rows = []
    for first in range(0, cells, chunk):
        count = min(chunk, cells - first)
        x = x_1CHW.repeat(count, 1, 1, 1).requires_grad_()  # one copy for each output cell of the chunk
        out = opened(x).sum(1).flatten(1)  # (count, N)
        (gradient,) = torch.autograd.grad(out[:, first : first + count].diagonal().sum(), x)
        rows.append(gradient.abs().sum(1).flatten(1) > 0)
    return torch.cat(rows)


def group_accuracy_bound(
    support: Tensor, fov: FieldOfView, scenes: Iterable[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
) -> Bound:
    """Return the group accuracy on Lamps that no model of this reach can exceed, up to luck.

    An object pixel can be decided if a lamp pixel lies in the field of view of a cell on which one of the cells depends
    from which bilinear upsampling makes this pixel. It then counts 1, otherwise 1/3.

    Args:
        support: bool (N, N) from `attention_support`. Each cell depends on itself as well, because the head
            concatenates the input of the context module.
        fov: What each cell sees.
        scenes: Masks (H, W) of Lamps, each with the region (H, W) that is far from the lamp.
    """
    depends = (support | torch.eye(len(support), dtype=torch.bool)).float()
    sums = torch.zeros(2, 2, dtype=torch.float64)  # (all, far) x (score, pixels)
    for mask, far in scenes:
        labels = torch.from_numpy(np.asarray(mask, dtype=np.int64))
        seen = cells_that_see(labels == LAMP, fov)
        informed = (depends @ seen.flatten().float() > 0).view(seen.shape)
        # a positive weight of any of the neighbouring cells suffices
        up = F.interpolate(informed[None, None].float(), labels.shape, mode="bilinear", align_corners=False)
        score = torch.where(up[0, 0] > 0, 1.0, 1 / GROUPS).double()
        objects = (labels > 0) & (labels < LAMP)
        for row, region in enumerate((objects, objects & torch.from_numpy(np.asarray(far, dtype=bool)))):
            sums[row] += torch.stack((score[region].sum(), region.sum().double()))
    return Bound(*(sums[:, 0] / sums[:, 1]).tolist())


def cells_that_see(cue: Tensor, fov: FieldOfView) -> Tensor:
    """Return which cells, bool (H / stride, W / stride), see a pixel of `cue`, bool (H, W)."""
    height, width = cue.shape
    rows = _windows(height, fov.size[0], fov.offset[0], fov.stride)
    cols = _windows(width, fov.size[1], fov.offset[1], fov.stride)
    return rows @ cue.float() @ cols.T > 0


def _windows(length: int, size: int, offset: int, stride: int) -> Tensor:
    """Return which pixels of an axis each cell sees, 0 or 1, (cells, length), clipped at the borders."""
    start = (torch.arange(-(-length // stride)) * stride + offset)[:, None]
    pixel = torch.arange(length)[None]
    return ((pixel >= start) & (pixel < start + size)).float()


def _seen_from_centre(stages: Sequence[nn.Module], side: int) -> tuple[list[int], list[int], int, int]:
    image = _positive((1, 3, side, side), torch.Generator().manual_seed(1), torch.float64).requires_grad_()
    x: Tensor = image
    for stage in stages:
        out = stage(x)
        x = out[-1] if isinstance(out, list | tuple) else out
    cell = x.shape[-1] // 2
    (gradient,) = torch.autograd.grad(x[0, :, cell, cell].sum(), image)
    seen = gradient[0].abs().sum(0) > 0
    rows, cols = (seen.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    return rows, cols, cell, side // x.shape[-1]


def _positive(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=dtype) + 0.5


def _opened(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a module in which a gradient passes wherever one can pass.

    Weights are positive and random, norms neutral, biases 0 and gates 1: every ReLU is active and nothing cancels.
    Max pooling, which passes the gradient of a single pixel, becomes average pooling of the same windows.
    """
    module = copy.deepcopy(module).to(dtype).eval()
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                pool = nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode)
                setattr(parent, name, pool)
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.reset_running_stats()
                child.reset_parameters()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.copy_(_positive(parameter.shape, generator, dtype) / parameter[0].numel())
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0)  # CCNet's gate starts at 0, some norms too
    return module
