"""One integer confusion matrix for a whole split; every score is derived from it, once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


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
        valid = target != self.ignore_index
        target, prediction = target[valid].long(), prediction[valid].long()
        if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < self.num_classes:
            raise ValueError(
                f"expected labels 0 to {self.num_classes - 1} or {self.ignore_index=}, "
                f"got {int(target.min())} to {int(target.max())}"
            )
        pairs = torch.bincount(target * self.num_classes + prediction, minlength=self.num_classes**2)
        self.matrix += pairs.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return mIoU, mAcc, aAcc (scalars), iou and acc (K,), float64; NaN where a class is absent; matrix (K, K).

        A class that occurs neither in the targets nor in the predictions has no IoU and is left out of the
        mean; so it is in mmsegmentation's IoUMetric.
        """
        matrix = self.matrix.cpu().double()  # not every device has float64
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
    """Return which share of the pixels of all `groups` of classes is predicted in its own group; NaN of none.

    Args:
        matrix: Counts (K, K), rows are targets; what `ConfusionMatrix.compute` calls matrix, of all processes.
        groups: Classes of each group.
    """
    rows = [c for group in groups for c in group]
    right = sum(matrix[list(g)][:, list(g)].sum() for g in groups)
    return torch.as_tensor(right).double() / matrix[rows].sum().double()
