"""Apply a network to pictures as the published protocols do: whole, in windows, at several scales, mirrored.

Resizing logits and averaging them over windows are linear in the coarse logits, so each is a matrix per axis. The
full-size logits can therefore be made a few rows at a time, and memory stays bounded: a picture of ten thousand pixels
a side holds one row of windows. Pure PyTorch, except for OpenCV's resizing of pictures.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from isaseg.data.resize import INTERPOLATIONS, Resize, fit, scaled_size
from isaseg.errors import ConfigError
from isaseg.inference.axes import Band, final_band, used, window_bands, window_starts
from isaseg.inference.labels import labels_from_coarse, largest, resize
from isaseg.models.segmenter import Segmenter

Size = tuple[int, int]

_STRIP = 2**21  # numbers in a strip of full-size logits on a CPU: 8 MiB
_LONGER = 32  # times that elsewhere: a GPU is slow at many small steps


@dataclass(frozen=True)
class Inference:
    """How a network is applied to a picture.

    Args:
        resize: The size to which the picture is resized first, see `data.resize.base_size`; None: its own size.
        interpolation: Of that resizing.
        crop_size: (H, W) of sliding windows; None: the whole picture at once. A smaller picture is one window.
        stride: (H, W) from window to window; None: two thirds of `crop_size`. The last window is shifted inwards.
        scales: Factors on the resized picture.
        flip: Whether the mirror image is added at each scale.
        flip_pairs: Classes that swap places in a mirror image.
        average: What is averaged over several views: probabilities (mmsegmentation) or logits (openseg).
        scaling: What the scales apply to. file: the 8-bit picture; the logits of each view are resized to the picture's
            own size (mmsegmentation). network: the normalised and padded input, bilinear with align_corners; the logits
            are added at that size and resized to the picture's own size at the end (openseg). paddleseg: the same, but
            nothing is resized with align_corners, nor are the logits of each view.
        pad_size: Unless for file: the normalised input is padded with zeros, right and bottom, to at least (H, W).
        pad_multiple: Unless for file: likewise, to a multiple of it.
        final: Unless for file: interpolation with which the sum is resized to the picture's own size.
        batch: Windows per forward pass.
    """

    resize: Resize | None = None
    interpolation: str = "linear"
    crop_size: Size | None = None
    stride: Size | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    flip_pairs: Sequence[tuple[int, int]] = ()
    average: Literal["probabilities", "logits"] = "probabilities"
    scaling: Literal["file", "network", "paddleseg"] = "file"
    pad_size: Size | None = None
    pad_multiple: int = 1
    final: Literal["linear", "cubic"] = "linear"
    batch: int = 4


def predict_labels(segmenter: Segmenter, image: Tensor, how: Inference) -> Tensor:
    """Return the labels of pictures.

    Args:
        segmenter: The network, in evaluation mode; the work is done on its device.
        image: uint8 RGB (B, 3, H, W), at the file's own size, on any device.

    Returns:
        uint8 (B, H, W), on the network's device.
    """
    return labels_of_views(segmenter, views(image, how), (image.shape[2], image.shape[3]), how)


@torch.no_grad()
def labels_of_views(segmenter: Segmenter, images: Sequence[Tensor], size: Size, how: Inference) -> Tensor:
    """Do what `predict_labels` does, with pictures that are resized already.

    Args:
        images: What `views` returns, on any device.
        size: (H, W) of the labels: of the file, or of the mask.
    """
    height, width = size
    if how.crop_size is None and len(how.scales) == 1 and not how.flip:
        (x,), merged, inside = _inputs(segmenter, images, size, how)
        if inside == size:
            coarse = segmenter.coarse(x.to(_device(segmenter)), normalised=how.scaling != "file")
            labels = labels_from_coarse(coarse, [x.shape[-2:], merged], segmenter.align_corners)
            return labels[:, :height, :width]
    return torch.stack(
        [torch.cat([largest(rows) for rows in strips]) for strips in in_strips(segmenter, images, size, how)]
    )


def views(image: Tensor, how: Inference) -> list[Tensor]:
    """Return pictures at the sizes at which the protocol resizes their pixels, in 8 bits on the CPU.

    Args:
        image: uint8 RGB (B, 3, H, W).

    Returns:
        uint8 (B, 3, h, w): one for each of `how.scales` if they apply to the file, else one. At the picture's own size it
        is `image` itself.
    """
    return [_scaled(image, how, scale) for scale in (how.scales if how.scaling == "file" else (1.0,))]


def check_applies(segmenter: Segmenter, how: Inference) -> None:
    """Check that a network can be applied as the protocol says.

    Raises:
        ConfigError: If the protocol scales the normalised input, and the backbone does not say how it normalises.
    """
    missing = [name for name in ("normalise", "features") if not hasattr(segmenter.backbone, name)]
    if how.scaling != "file" and missing:
        raise ConfigError(
            "expected a backbone with `normalise` and `features` (docs/your-own-module.md) for "
            f"test.scaling={how.scaling}, of protocol=openseg and paddleseg, got {type(segmenter.backbone).__name__} "
            f"without `{missing[0]}`; add it, or choose protocol=none or mmseg"
        )


def _device(segmenter: Segmenter) -> torch.device:
    return next(segmenter.parameters()).device


def in_strips(
    segmenter: Segmenter, images: Sequence[Tensor], size: Size, how: Inference
) -> Iterator[Iterator[Tensor]]:
    """Yield for each picture what `predict_labels` takes the argmax of, float32, in strips (K, n, W).

    Of one view these are its logits; of several the mean of their probabilities or the sum of their logits. The arguments
    are those of `labels_of_views`.
    """
    for i in range(len(images[0])):
        yield _strips(segmenter, [x[i : i + 1] for x in images], size, how)


def _strips(segmenter: Segmenter, images: Sequence[Tensor], size: Size, how: Inference) -> Iterator[Tensor]:
    """Yield the result for the views (1, 3, h, w) of a picture, (K, n, W) at a time, from top to bottom."""
    height, width = size
    device = _device(segmenter)
    inputs, merged, inside = _inputs(segmenter, images, size, how)
    parts = [_View(segmenter, x, merged, how, flip) for x in inputs for flip in (False, True)[: 1 + how.flip]]
    softmax = how.average == "probabilities" and len(parts) > 1
    mode = "bicubic" if how.final == "cubic" else "bilinear"
    # openseg's last step, from the picture's part of the merged size to the picture's own size
    down = None if inside == size else final_band(inside[0], height, mode, device)
    numbers = _STRIP if device.type == "cpu" else _STRIP * _LONGER
    step = max(1, numbers // (segmenter.head.classifier.out_channels * max(width, merged[1])))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        first, last = (top, bottom) if down is None else used(down.matrix[top:bottom])
        total = parts[0].rows(first, last)
        total = total.softmax(0) if softmax else total
        for part in parts[1:]:
            value = part.rows(first, last)
            total += value.softmax(0) if softmax else value
        total = total[..., : inside[1]]
        if softmax:
            total /= len(parts)
        if down is not None:
            with torch.autocast(total.device.type, enabled=False):
                total = down.there[top:bottom, first:last] @ total
            # the height stays, and torch leaves an axis whose size stays untouched
            total = F.interpolate(total[None], size=(bottom - top, width), mode=mode, align_corners=False)[0]
        yield total


def _inputs(
    segmenter: Segmenter, images: Sequence[Tensor], size: Size, how: Inference
) -> tuple[Sequence[Tensor], Size, Size]:
    """Return the network's input at each scale, the size at which views are added, and the picture's part of that."""
    if how.scaling == "file":
        return images, size, size
    x = segmenter.backbone.normalise(images[0].to(_device(segmenter)))
    inside = (x.shape[2], x.shape[3])
    least = how.pad_size or inside
    merged = tuple(-(-max(inside[i], least[i]) // how.pad_multiple) * how.pad_multiple for i in (0, 1))
    x = F.pad(x, (0, merged[1] - inside[1], 0, merged[0] - inside[0]))
    openseg = how.scaling == "network"
    half = 0.0 if openseg else 0.5  # openseg rounds sizes down
    sizes = [(max(int(merged[0] * s + half), 1), max(int(merged[1] * s + half), 1)) for s in how.scales]
    return [resize(x, [size], align_corners=openseg) for size in sizes], (merged[0], merged[1]), inside


def _scaled(image: Tensor, how: Inference, scale: float) -> Tensor:
    """Return pictures, uint8 (B, 3, H, W), resized in 8 bits."""
    height, width = scaled_size(image.shape[2], image.shape[3], how.resize, scale)
    if (height, width) == image.shape[-2:]:
        return image
    flag = INTERPOLATIONS[how.interpolation]
    pixels = [fit(one.permute(1, 2, 0).contiguous().cpu().numpy(), (height, width), flag) for one in image]
    return torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pixels])


class _View:
    """One scaled and perhaps mirrored input; gives its logits, at the size at which views are added, by rows.

    Windows go through the network when their rows are asked for, and are dropped once the rows have passed.
    """

    def __init__(self, segmenter: Segmenter, x: Tensor, merged: Size, how: Inference, mirror: bool) -> None:
        self.segmenter, self.merged, self.mirror, self.batch = segmenter, merged, mirror, how.batch
        self.x, self.normalised = x.flip(3) if mirror else x, how.scaling != "file"
        self.align = (segmenter.align_corners, segmenter.align_corners and how.scaling != "paddleseg")
        self.pairs = how.flip_pairs if mirror else ()
        size = (x.shape[2], x.shape[3])
        crop = how.crop_size or size
        self.crop = (min(crop[0], size[0]), min(crop[1], size[1]))
        stride = how.stride or (-(-2 * crop[0] // 3), -(-2 * crop[1] // 3))
        self.tops, self.lefts = (window_starts(size[i], self.crop[i], stride[i]) for i in (0, 1))
        self.coarse: dict[int, list[Tensor]] = {}  # coarse logits by row of windows
        self.down: tuple[Band, ...] = ()
        self.across: tuple[Band, ...] = ()

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
            part_of = slice(first - down.begin, last - down.begin)
            low, high = used(down.matrix[part_of])
            weight = down.there[part_of, low:high]
            for coarse, across in zip(self._windows(number), self.across, strict=True):
                with torch.autocast(coarse.device.type, enabled=False):
                    part = weight @ (coarse[:, low:high] @ across.there.T)
                if not len(total):
                    total = part.new_zeros(len(part), bottom - top, self.merged[1])
                total[:, first - top : last - top, across.begin : across.end] += part
        return total

    def _prepare(self) -> None:
        """Compute the weights of all windows; the first forward pass tells how large coarse logits are."""
        coarse = self._windows(0)[0]
        self.down, self.across = (
            window_bands(
                coarse.shape[1 + i],
                self.crop[i],
                tuple(starts),
                self.x.shape[2 + i],
                self.merged[i],
                self.align,
                self.mirror and i == 1,
                coarse.device,
            )
            for i, starts in ((0, self.tops), (1, self.lefts))
        )

    def _windows(self, number: int) -> list[Tensor]:
        """Return the coarse logits (K, h, w) of a row of windows."""
        if number not in self.coarse:
            top, (height, width) = self.tops[number], self.crop
            windows = [self.x[..., top : top + height, left : left + width] for left in self.lefts]
            found: list[Tensor] = []
            for i in range(0, len(windows), self.batch):
                together = torch.cat(windows[i : i + self.batch]).to(_device(self.segmenter))
                found += self.segmenter.coarse(together, self.normalised).float()
            self.coarse[number] = [_swapped(one, self.pairs) for one in found]
        return self.coarse[number]


def _swapped(coarse: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    if not pairs:
        return coarse
    order = list(range(len(coarse)))
    for a, b in pairs:
        order[a], order[b] = order[b], order[a]
    return coarse[order]
