"""Schedules at chosen steps against their formulas."""

import math
from collections.abc import Callable

import pytest

from isaseg.training.schedules import Factor, constant, cosine, one_cycle, poly


@pytest.mark.parametrize("floor", [0.0, 0.01])
def test_poly_and_cosine_fall_to_the_floor_as_in_mmseg(floor: float) -> None:
    for made, fall in (
        (poly(100, 0.01, 0.9, floor * 0.01, 0, False), lambda k: (1 - k / 100) ** 0.9),
        (cosine(100, 0.01, floor * 0.01, 0), lambda k: (1 + math.cos(math.pi * k / 100)) / 2),
    ):
        want = [(1 - floor) * fall(k) + floor for k in range(101)]
        assert [made(k) for k in range(101)] == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_poly_may_end_at_the_last_step_as_in_mmengine() -> None:
    """Its own PolyLR gives these rates: tests/peers/test_mmseg_training.py."""
    factor = poly(50, 0.01, 0.9, 1e-4, 0, True)
    want = [0.99 * (1 - k / 49) ** 0.9 + 0.01 for k in range(50)]
    assert [factor(k) for k in range(50)] == pytest.approx(want, rel=1e-12)
    assert [factor(k) for k in (49, 50, 60)] == [0.01] * 3


def test_one_cycle_rises_and_falls_as_half_cosines() -> None:
    rise = [1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * k / 15)) / 2 for k in range(15)]
    fall = [(1 + math.cos(math.pi * k / 85)) / 2 for k in range(86)]
    for power in (1, 2):
        factor = one_cycle(100, 0.15, power)
        assert [factor(k) for k in range(101)] == pytest.approx(rise + [f**power for f in fall], abs=1e-12)


WITH: dict[str, Callable[[int], Factor]] = {
    "constant": lambda warm: constant(warm),
    "poly": lambda warm: poly(100, 0.1, 0.9, 0.0, warm, False),
    "cosine": lambda warm: cosine(100, 0.1, 0.0, warm),
}


@pytest.mark.parametrize("name", WITH)
def test_warm_up_is_linear_and_ends_on_the_curve(name: str) -> None:
    factor, plain = WITH[name](4), WITH[name](0)
    assert [factor(k) / plain(k) for k in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_steps_after_the_end_stay_at_the_end() -> None:
    assert [f(15) for f in (poly(10, 1.0, 0.9, 0.0, 0, False), poly(10, 1.0, 0.9, 0.01, 0, False))] == [
        0,
        0.01,
    ]
    assert [f(15) for f in (cosine(10, 1.0, 0.0, 0), one_cycle(10, 0.2, 1))] == pytest.approx([0, 0])


@pytest.mark.parametrize("total", [1, 2])
def test_the_shortest_runs_have_a_rate(total: int) -> None:
    ends = [poly(total, 1.0, 0.9, 0.1, 0, ends) for ends in (False, True)]
    for factor in (one_cycle(total, 0.15, 1), *ends, cosine(total, 1.0, 0.0, 0)):
        assert all(0 < factor(k) <= 1 for k in range(total))
    assert [factor(0) for factor in ends] == [1, 1]
