"""Apply a network to pictures as the published protocols do: whole, in windows, at several scales, mirrored.

Whatever is summed over windows, scales and mirror images is linear in the coarse logits of each forward pass, up to
the softmax of each view. So the full-size logits are made a few rows at a time, and memory stays bounded: a picture
of ten thousand pixels a side holds one row of windows. Pure PyTorch, but for OpenCV's resizing of pictures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isaseg.data.resize import INTERPOLATIONS, Resize, base_size, fit
from isaseg.inference.labels import largest, predict_from, resize
from isaseg.models.segmenter import Segmenter

Size = tuple[int, int]

_STRIP = 2**21  # numbers of a strip of full-size logits: 8 MiB


@dataclass(frozen=True)
class Inference:
    """How a network is applied to a picture.

    Args:
        resize: To what the picture is resized first, see `data.resize.base_size`; None: not at all.
        interpolation: Of that: linear or cubic.
        crop_size: (H, W) of sliding windows; None: the whole picture at once. A smaller picture is one window.
        stride: (H, W) from window to window; None: two thirds of `crop_size`. The last one is shifted inwards.
        scales: Factors on the resized picture.
        flip: Add the mirror image of each.
        flip_pairs: Classes that change places in a mirror.
        average: Of several views: probabilities (mmsegmentation) or logits (openseg).
        scaling: What the scales are applied to. file: the picture, in 8 bits, and the logits of each view are resized to
            the picture's own size (mmsegmentation). network: the normalised and padded input, bilinear with
            align_corners, and the logits are added there and resized at the end (openseg).
        pad_multiple: With network: the normalised input is padded with zeros, right and below, to a multiple of it.
        final: With network: how the sum is resized to the picture's own size, linear or cubic.
        batch: Windows in a forward pass.
    """

    resize: Resize | None = None
    interpolation: str = "linear"
    crop_size: Size | None = None
    stride: Size | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    flip_pairs: Sequence[tuple[int, int]] = ()
    average: Literal["probabilities", "logits"] = "probabilities"
    scaling: Literal["file", "network"] = "file"
    pad_multiple: int = 1
    final: Literal["linear", "cubic"] = "linear"
    batch: int = 4


@torch.no_grad()
def predict_labels(segmenter: Segmenter, image: Tensor, how: Inference) -> Tensor:
    """Return the labels of pictures.

    Args:
        segmenter: The network, in evaluation mode; the work is done on its device.
        image: uint8 RGB (B, 3, H, W), as large as the file has it, on any device.
        how: The protocol.

    Returns:
        uint8 (B, H, W), on the network's device.
    """
    size = (image.shape[2], image.shape[3])
    if how.crop_size is None and len(how.scales) == 1 and not how.flip:
        inputs, merged, inside = _inputs(segmenter, image, how)
        x = inputs[0]
        if how.scaling == "file":
            sizes = [x.shape[-2:], size]
            return predict_from(segmenter.coarse(x.to(_device(segmenter))), sizes, segmenter.align_corners)
        if inside == size:
            sizes = [x.shape[-2:], merged]
            return predict_from(segmenter.coarse(x), sizes, segmenter.align_corners)[:, : size[0], : size[1]]
    return torch.stack([torch.cat([largest(rows) for rows in _strips(segmenter, one, how)]) for one in image])


@torch.no_grad()
def predict_logits(segmenter: Segmenter, image: Tensor, how: Inference) -> Tensor:
    """Return what `predict_labels` takes the largest of, (B, K, H, W) float32, all of it at once.

    That is: the mean of the views' probabilities, or the sum of their logits; of a single view its logits.
    """
    return torch.stack([torch.cat(list(_strips(segmenter, one, how)), dim=1) for one in image])


def _device(segmenter: Segmenter) -> torch.device:
    return next(segmenter.parameters()).device


def _strips(segmenter: Segmenter, image: Tensor, how: Inference) -> Iterator[Tensor]:
    """Yield the result for one picture (3, H, W), (K, n, W) at a time, from top to bottom."""
    height, width = image.shape[-2:]
    inputs, merged, inside = _inputs(segmenter, image[None], how)
    views = [_View(segmenter, x, merged, how, flip) for x in inputs for flip in (False, True)[: 1 + how.flip]]
    softmax = how.average == "probabilities" and len(views) > 1
    mode = "bicubic" if how.final == "cubic" else "bilinear"
    same = inside == (height, width)
    down = None if same else _matrix(inside[0], height, mode, False, _device(segmenter))
    step = max(1, _STRIP // (segmenter.head.classifier.out_channels * max(width, merged[1])))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        first, last = (top, bottom) if down is None else _used(down[top:bottom])
        total = views[0].rows(first, last)
        total = total.softmax(0) if softmax else total
        for view in views[1:]:
            value = view.rows(first, last)
            total += value.softmax(0) if softmax else value
        total = total[..., : inside[1]]
        if softmax:
            total /= len(views)
        if down is not None:
            with torch.autocast(total.device.type, enabled=False):
                total = down[top:bottom, first:last] @ total
            # a size that stays is not touched by torch's arithmetic
            total = F.interpolate(total[None], size=(bottom - top, width), mode=mode, align_corners=False)[0]
        yield total


def _inputs(segmenter: Segmenter, image: Tensor, how: Inference) -> tuple[list[Tensor], Size, Size]:
    """Return what goes through the network at each scale, the size at which logits are added, and how much is picture."""
    size = (image.shape[2], image.shape[3])
    if how.scaling == "file":
        return [_scaled(image, how, scale) for scale in how.scales], size, size
    x = segmenter.backbone.normalise(_scaled(image, how, 1.0).to(_device(segmenter)))
    inside = (x.shape[2], x.shape[3])
    x = F.pad(x, (0, -inside[1] % how.pad_multiple, 0, -inside[0] % how.pad_multiple))
    merged = (x.shape[2], x.shape[3])
    sizes = [(max(int(merged[0] * scale), 1), max(int(merged[1] * scale), 1)) for scale in how.scales]
    return [resize(x, [s], align_corners=True) for s in sizes], merged, inside


def _scaled(image: Tensor, how: Inference, scale: float) -> Tensor:
    """Return pictures, uint8 (B, 3, H, W), resized in 8 bits; with the rounding of mmcv's Resize."""
    height, width = base_size(image.shape[2], image.shape[3], how.resize)
    if scale != 1:
        short, long = sorted((max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))))
        height, width = base_size(height, width, {"short_side": short, "long_side": long})
    if (height, width) == image.shape[-2:]:
        return image
    flag = INTERPOLATIONS[how.interpolation]
    pixels = [fit(one.permute(1, 2, 0).contiguous().cpu().numpy(), (height, width), flag) for one in image]
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pixels])


