"""One integer confusion matrix for a whole split, from which every score is derived."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

_PART = 2**18  # pixels counted at once on a CPU


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
        counts = count_each(prediction[None], target[None], self.num_classes, self.ignore_index)
        if counts.device.type == "cpu":
            known(counts, self.ignore_index, target)
        self.counts += counts[0]

    def compute(self) -> dict[str, Tensor]:
        """Return the `scores` of all that was counted.

        Raises:
            ValueError: If a target was neither a class nor `ignore_index`.
        """
        return scores(known(self.counts.cpu(), self.ignore_index))


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
    counts = count_each(prediction[None], target[None], num_classes, ignore_index)
    return known(counts, ignore_index, target)[0]


def count_each(prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Count the pairs of each picture; on CUDA all pictures at once, and nothing waits for the device.

    Args:
        prediction: Classes, integers (B, ...).
        target: Integers of the same shape.
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
