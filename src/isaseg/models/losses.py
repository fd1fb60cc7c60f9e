"""Cross-entropy, plain and with online hard example mining, also for a batch without any label.

Logits may be coarser than the target. They are then resized bilinearly.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.errors import ConfigError
from isaseg.models.resized_loss import resized_cross_entropy

Average = Literal["labelled", "all"]


class CrossEntropy(nn.Module):
    """Mean cross-entropy; 0 with a gradient of 0 if no pixel has a label.

    Args:
        ignore_index: The label to leave out.
        class_weights: One weight per class, for a weighted mean as in `torch.nn.CrossEntropyLoss`.
        average: What the sum over the labelled pixels is divided by: the number (with weights, the weight) of the
            labelled pixels, or of all of them, those without a label and the padding included. The latter is the
            default of mmsegmentation 1.2.2, `avg_non_ignore=False` (mmseg/models/losses/cross_entropy_loss.py:62).

    Raises:
        ConfigError: For class weights with the average over all: a pixel without a label has no class, hence no
            weight, and mmsegmentation looks its weight up beyond the last class (same file, line 66).
    """

    weight: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        class_weights: Sequence[float] | None = None,
        average: Average = "labelled",
    ) -> None:
        super().__init__()
        if average == "all" and class_weights is not None:
            raise ConfigError(
                "expected loss.average=labelled with loss.class_weights, got loss.average=all, but a pixel without a "
                "label has no weight; set loss.average=labelled or loss.class_weights=null"
            )
        self.ignore_index, self.average = ignore_index, average
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        """Return the loss, a scalar, of `logits` (B, K, h, w) against `target`, int64 (B, H, W).

        Logits of another size are resized, with `align_corners` as in `torch.nn.functional.interpolate`.
        """
        if logits.shape[-2:] == target.shape[-2:]:
            logits = resize_logits(logits, target, align_corners)
            total = _cross_entropy(logits, target, self.weight, self.ignore_index, "sum")
        else:
            total = resized_cross_entropy(logits, target, self.weight, self.ignore_index, align_corners)
        if self.average == "all":
            return total / max(target.numel(), 1)
        valid = target != self.ignore_index
        if self.weight is None:
            return total / valid.sum().clamp(min=1)
        return total / (self.weight[target.where(valid, 0)] * valid).sum().clamp(min=1e-6)


class OhemCrossEntropy(nn.Module):
    """Cross-entropy over the hard pixels only, as openseg defines it.

    A pixel is kept if the probability of its true class is below max(`thresh`, p). As p is the (n + 1)-th smallest such
    probability of the batch, at least n pixels are kept, ties aside. The loss is their plain mean.

    Args:
        ignore_index: The label to leave out.
        thresh: 0.7 or 0.9 in openseg.
        min_kept_per_crop: n for each crop of the batch that the loss gets. openseg gives n for the batch of one device,
            mostly 100,000 for four crops.
        class_weights: One weight per class.
    """

    weight: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        thresh: float = 0.7,
        min_kept_per_crop: int = 25_000,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index, self.thresh, self.min_kept_per_crop = ignore_index, thresh, min_kept_per_crop
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        """Return the loss, a scalar; arguments as in `CrossEntropy.forward`."""
        logits = resize_logits(logits, target, align_corners)
        losses = _cross_entropy(logits, target, self.weight, self.ignore_index, "none")
        valid = target != self.ignore_index
        with torch.no_grad():
            probability = logits.float().softmax(1).gather(1, target.where(valid, 0)[:, None])[:, 0]
            # sort, because kthvalue is not deterministic on GPUs; pixels that do not count come last
            ordered = probability.masked_fill(~valid, 2).flatten().sort().values
            # stays on the device, which waits for no host
            place = (valid.sum() - 1).clamp(0, self.min_kept_per_crop * len(target))
            limit = ordered.gather(0, place[None]).clamp(min=self.thresh)
            hard = valid & ~(probability >= limit)  # a probability of NaN too
        return _only(losses, hard, losses.device.type).sum() / hard.sum().clamp(min=1)


def resize_logits(logits: Tensor, target: Tensor, align_corners: bool) -> Tensor:
    """Return logits (B, K, H, W), bilinearly resized to the size of the target (B, H, W) where theirs is another."""
    if logits.shape[-2:] == target.shape[-2:]:
        return logits
    size = target.shape[-2:]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=align_corners)


def _only(losses: Tensor, kept: Tensor, device: str) -> Tensor:
    """Return the losses that are kept, to be added; on a GPU, which would wait for their number, and 0 for the others."""
    return losses[kept] if device == "cpu" else losses.where(kept, 0)


def _cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> Tensor:
    logits = logits.float()
    if not torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, target, weight, ignore_index=ignore_index, reduction=reduction)
    # on GPUs torch's kernel for maps is not deterministic, but the one for rows is
    rows = logits.movedim(1, -1).flatten(0, -2)
    losses = F.cross_entropy(rows, target.flatten(), weight, ignore_index=ignore_index, reduction=reduction)
    return losses if reduction == "sum" else losses.view_as(target)
