"""Losses against torch's own and against a numpy reading of openseg's definition."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isaseg.errors import ConfigError
from isaseg.models import resized_loss
from isaseg.models.losses import CrossEntropy, OhemCrossEntropy, _only
from isaseg.models.resized_loss import resized_cross_entropy

WEIGHTS = [0.5, 1.0, 2.0, 0.25]


def batch(seed: int = 0, ignored: float = 0.3, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 4, 6, 5, generator=generator)
    target = torch.randint(0, 4, (2, 6, 5), generator=generator)
    return logits, target.where(torch.rand(2, 6, 5, generator=generator) >= ignored, 255)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("ignored", [0.0, 0.5])
@pytest.mark.parametrize("label", [255, 1])
def test_cross_entropy_is_torchs(weights: list[float] | None, ignored: float, label: int) -> None:
    logits, target = batch(ignored=ignored)
    target = target.where(target != 255, label)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = CrossEntropy(label, weights)(a, target)
    want = F.cross_entropy(b, target, None if weights is None else torch.tensor(weights), ignore_index=label)
    torch.testing.assert_close(loss, want)
    loss.backward()
    want.backward()
    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("size", [(6, 5), (50, 41)])
def test_the_average_over_all_pixels_counts_those_without_a_label(size: tuple[int, int]) -> None:
    """Of logits as fine as the target, and of coarser ones; value and gradient."""
    logits, _ = batch()
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 4, (2, *size), generator=generator)
    target[:, : size[0] // 3] = 255
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = CrossEntropy(average="all")(a, target)
    fine = F.interpolate(b, size=size, mode="bilinear")
    want = F.cross_entropy(fine, target, ignore_index=255, reduction="none").mean()
    torch.testing.assert_close(loss, want)
    assert loss.item() < 0.8 * CrossEntropy()(logits, target).item()
    loss.backward()
    want.backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_class_weights_have_no_average_over_all_pixels() -> None:
    """One without a label has no weight; mmsegmentation looks it up beyond the last class, and fails."""
    with pytest.raises(ConfigError, match=r"expected loss\.average=labelled with loss\.class_weights, got "):
        CrossEntropy(class_weights=WEIGHTS, average="all")


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(),
        CrossEntropy(average="all"),
        CrossEntropy(class_weights=WEIGHTS),
        OhemCrossEntropy(),
        OhemCrossEntropy(class_weights=WEIGHTS),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("side", [64, 8])
def test_n2_a_batch_without_a_label_gives_zero_and_a_gradient_of_zero(
    loss: nn.Module, dtype: torch.dtype, side: int
) -> None:
    logits = torch.full((1, 4, side, side), 100.0, dtype=dtype).requires_grad_()  # the sum overflows float16
    target = torch.full((1, 64, 64), 255)
    value = loss(logits, target)
    assert loss(logits.detach(), target) == 0
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [CrossEntropy(), OhemCrossEntropy()])
def test_half_precision_logits_are_summed_in_single_precision(loss: nn.Module) -> None:
    logits, target = batch()
    value = loss(logits.bfloat16(), target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.bfloat16().float(), target))


def ohem(logits: Tensor, target: Tensor, thresh: float, min_kept: int, weights: list[float]) -> float:
    """Sort the true class's probabilities, cut below max(thresh, the one at index min_kept), average."""
    z = logits.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 4)
    y = target.numpy().reshape(-1)
    z, y = z[y != 255], y[y != 255]
    p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(len(y)), y]
    cut = max(thresh, np.sort(p)[min(min_kept, len(p) - 1)])
    kept = [-np.log(p[i]) * weights[y[i]] for i in range(len(y)) if p[i] < cut]
    return float(np.mean(kept))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("thresh, min_kept", [(0.7, 0), (0.2, 5), (0.05, 20), (0.9, 100_000), (0.0, 1)])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_ohem_equals_its_definition(
    seed: int, thresh: float, min_kept: int, weights: list[float] | None
) -> None:
    logits, target = batch(seed)
    loss = OhemCrossEntropy(thresh=thresh, min_kept_per_crop=min_kept, class_weights=weights)(logits, target)
    want = ohem(logits, target, thresh, min_kept * len(logits), weights or [1.0] * 4)
    assert float(loss) == pytest.approx(want, rel=1e-5)


