"""Cross-entropy of coarse logits against a fine target, without the fine logits. Pure PyTorch.

Resizing K classes to the size of the image, taking logarithms and going all the way back takes about twenty passes over
K values per pixel: 41 % of a training step of ResNet-50 in bf16 on a CPU. Here one tile at a time is computed forwards
and backwards: on a CPU a tile of one image that fits into the cache, elsewhere as many whole images as memory allows.
Legend: B batch, K classes, h w coarse map, H W target; a tile has R rows and S columns, and r and s coarse cells below.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isaseg.models.attention_kernels import without_autocast

_TILE = 64  # pixels per side: 2.4 MB with 150 classes
_AT_ONCE = 2**27  # fine logits of a tile on a GPU: 512 MiB, held twice


def resized_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, align_corners: bool
) -> Tensor:
    """Return the summed cross-entropy of `logits`, resized bilinearly to the size of `target`; a float32 scalar.

    It is computed in float32, or in float64 for float64 logits. The gradient with respect to the logits is computed
    along with the loss and kept until the backward pass. It cannot be differentiated again.

    Args:
        logits: (B, K, h, w).
        target: Integers (B, H, W).
        weight: One weight per class, (K,), or None.
        ignore_index: The label to leave out.
        align_corners: As in `torch.nn.functional.interpolate`.
    """
    total: Tensor = _Resized.apply(logits, target, weight, ignore_index, align_corners)
    return total


class _Resized(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        ignore_index: int,
        align_corners: bool,
    ) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        with without_autocast(logits.device.type):
            coarse_BhwK = logits.permute(0, 2, 3, 1).to(dtype).contiguous()
            gradient = torch.zeros_like(coarse_BhwK)
            matrix = _matrix if target.device.type == "cpu" else _kept_matrix
            rows, columns = (
                matrix(n, m, align_corners, dtype, target.device)
                for n, m in zip(target.shape[1:], coarse_BhwK.shape[1:3], strict=True)
            )
            total = coarse_BhwK.new_zeros(())
            for images, fine, under in _tiles(target.shape, coarse_BhwK.shape, target.device.type):
                row_Rr, column_Ss = rows[fine[0], under[0]], columns[fine[1], under[1]]
                tile, labels = coarse_BhwK[(images, *under)], target[(images, *fine)]
                loss, of_tile = _tile(tile, row_Rr, column_Ss, labels, weight, ignore_index)
                total += loss
                gradient[(images, *under)].add_(of_tile)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        # scaled before it is rounded, because it may overflow float16 otherwise
        return (upstream * gradient).to(ctx.dtype).permute(0, 3, 1, 2), None, None, None, None


def _tile(
    coarse_rsK: Tensor,
    row_Rr: Tensor,
    column_Ss: Tensor,
    target_RS: Tensor,
    weight: Tensor | None,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of a tile, and its gradient with respect to the coarse cells under it.

    `coarse_rsK` and `target_RS` may have an axis of images before the others.
    """
    shape = coarse_rsK.shape
    tall_RsK = torch.unflatten(row_Rr @ coarse_rsK.flatten(-2), -1, shape[-2:])
    logarithm_RSK = (column_Ss @ tall_RsK).log_softmax(-1)
    ignored_RS1 = (target_RS == ignore_index).unsqueeze(-1)
    label_RS1 = target_RS.long().unsqueeze(-1).masked_fill(ignored_RS1, 0)
    share_RS1 = (~ignored_RS1).to(coarse_rsK.dtype)
    if weight is not None:
        share_RS1 = share_RS1 * weight.to(coarse_rsK.dtype)[label_RS1]
    own_RS1 = logarithm_RSK.gather(-1, label_RS1).masked_fill(ignored_RS1, 0)
    loss = -(own_RS1 * share_RS1).sum()
    gradient_RSK = logarithm_RSK.exp_().mul_(share_RS1)
    gradient_RSK.scatter_add_(-1, label_RS1, -share_RS1)
    tall_RsK = column_Ss.T @ gradient_RSK
    return loss, (row_Rr.T @ tall_RsK.flatten(-2)).view(shape)


def _tiles(
    fine: torch.Size, coarse: torch.Size, device: str
) -> Iterator[tuple[int | slice, tuple[slice, slice], tuple[slice, slice]]]:
    """Yield images, rows and columns of each tile, and rows and columns of the coarse cells it is made from.

    On a CPU a tile is of one image, given by its index, so that a tile has no axis of images.
    """
    batch, height, width = fine
    images: list[int | slice] = list(range(batch))
    sides = (_TILE, _TILE)
    if device != "cpu":
        row = max(width * coarse[3], 1)
        number = max(_AT_ONCE // (height * row), 1)
        images = [slice(first, first + number) for first in range(0, batch, number)]
        sides = max(_AT_ONCE // row, 1), width
    axes = []
    for n, m, side in zip(fine[1:], coarse[1:3], sides, strict=True):
        spans = [(first, min(first + side, n)) for first in range(0, n, side)]
        # a pixel is interpolated from two neighbouring cells; one more on either side is a safe margin
        axes.append([(slice(a, b), slice(max(a * m // n - 2, 0), min(b * m // n + 3, m))) for a, b in spans])
    for some in images:
        for rows, cells in axes[0]:
            for columns, under in axes[1]:
                yield some, (rows, columns), (cells, under)


def _matrix(fine: int, coarse: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix (fine, coarse) that resizes an axis bilinearly.

    It is computed on the CPU, because Apple's GPUs have no float64.
    """
    index = torch.arange(fine, dtype=torch.float64, device="cpu")
    if align_corners:
        at = index * ((coarse - 1) / max(fine - 1, 1))
    else:
        at = ((index + 0.5) * (coarse / fine) - 0.5).clamp(0, coarse - 1)
    cells = torch.arange(coarse, device="cpu")
    return (1 - (at[:, None] - cells).abs()).clamp(min=0).to(dtype).to(device)


# So that steps of the same size copy nothing to the device. A matrix takes 512 KiB for 1024 pixels at stride 8.
_kept_matrix = lru_cache(maxsize=8)(_matrix)
