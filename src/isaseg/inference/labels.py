"""Label maps from coarse logits. Pure PyTorch, except for NumPy's argmax on a CPU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = Sequence[int]

_STRIP = 2**19  # numbers in a strip of horizontally resized logits: 2 MiB, which stays in the cache
_TOGETHER = 2**28  # full-size logits of several pictures at once, off the CPU: 1 GiB


def resize(x: Tensor, sizes: Sequence[Size], align_corners: bool) -> Tensor:
    """Resize (B, K, h, w) bilinearly to each of `sizes` in turn."""
    for size in sizes:
        if tuple(size) != x.shape[-2:]:
            x = F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)
    return x


def labels_from_coarse(coarse: Tensor, sizes: Sequence[Size], align_corners: bool) -> Tensor:
    """Return `resize(coarse, sizes, align_corners).argmax(1)`, up to ties.

    On a CPU the full-size logits are never held: they are made and reduced one row at a time. Elsewhere they are held of
    as many pictures at once as fit into 1 GiB, and at least of one.

    Args:
        coarse: Logits, float (B, K, h, w), K at most 256.
        sizes: (H, W) to which they are resized, one after the other.
        align_corners: As in `torch.nn.functional.interpolate`.

    Returns:
        Labels, uint8 (B, H, W).
    """
    with torch.autocast(coarse.device.type, enabled=False):
        coarse = coarse.float()
        if coarse.device.type == "cpu":
            return torch.stack([_labels_by_row(one, sizes, align_corners) for one in coarse])
        number = max(1, _TOGETHER // (coarse.shape[1] * max(height * width for height, width in sizes)))
        parts = [largest(resize(some, sizes, align_corners)) for some in torch.split(coarse, number)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def largest(logits: Tensor) -> Tensor:
    """Return the class of the largest of logits (..., K, H, W), uint8 (..., H, W)."""
    if logits.device.type == "cpu":
        return _argmax_last(logits.movedim(-3, -1).contiguous())
    return logits.argmax(-3).to(torch.uint8)


def _labels_by_row(coarse: Tensor, sizes: Sequence[Size], align_corners: bool) -> Tensor:
    classes, length, _ = coarse.shape
    height, width = sizes[-1]
    # A resized unit vector holds the weights of one coarse row, so that any sequence of sizes is one matrix (H, h).
    unit = torch.eye(length)[None, :, :, None]
    weight = resize(unit, [(s[0], 1) for s in sizes], align_corners)[0, :, :, 0].T
    used = (weight != 0).int()
    begin, end = used.argmax(1).tolist(), (length - used.flip(1).argmax(1)).tolist()
    labels = torch.empty(height, width, dtype=torch.uint8)
    step = max(1, _STRIP * height // (width * classes * length))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        low, high = begin[top], end[bottom - 1]
        # channels last, so that the logits of a pixel lie together: torch and NumPy are fastest on those
        strip = coarse[None, :, low:high].contiguous(memory_format=torch.channels_last)
        wide = resize(strip, [(high - low, s[1]) for s in sizes], align_corners)[0]
        wide = wide.permute(1, 2, 0).flatten(1)  # (high - low, W * K)
        for y in range(top, bottom):
            row = weight[y, begin[y] : end[y]] @ wide[begin[y] - low : end[y] - low]
            labels[y] = _argmax_last(row.view(width, classes))
    return labels


def _argmax_last(x: Tensor) -> Tensor:
    # NumPy's argmax is vectorised along the last axis, torch's is not
    return torch.from_numpy(x.numpy().argmax(-1)).to(torch.uint8)