class _Band(NamedTuple):
    """Weights (rows, n) of consecutive outputs of an axis, from `begin` on; there are none elsewhere."""

    begin: int
    matrix: Tensor

    @property
    def end(self) -> int:
        return self.begin + len(self.matrix)


class _View:
    """One scaled, perhaps mirrored, input, and its logits at the size at which views are added, by rows.

    Windows are put through the network when their rows are asked for, and forgotten when the rows have passed.
    """

    def __init__(self, segmenter: Segmenter, x: Tensor, merged: Size, how: Inference, mirror: bool) -> None:
        self.segmenter, self.merged, self.mirror, self.batch = segmenter, merged, mirror, how.batch
        self.x = x.flip(3) if mirror else x
        self.pairs = how.flip_pairs if mirror else ()
        size = (x.shape[2], x.shape[3])
        crop = how.crop_size or size
        self.crop = (min(crop[0], size[0]), min(crop[1], size[1]))
        stride = how.stride or (-(-2 * crop[0] // 3), -(-2 * crop[1] // 3))
        self.tops, self.lefts = (_starts(size[i], self.crop[i], stride[i]) for i in (0, 1))
        self.coarse: dict[int, list[Tensor]] = {}  # by row of windows
        self.down: list[_Band] = []
        self.across: list[_Band] = []

    def rows(self, top: int, bottom: int) -> Tensor:
        """Return logits (K, bottom - top, W) of these rows; `top` never decreases from call to call."""
        if not self.down:
            self._prepare()
        total = torch.zeros(0)
        for number, down in enumerate(self.down):
            first, last = max(top, down.begin), min(bottom, down.end)
            if down.end <= top:
                self.coarse.pop(number, None)
            if first >= last:
                continue
            weight = down.matrix[first - down.begin : last - down.begin]
            low, high = _used(weight)
            for coarse, across in zip(self._windows(number), self.across, strict=True):
                with torch.autocast(coarse.device.type, enabled=False):
                    part = weight[:, low:high] @ (coarse[:, low:high] @ across.matrix.T)
                if not len(total):
                    total = part.new_zeros(len(part), bottom - top, self.merged[1])
                total[:, first - top : last - top, across.begin : across.end] += part
        return total

    def _prepare(self) -> None:
        """Find out how large the coarse logits of a window are, and from that all weights."""
        coarse = self._windows(0)[0]
        align = self.segmenter.align_corners
        self.down, self.across = (
            _bands(
                _matrix(coarse.shape[1 + i], self.crop[i], "bilinear", align, coarse.device),
                starts,
                self.x.shape[2 + i],
                self.merged[i],
                align,
            )
            for i, starts in ((0, self.tops), (1, self.lefts))
        )
        if self.mirror:
            self.across = [_Band(self.merged[1] - b.end, b.matrix.flip(0)) for b in self.across]

    def _windows(self, number: int) -> list[Tensor]:
        """Return the coarse logits (K, h, w) of a row of windows."""
        if number not in self.coarse:
            top, (height, width) = self.tops[number], self.crop
            windows = [self.x[..., top : top + height, left : left + width] for left in self.lefts]
            found: list[Tensor] = []
            for i in range(0, len(windows), self.batch):
                together = torch.cat(windows[i : i + self.batch]).to(_device(self.segmenter))
                found += self.segmenter.coarse(together).float()
            self.coarse[number] = [_swapped(one, self.pairs) for one in found]
        return self.coarse[number]


def _swapped(coarse: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    if not pairs:
        return coarse
    order = list(range(len(coarse)))
    for a, b in pairs:
        order[a], order[b] = order[b], order[a]
    return coarse[order]


def _starts(length: int, crop: int, stride: int) -> list[int]:
    """Return where windows of `crop` start along an axis; the last one ends with the axis."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    return [min(i * stride, length - crop) for i in range(count)]


def _bands(
    window: Tensor, starts: Sequence[int], length: int, merged: int, align_corners: bool
) -> list[_Band]:
    """Return for each window the weights with which its coarse values enter the merged axis.

    That is, resized to the window by `window` (crop, coarse), averaged where windows overlap (the counts of a grid are
    products of those of the axes), and resized from the input's `length` to `merged`.
    """
    crop = len(window)
    count = window.new_zeros(length)
    for start in starts:
        count[start : start + crop] += 1
    bands = []
    for start in starts:
        placed = window.new_zeros(length, window.shape[1])
        placed[start : start + crop] = window / count[start : start + crop, None]
        matrix = _resized_rows(placed, merged, "bilinear", align_corners)
        begin, end = _used(matrix.T)
        bands.append(_Band(begin, matrix[begin:end].clone()))
    return bands


def _matrix(length: int, size: int, mode: str, align_corners: bool, device: torch.device) -> Tensor:
    """Return the weights (size, length) with which torch resizes an axis."""
    return _resized_rows(torch.eye(length, device=device), size, mode, align_corners)


def _resized_rows(matrix: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    if len(matrix) == size:
        return matrix
    columns = matrix.T[None, :, :, None]  # as channels, so that the arithmetic is torch's own
    done = F.interpolate(columns, size=(size, 1), mode=mode, align_corners=align_corners)
    return done[0, :, :, 0].T.contiguous()


def _used(weight: Tensor) -> tuple[int, int]:
    """Return the range of the columns of a matrix in which there is anything but 0."""
    columns = weight.any(0).nonzero()
    return int(columns[0]), int(columns[-1]) + 1
