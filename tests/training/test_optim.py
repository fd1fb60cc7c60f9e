"""Schedules at chosen steps against their formulas; parameter groups against the rule."""

import math
from typing import Any

import lightning
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from isaseg.models.backbone import Backbone
from isaseg.models.criss_cross import CrissCrossAttention
from isaseg.models.segmenter import build_segmenter
from isaseg.training.optim import (
    Schedule,
    adamw_one_cycle,
    adamw_poly,
    one_cycle,
    parameter_groups,
    poly,
    sgd_poly,
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_segmenter(
        Backbone("test_resnet", output_stride=8), 3, CrissCrossAttention, 8, aux_channels=4
    )


def rates(schedule: Schedule, steps: int, group: int = 0) -> list[float]:
    """Return the rate that each of `steps` optimizer steps uses, and the one after them."""
    optimizer, scheduler = schedule
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[group]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("min_lr", [0.0, 1e-4])
def test_poly_falls_to_min_lr_as_in_mmseg(min_lr: float, model: nn.Module) -> None:
    want = [(0.01 - min_lr) * (1 - k / 100) ** 0.9 + min_lr for k in range(101)]
    for schedule in (
        sgd_poly(model, 0.01, 100, min_lr=min_lr),
        adamw_poly(model, 0.01, 100, power=0.9, min_lr=min_lr),
    ):
        assert rates(schedule, 100) == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_warm_up_is_linear_and_ends_on_the_curve() -> None:
    factor, plain = poly(100, 0.9, warmup_steps=4), poly(100, 0.9)
    assert [factor(k) / plain(k) for k in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_steps_after_the_end_stay_at_the_end() -> None:
    assert poly(10, 0.9)(15) == 0
    assert poly(10, 0.9, floor=0.01)(15) == pytest.approx(0.01)
    assert one_cycle(10, 0.2)(15) == pytest.approx(0, abs=1e-15)


def test_one_cycle_rises_and_falls_as_half_cosines(model: nn.Module) -> None:
    rise = [4e-3 / 25 + (4e-3 - 4e-3 / 25) * (1 - math.cos(math.pi * k / 15)) / 2 for k in range(15)]
    fall = [4e-3 * (1 + math.cos(math.pi * k / 85)) / 2 for k in range(86)]
    assert rates(adamw_one_cycle(model, 4e-3, 100, warmup=0.15), 100) == pytest.approx(rise + fall, abs=1e-12)


@pytest.mark.parametrize("total", [1, 2])
def test_the_shortest_runs_have_a_rate(total: int) -> None:
    assert all(0 < one_cycle(total, 0.15)(k) <= 1 for k in range(total))
    assert all(0 < poly(total, 0.9)(k) <= 1 for k in range(total))


# ---------------------------------------------------------------- groups


def settings(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return (lr, weight_decay) of each parameter by name."""
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize("mult", [1.0, 10.0])
def test_every_parameter_is_in_one_group_and_the_head_learns_faster(
    decay_norm_and_bias: bool, mult: float, model: nn.Module
) -> None:
    groups = parameter_groups(model, 0.1, 0.01, decay_norm_and_bias, mult)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    found = {(name.split(".")[0], lr) for name, (lr, _) in settings(model, groups).items()}
    assert found == {("backbone", 0.1), ("head", 0.1 * mult), ("aux_head", 0.1 * mult)}


def test_the_schedule_keeps_the_factor(model: nn.Module) -> None:
    schedule = sgd_poly(model, 0.1, 10, head_lr_mult=10.0)
    optimizer, scheduler = schedule
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.1 * 0.5**0.9, 0.5**0.9])


def test_norms_and_biases_do_not_decay_unless_asked(model: nn.Module) -> None:
    norms = {
        f"{m}.{p}"
        for m, child in model.named_modules()
        if isinstance(child, nn.BatchNorm2d)
        for p in ("weight", "bias")
    }
    got = settings(model, parameter_groups(model, 0.1, 0.01, False, 1.0))
    spared = {name for name, (_, decay) in got.items() if decay == 0}
    assert norms < spared
    assert spared == norms | {n for n in got if n.endswith("bias")} | {"head.attention.gamma"}
    assert {decay for name, (_, decay) in got.items() if name not in spared} == {0.01}
    everything = settings(model, parameter_groups(model, 0.1, 0.01, True, 1.0))
    assert {decay for _, decay in everything.values()} == {0.01}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    ids = {id(p) for g in parameter_groups(model, 0.1, 0.0, True, 1.0) for p in g["params"]}
    assert ids == {id(p) for p in model[1].parameters()}


def test_defaults_are_the_published_ones(model: nn.Module) -> None:
    sgd, _ = sgd_poly(model, 0.01, 10)
    assert isinstance(sgd, SGD)
    assert [(g["momentum"], g["weight_decay"], g["nesterov"]) for g in sgd.param_groups] == [
        (0.9, 5e-4, False)
    ]
    adamw, _ = adamw_poly(model, 1e-4, 10)
    assert isinstance(adamw, AdamW)
    assert {g["weight_decay"] for g in adamw.param_groups} == {0.0, 1e-2}


def test_the_private_api_is_that_of_the_versions_it_was_written_for(model: nn.Module) -> None:
    """`_compat.unscaled_by_lightning`; Lightning above 2.6 may have lightning#21436, and bf16 then needs it no more."""
    assert lightning.__version__.startswith("2.6.") and torch.__version__.startswith("2.")
    assert AdamW(model.parameters(), fused=True)._step_supports_amp_scaling
    assert not adamw_poly(model, 1e-4, 10)[0]._step_supports_amp_scaling  # type: ignore[attr-defined]
