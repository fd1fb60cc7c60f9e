"""One integer confusion matrix for a whole split, from which every score is derived."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

_PART = 2**18  # pixels counted at once


class ConfusionMatrix(Metric):
    """Counts of (target, prediction) pairs over a split, summed over processes.

    Args:
        num_classes: K.
        ignore_index: Target that is left out.
    """

    full_state_update = False
    higher_is_better = True
    matrix: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state(
            "matrix", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum"
        )

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count `prediction` against `target`, both integer labels of the same shape.

        Raises:
            ValueError: If a target is neither a class nor `ignore_index`.
        """
        self.matrix += count(prediction, target, self.num_classes, self.ignore_index)

    def compute(self) -> dict[str, Tensor]:
        """Return the `scores` of all that was counted."""
        return scores(self.matrix)


def count(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return how often each (target, prediction) pair occurs, int64 (K, K), rows are targets.

    Args:
        prediction: Classes, integers of any shape.
        target: Classes or `ignore_index`, integers of the same shape.
        num_classes: K.
        ignore_index: Target that is left out.

    Raises:
        ValueError: If a target is neither a class nor `ignore_index`.
    """
    ignored, wrong = num_classes, num_classes + 1  # extra rows
    total = torch.zeros((num_classes + 2) * num_classes, dtype=torch.int64, device=target.device)
    # in parts, so that memory does not hold integer maps of the whole picture
    parts = (torch.split(x.flatten(), _PART) for x in (prediction, target))
    for p, t in zip(*parts, strict=True):
        row = t.int()
        row = row.masked_fill((row < 0) | (row >= num_classes), wrong)
        row.masked_fill_(t == ignore_index, ignored)
        total += torch.bincount(row.mul_(num_classes).add_(p), minlength=len(total))
    counts = total.view(num_classes + 2, num_classes)
    if counts[wrong].any():
        valid = target[target != ignore_index]
        raise ValueError(
            f"expected labels 0 to {num_classes - 1} or {ignore_index=}, "
            f"got {int(valid.min())} to {int(valid.max())}"
        )
    return counts[:num_classes]


def scores(matrix: Tensor) -> dict[str, Tensor]:
    """Return mIoU, mAcc, aAcc (scalars), iou and acc (K,), float64; NaN where a class is absent; matrix (K, K).

    A class that occurs neither in the targets nor in the predictions has no IoU and is left out of the mean, as in
    mmsegmentation's IoUMetric.

    Args:
        matrix: What `count` returns, summed over pictures.
    """
    matrix = matrix.cpu().double()  # not every device has float64
    correct, in_target = matrix.diag(), matrix.sum(1)
    iou = correct / (in_target + matrix.sum(0) - correct)  # 0 / 0 is NaN: absent
    acc = correct / in_target
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