def test_ohem_keeps_as_many_pixels_of_each_crop_however_large_the_batch_is() -> None:
    logits, target = batch()
    loss = OhemCrossEntropy(thresh=0.0, min_kept_per_crop=5)
    whole = loss(logits, target)
    for times in (2, 3):
        torch.testing.assert_close(loss(logits.repeat(times, 1, 1, 1), target.repeat(times, 1, 1)), whole)


def test_ohem_of_logits_that_are_not_a_number_is_none() -> None:
    logits, target = batch()
    logits[0, 0, 0, 0] = float("nan")
    assert OhemCrossEntropy()(logits, target.fill_(0)).isnan()


def test_ohem_adds_the_same_pixels_without_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it adds zeros for the others, and the host waits for nothing."""
    logits, target = batch()
    for loss in (OhemCrossEntropy(min_kept_per_crop=5, thresh=0.2), OhemCrossEntropy(class_weights=WEIGHTS)):
        a, b = (logits.clone().requires_grad_() for _ in range(2))
        want = loss(a, target)
        want.backward()
        with monkeypatch.context() as patch:
            patch.setattr("isaseg.models.losses._only", lambda losses, kept, _: _only(losses, kept, "cuda"))
            got = loss(b, target)
        got.backward()
        torch.testing.assert_close((got, b.grad), (want, a.grad))


def test_class_weights_are_no_part_of_a_checkpoint() -> None:
    assert not CrossEntropy(class_weights=WEIGHTS).state_dict()
    assert not OhemCrossEntropy(class_weights=WEIGHTS).state_dict()


# ---------------------------------------------------------------- coarse logits


@settings(deadline=None, max_examples=60)
@given(
    coarse=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    fine=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    classes=st.integers(1, 5),
    align_corners=st.booleans(),
    weighted=st.booleans(),
    tile=st.sampled_from([1, 7, 64]),
    as_on_gpu=st.booleans(),
    seed=st.integers(0, 99),
)
def test_coarse_logits_are_resized(
    coarse: tuple[int, int],
    fine: tuple[int, int],
    classes: int,
    align_corners: bool,
    weighted: bool,
    tile: int,
    as_on_gpu: bool,
    seed: int,
) -> None:
    """Sum and gradient, whatever the tiles, of logits finer and coarser than the target, in float64."""
    fine = min(fine[0], 12 * tile), min(fine[1], 12 * tile)  # tiles of one pixel are slow
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, *coarse, generator=generator, dtype=torch.float64)
    target = torch.randint(0, classes, (2, *fine), generator=generator)
    target = target.where(torch.rand(2, *fine, generator=generator) >= 0.3, 255)
    weight = 0.5 + torch.arange(classes, dtype=torch.float64) if weighted else None
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isaseg.models.resized_loss._TILE", tile)
        if as_on_gpu:
            tiles = partial(resized_loss._tiles, device="cuda")
            patch.setattr(resized_loss, "_tiles", lambda fine, coarse, device: tiles(fine, coarse))
            patch.setattr(resized_loss, "_AT_ONCE", tile * fine[1] * classes)
        got = resized_cross_entropy(a, target, weight, 255, align_corners)
    whole = F.interpolate(b, size=fine, mode="bilinear", align_corners=align_corners)
    want = F.cross_entropy(whole, target, weight, ignore_index=255, reduction="sum")
    (3 * got).backward()
    (3 * want).backward()
    torch.testing.assert_close((got, a.grad), (want, b.grad), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [CrossEntropy, OhemCrossEntropy])
def test_coarse_logits_in_half_precision(make: Any) -> None:
    """Under autocast: no worse than resizing in float32 and rounding the gradient."""
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.randint(0, 5, (2, 45, 50), generator=torch.Generator().manual_seed(0))
    a, b = logits.clone().requires_grad_(), logits.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = make()(a, target)
    want = make()(b, target)
    got.backward()
    want.backward()
    assert got.dtype is torch.float32
    assert a.grad is not None and a.grad.dtype is torch.bfloat16
    torch.testing.assert_close(got, want, rtol=1e-6 if make is CrossEntropy else 1e-3, atol=0)
    torch.testing.assert_close(a.grad.float(), b.grad, rtol=0.02, atol=1e-5)


def test_coarse_logits_that_are_not_finite_give_no_finite_loss() -> None:
    logits = torch.full((1, 4, 8, 8), float("nan"), dtype=torch.float16)
    assert CrossEntropy()(logits, torch.zeros(1, 64, 64, dtype=torch.long)).isnan()
