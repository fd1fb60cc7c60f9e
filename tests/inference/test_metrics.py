"""Scores against brute force over sets of pixels."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isaseg.inference.metrics import ConfusionMatrix, group_accuracy


def split(seed: int, classes: int = 5, images: int = 3) -> list[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        size = tuple(rng.integers(3, 9, 2))
        target = rng.integers(0, classes - 1, size)  # the last class is only ever predicted
        target[rng.random(size) < 0.2] = 255
        pairs.append((torch.from_numpy(rng.integers(0, classes, size)), torch.from_numpy(target)))
    return pairs


def count(pairs: list[tuple[Tensor, Tensor]], classes: int = 5) -> ConfusionMatrix:
    metric = ConfusionMatrix(classes)
    for prediction, target in pairs:
        metric.update(prediction, target)
    return metric


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_brute_force(seed: int) -> None:
    pairs = split(seed)
    y = np.concatenate([t.numpy().ravel() for _, t in pairs])
    p = np.concatenate([q.numpy().ravel() for q, _ in pairs])[y != 255]
    y = y[y != 255]
    iou = [((p == c) & (y == c)).sum() / ((p == c) | (y == c)).sum() for c in range(5)]
    acc = [((p == c) & (y == c)).sum() / max((y == c).sum(), 1) for c in range(4)]
    scores = count(pairs).compute()
    np.testing.assert_allclose(scores["iou"].numpy(), iou, rtol=1e-12)
    np.testing.assert_allclose(scores["acc"].numpy(), [*acc, np.nan], rtol=1e-12)
    assert float(scores["mIoU"]) == pytest.approx(np.mean(iou), rel=1e-12)
    assert float(scores["mAcc"]) == pytest.approx(np.mean(acc), rel=1e-12)
    assert float(scores["aAcc"]) == pytest.approx((p == y).mean(), rel=1e-12)


def test_a_class_that_never_occurs_is_left_out_of_the_mean() -> None:
    metric = count([(torch.tensor([0, 0, 1, 3]), torch.tensor([0, 1, 1, 255]))])
    scores = metric.compute()
    assert scores["iou"].isnan().tolist() == [False, False, True, True, True]  # 3 only where nobody looks
    assert scores["iou"][:2].tolist() == [0.5, 0.5]
    assert scores["mIoU"] == 0.5
    assert scores["mAcc"] == 0.75


def test_neither_order_nor_batching_matters() -> None:
    pairs = split(1, images=4)
    flat = tuple(torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
    want = count(pairs).counts
    assert torch.equal(count(pairs[::-1]).counts, want)
    assert torch.equal(count([(flat[0], flat[1])]).counts, want)


def test_rows_are_targets_and_reset_forgets() -> None:
    metric = count([(torch.tensor([2]), torch.tensor([1]))])
    assert metric.counts.nonzero().tolist() == [[1, 2]]
    assert metric.counts.dtype == torch.int64
    metric.reset()
    assert metric.counts.sum() == 0


def test_another_ignored_label() -> None:
    metric = ConfusionMatrix(3, ignore_index=0)
    metric.update(torch.tensor([1, 1]), torch.tensor([0, 1]))
    assert metric.counts.sum() == 1


def test_nothing_but_ignored_pixels_is_no_error() -> None:
    scores = count([(torch.tensor([0, 1]), torch.tensor([255, 255]))]).compute()
    assert scores.pop("matrix").sum() == 0
    assert all(value.isnan().all() for value in scores.values())


@pytest.mark.parametrize("label", [5, 254, -1])
def test_a_wrong_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=r"labels 0 to 4 or ignore_index=255, got (-1 to 0|0 to 5|0 to 254)"):
        count([(torch.tensor([0, 0]), torch.tensor([0, label]))])


@pytest.mark.parametrize("seed", range(2))
def test_group_accuracy_equals_brute_force(seed: int) -> None:
    pairs, group_of = split(seed), {0: 0, 3: 0, 1: 1}  # 2 and 4 belong to no group
    hits = [
        group_of[int(y)] == group_of.get(int(p))
        for q, t in pairs
        for p, y in zip(q.ravel(), t.ravel(), strict=True)
        if int(y) in group_of
    ]
    got = group_accuracy(count(pairs).compute()["matrix"], [[0, 3], [1]])
    assert float(got) == pytest.approx(np.mean(hits))
    assert got.dtype == torch.float64


def test_no_pixel_of_any_group_is_nan() -> None:
    matrix = count([(torch.tensor([0]), torch.tensor([0]))]).compute()["matrix"]
    assert group_accuracy(matrix, [[1, 2]]).isnan()
