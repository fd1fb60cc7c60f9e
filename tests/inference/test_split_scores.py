"""Boundary IoU against erosions of one mask at a time, and the mean over pictures against brute force."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from torch import Tensor

from isaseg.inference.metrics import SplitScores, boundary_scores, count_boundary

Pair = tuple[np.ndarray, np.ndarray]  # prediction and target (H, W)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask that erosions by 3x3 remove; beyond the picture nothing is inside."""
    steps = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    return mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)


def boundary_ious(pairs: list[Pair], classes: int, ignore: int = 255) -> np.ndarray:
    """Return the Boundary IoU of each class over a split, NaN for one that occurs nowhere."""
    areas = np.zeros((2, classes), np.int64)  # of intersections and unions
    for prediction, target in pairs:
        counts = target != ignore
        for number in range(classes):
            p, t = (boundary((labels == number) & counts) for labels in (prediction, target))
            areas[:, number] += (p & t).sum(), (p | t).sum()
    with np.errstate(invalid="ignore"):
        found: np.ndarray = areas[0] / areas[1]
    return found


def picture(rng: np.random.Generator, height: int, width: int, classes: int, ignore: int = 255) -> Pair:
    """Return a picture of blocks whose prediction is moved and speckled; parts of the target are ignored."""
    coarse = rng.integers(0, classes, (height // 13 + 1, width // 17 + 1))
    target = np.kron(coarse, np.ones((13, 17), np.int64))[:height, :width]
    prediction = np.roll(target, rng.integers(-2, 3, 2), (0, 1))
    specks = rng.random(target.shape) < 0.001
    prediction[specks] = rng.integers(0, classes, specks.sum())
    target[height // 3 : height // 2, width // 4 : width // 2] = ignore
    target[rng.random(target.shape) < 0.001] = ignore
    return prediction, target


def scored(pairs: list[Pair], classes: int, ignore: int = 255) -> dict[str, Tensor]:
    metric = SplitScores(classes, ignore)
    for pair in pairs:
        metric.update(*(torch.from_numpy(labels[None]) for labels in pair))
    return metric.compute()


# d is 1, 7, 3, 4 and 7; the second picture has little room for anything but boundary, and the last one none
SIZES = [(24, 31), (20, 340), (97, 120), (150, 130), (11, 340)]


@pytest.mark.parametrize(("classes", "ignore"), [(5, 255), (4, 0), (254, 255), (255, 255), (260, 300)])
def test_boundary_iou_is_that_of_eroded_masks(classes: int, ignore: int) -> None:
    """Classes that occur in one picture or in none, ignored regions, more classes than a byte has values."""
    rng = np.random.default_rng(classes)
    pairs = [picture(rng, *size, min(classes, number + 2), ignore) for number, size in enumerate(SIZES)]
    pairs[0][0][3:6, 4:9] = classes - 1  # predicted alone
    want = boundary_ious(pairs, classes, ignore)
    found = scored(pairs, classes, ignore)
    np.testing.assert_allclose(found["boundary_iou"].numpy(), want, rtol=1e-12)
    assert float(found["boundary_mIoU"]) == pytest.approx(np.nanmean(want), rel=1e-12)
    assert 0.2 < np.nanmean(want) < 0.9
    assert torch.equal(found["boundary_iou"].isnan(), found["iou"].isnan())
    for number, pair in enumerate(pairs):  # each on its own, so that no difference is hidden in a sum
        alone = scored([pair], classes, ignore)["boundary_iou"].numpy()
        np.testing.assert_allclose(
            alone, boundary_ious([pair], classes, ignore), rtol=1e-12, err_msg=f"{number}"
        )


def test_boundary_iou_of_a_square_that_is_moved() -> None:
    """Of 40 pixels in 300x400, where d is 10: its region is a frame of 40² - 20² pixels."""
    target, prediction = np.zeros((2, 300, 400), np.int64)
    target[100:140, 100:140] = 1
    prediction[100:140, 105:145] = 1
    frame = 40**2 - 20**2
    # common to both: the squares have 40 x 35 pixels in common, less the two hollows of 20 x 20, which share 20 x 15
    common = 40 * 35 - (2 * 400 - 20 * 15)
    assert scored([(prediction, target)], 2)["boundary_iou"][1] == pytest.approx(
        common / (2 * frame - common)
    )


def test_what_is_predicted_where_nothing_is_labelled_does_not_count() -> None:
    rng = np.random.default_rng(0)
    _, target = picture(rng, 97, 120, 4)
    perfect = np.where(target == 255, rng.integers(0, 4, target.shape), target)
    found = scored([(perfect, target)], 4)
    assert found["boundary_mIoU"] == found["image_mIoU"] == 1


def test_only_what_is_near_a_boundary_counts() -> None:
    """Of a picture of one class, a frame: its edge is a contour."""
    target = np.zeros((100, 100), np.int64)
    counts = count_boundary(*(torch.from_numpy(target[None]) for _ in range(2)), 2, 255)
    assert counts.tolist() == [[94**2, 0, 0], [0, 100**2 - 94**2, 0], [0, 0, 0]]  # d is 3
    assert boundary_scores(counts)["boundary_mIoU"] == 1


def test_image_miou_is_the_mean_of_the_pictures() -> None:
    """Over the classes in truth or prediction; a picture without a label is left out."""
    rng = np.random.default_rng(3)
    pairs = [picture(rng, *size, 2 + number) for number, size in enumerate(SIZES)]
    want = []
    for p, t in pairs:
        p, t = p[t != 255], t[t != 255]
        held = set(p.tolist()) | set(t.tolist())
        want.append(np.mean([((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in held]))
    nothing = np.zeros((9, 9), np.int64), np.full((9, 9), 255)
    found = scored([*pairs, nothing], 6)
    assert float(found["image_mIoU"]) == pytest.approx(np.mean(want), rel=1e-6)
    assert abs(found["image_mIoU"] - found["mIoU"]) > 0.01
    empty = scored([nothing], 6)
    assert empty["image_mIoU"].isnan() and empty["boundary_mIoU"].isnan()


def test_neither_order_nor_batches_matter_and_labels_stay_as_they_are() -> None:
    rng = np.random.default_rng(4)
    pairs = [picture(rng, 60, 50, 5) for _ in range(4)]
    want = scored(pairs, 5)
    torch.testing.assert_close(scored(pairs[::-1], 5), want, rtol=0, atol=0)
    for kind in (torch.int64, torch.uint8):
        batch = [torch.from_numpy(np.stack(labels)).to(kind) for labels in zip(*pairs, strict=True)]
        before = [labels.clone() for labels in batch]
        metric = SplitScores(5)
        metric.update(*batch)
        torch.testing.assert_close(metric.compute(), want, rtol=0, atol=0)
        assert all(map(torch.equal, batch, before))


@pytest.mark.parametrize("label", [5, 6, 254, -1])
def test_a_wrong_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=r"expected labels 0 to 4 or ignore_index=255"):
        scored([(np.zeros((1, 2), np.int64), np.array([[0, label]]))], 5)
