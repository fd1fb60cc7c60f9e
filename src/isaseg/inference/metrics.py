"""Integer counts over a whole split, from which every score is derived."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

_PART = 2**18  # pixels counted at once on a CPU
_ONE = 2**30  # in `SplitScores.images`

# The scores that are one number, as they are named in files and loggers.
MEANS = ("mIoU", "mAcc", "aAcc", "boundary_mIoU", "image_mIoU")

# How wide a boundary region is, as a share of the picture's diagonal: what the authors of Boundary IoU take for COCO and
# LVIS (github.com/bowenc0221/boundary-iou-api, dilation_ratio); for instances of Cityscapes they take 0.005
BOUNDARY_RATIO = 0.02


class ConfusionMatrix(Metric):
    """Counts of (target, prediction) pairs over a split, summed over processes.

    Args:
        num_classes: K.
        ignore_index: Target that is left out.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # with a row for targets that are no class, see `count_each`
        self.add_state(
            "counts", torch.zeros(num_classes + 1, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count `prediction` against `target`, both integer labels of the same shape.

        Raises:
            ValueError: On a CPU, if a target is neither a class nor `ignore_index`. Elsewhere `compute` raises it, so
                that nothing waits for the device.
        """
        self._count(prediction[None], target[None])

    def _count(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Count pictures (B, ...); return the counts of each as `count_each` does."""
        counts = count_each(prediction, target, self.num_classes, self.ignore_index)
        if counts.device.type == "cpu":
            known(counts, self.ignore_index, target)
        self.counts += counts.sum(0)
        return counts

    def compute(self) -> dict[str, Tensor]:
        """Return the `scores` of all that was counted.

        Raises:
            ValueError: If a target was neither a class nor `ignore_index`.
        """
        return scores(known(self.counts.cpu(), self.ignore_index))


class SplitScores(ConfusionMatrix):
    """A confusion matrix, with what the Boundary IoU and the mean over the pictures need.

    All is summed as integers, so neither order, batches nor processes change a score; nothing waits for the device.
    """

    boundary: Tensor
    images: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index)
        size = num_classes + 1
        self.add_state("boundary", torch.zeros(size, size, dtype=torch.int64), dist_reduce_fx="sum")
        # the sum of the mIoU of every picture, in units of 1 / _ONE, and their number
        self.add_state("images", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count pictures, integer labels (B, H, W).

        Raises:
            ValueError: As `ConfusionMatrix.update`.
        """
        counts = self._count(prediction, target)
        self.boundary += count_boundary(prediction, target, self.num_classes, self.ignore_index)
        each = _iou(counts[:, :-1].float()).nanmean(-1)
        total = (each.nan_to_num() * _ONE).round().long().sum()
        self.images += torch.stack([total, each.isfinite().sum()])

    def compute(self) -> dict[str, Tensor]:
        """Return the `scores` and `boundary_scores` of all that was counted, and image_mIoU.

        image_mIoU is the mean over the pictures of the mIoU of each, over the classes in its targets or predictions, as
        mIoU is that of the split. Pictures without a label that counts are left out. It is mIoU^I of
        https://arxiv.org/abs/2310.19252, whose code leaves out classes that are predicted alone and so gives more.

        Raises:
            ValueError: If a target was neither a class nor `ignore_index`.
        """
        total, number = self.images.cpu().double()
        return super().compute() | boundary_scores(self.boundary) | {"image_mIoU": total / _ONE / number}


def count_each(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pairs of each picture; on CUDA all pictures at once, and nothing waits for the device.

    Args:
        prediction: Classes, integers (B, ...).
        target: Classes or `ignore_index`, integers of the same shape.
        num_classes: K.
        ignore_index: Target that is left out.

    Returns:
        int64 (B, K + 1, K), rows are targets; the last one has those that are neither a class nor `ignore_index`, for
        `known` to find.
    """
    wrong, ignored = num_classes, num_classes + 1
    bins = (num_classes + 2) * num_classes

    def place(p: Tensor, t: Tensor) -> Tensor:
        row = t.int()
        row = row.masked_fill((row < 0) | (row >= num_classes), wrong)
        row.masked_fill_(t == ignore_index, ignored)
        return row.mul_(num_classes).add_(p)

    pictures = len(target)
    if target.device.type == "cuda":
        number = torch.arange(0, pictures * bins, bins, dtype=torch.int32, device=target.device)
        pairs = place(prediction.flatten(1), target.flatten(1)).add_(number[:, None])
        # integers of known bounds: bincount would read the largest one first, and scatter_add_ sort them to be repeatable
        total = torch.histc(pairs, bins=pictures * bins, min=0, max=pictures * bins).long()
    else:
        total = torch.zeros(pictures, bins, dtype=torch.int64, device=target.device)
        for picture, one, other in zip(total, prediction, target, strict=True):
            # in parts, so that memory does not hold integer maps of the whole picture
            size = _PART if other.device.type == "cpu" else max(1, other.numel())
            parts = (torch.split(x.flatten(), size) for x in (one, other))
            for p, t in zip(*parts, strict=True):
                picture += torch.bincount(place(p, t), minlength=bins)
    return total.view(pictures, num_classes + 2, num_classes)[:, :-1]


def known(counts: Tensor, ignore_index: int, target: Tensor | None = None) -> Tensor:
    """Return counts (..., K + 1, K) of `count_each` without the last row, (..., K, K).

    Args:
        counts: They are read: on a device, this waits for it.
        ignore_index: Target that is left out.
        target: What was counted, to say which labels were found.

    Raises:
        ValueError: If the last row is not empty.
    """
    if counts[..., -1, :].any():
        found = "others"
        if target is not None:
            valid = target[target != ignore_index]
            found = f"{int(valid.min())} to {int(valid.max())}"
        raise ValueError(f"expected labels 0 to {counts.shape[-1] - 1} or {ignore_index=}, got {found}")
    return counts[..., :-1, :]


def count_boundary(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pairs of labels near boundaries, for Boundary IoU (https://arxiv.org/abs/2103.16562).

    The boundary region of a class is what lies in the class and at most d pixels from a pixel outside it, diagonal steps
    counting as one; d is BOUNDARY_RATIO of the picture's diagonal, rounded, and at least 1. What surrounds the picture is
    outside every class, and so is what is ignored, in the predictions as in the targets: those pixels count nowhere, and
    where a class meets them is a contour in both, as at the edge of the picture.

    Args:
        prediction: Classes, integers (B, H, W).
        target: Classes or `ignore_index`, integers of the same shape.
        num_classes: K.
        ignore_index: Target that is left out.

    Returns:
        int64 (K + 1, K + 1) over all pictures, rows are targets; class c is at c + 1, and at 0 is what lies outside the
        boundary region of its class. Nothing waits for the device.
    """
    size = num_classes + 1
    small = torch.uint8 if size < 256 else torch.int32
    counted = (target != ignore_index).to(small)
    # by products, which are many times as fast as masked_fill
    near = [_near_boundary(labels.to(small).add(1).mul_(counted)) for labels in (prediction, target)]
    pairs = near[1].int().mul_(size).add_(near[0]).flatten()
    if pairs.device.type == "cuda":  # see `count_each`
        return torch.histc(pairs, bins=size**2, min=0, max=size**2).long().view(size, size)
    return torch.bincount(pairs, minlength=size**2)[: size**2].view(size, size)


def _near_boundary(labels: Tensor) -> Tensor:
    """Return labels (B, H, W) with 0, which stands for no class, outside the boundary regions of their classes."""
    height, width = labels.shape[-2:]
    distance = max(1, round(BOUNDARY_RATIO * math.sqrt(height**2 + width**2)))
    if min(height, width) <= 2 * distance:
        return labels
    # A 3x3 erosion d times is one by a square of side 2d + 1; a pixel is left, for whichever class, where its square is
    # inside the picture and has one label.
    side, low, high = 2 * distance + 1, labels, labels
    for dim in (-1, -2):
        low, high = _extreme(low, side, dim, torch.minimum), _extreme(high, side, dim, torch.maximum)
    near = labels.clone()
    near[:, distance:-distance, distance:-distance] *= low != high
    return near


def _extreme(x: Tensor, side: int, dim: int, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the extreme of every `side` neighbours along `dim`, of which there are side - 1 fewer."""
    have = 1  # doubled while it can be, so that 93 neighbours take 7 steps
    while have < side:
        step = min(have, side - have)
        length = x.shape[dim] - step
        x = extreme(x.narrow(dim, 0, length), x.narrow(dim, step, length))
        have += step
    return x


def boundary_scores(boundary: Tensor) -> dict[str, Tensor]:
    """Return boundary_mIoU (a scalar) and boundary_iou (K,), float64; NaN where a class is absent.

    Args:
        boundary: What `count_boundary` returns, summed over pictures.
    """
    iou = _iou(boundary.cpu().double())[1:]
    return {"boundary_mIoU": iou.nanmean(), "boundary_iou": iou}


def _iou(matrix: Tensor) -> Tensor:
    """Return the IoU of each class (..., K) of matrices (..., K, K), NaN where it is absent."""
    correct = matrix.diagonal(dim1=-2, dim2=-1)
    return correct / (matrix.sum(-1) + matrix.sum(-2) - correct)  # 0 / 0 is NaN: absent


def scores(matrix: Tensor) -> dict[str, Tensor]:
    """Return mIoU, mAcc, aAcc (scalars), iou and acc (K,), float64; NaN where a class is absent; matrix (K, K).

    A class that occurs neither in the targets nor in the predictions has no IoU and is left out of the mean, as in
    mmsegmentation's IoUMetric.

    Args:
        matrix: What `known` returns, summed over pictures.
    """
    matrix = matrix.cpu().double()  # not every device has float64
    correct, in_target = matrix.diag(), matrix.sum(1)
    iou, acc = _iou(matrix), correct / in_target
    return {
        "mIoU": iou.nanmean(),
        "mAcc": acc.nanmean(),
        "aAcc": correct.sum() / in_target.sum(),
        "iou": iou,
        "acc": acc,
        "matrix": matrix,
    }


def group_accuracy(matrix: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Return the share of the pixels of all `groups` of classes that is predicted in its own group; NaN without any.

    Args:
        matrix: Counts (K, K), rows are targets, as in `scores`.
        groups: Classes of each group.
    """
    rows = [c for group in groups for c in group]
    right = sum(matrix[list(g)][:, list(g)].sum() for g in groups)
    return torch.as_tensor(right).double() / matrix[rows].sum().double()
