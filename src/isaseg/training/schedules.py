"""Schedules of the learning rate. Each returns the factor of the rate as a function of the optimizer step k = 0, 1, ...

`make_optimizer` gives a schedule `total_steps` and `lr` if it has parameters of these names; the rest are settings.
"""

import math
from collections.abc import Callable
from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Factor = Callable[[int], float]
Share = Annotated[float, Field(ge=0, le=1)]
Power = Annotated[float, Field(ge=0, le=100)]


def constant(warmup_steps: NonNegativeInt) -> Factor:
    """Return the factor 1, after a linear warm-up."""
    return _warmed_up(lambda step: 1.0, warmup_steps)


def poly(
    total_steps: PositiveInt,
    lr: PositiveFloat,
    power: Power,
    min_lr: NonNegativeFloat,
    warmup_steps: NonNegativeInt,
    ends_at_last_step: bool,
) -> Factor:
    """Return the fall from `lr` to `min_lr` as (1 - k / end) ** power, after a linear warm-up.

    The end is `total_steps`, the step after the last one, as in openseg and mmsegmentation 0.x; or, with
    `ends_at_last_step`, the last step itself, as in mmengine's PolyLR, so that this step has `min_lr`.
    """
    floor, end = min_lr / lr, max(total_steps - ends_at_last_step, 1)

    def factor(step: int) -> float:
        return floor + (1 - floor) * float((1 - min(step, end) / end) ** power)

    return _warmed_up(factor, warmup_steps)


def cosine(
    total_steps: PositiveInt, lr: PositiveFloat, min_lr: NonNegativeFloat, warmup_steps: NonNegativeInt
) -> Factor:
    """Return half a cosine from `lr` to `min_lr` (SGDR, arXiv 1608.03983, without restarts), after a linear warm-up."""
    floor = min_lr / lr

    def factor(step: int) -> float:
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(step / total_steps, 1.0))) / 2

    return _warmed_up(factor, warmup_steps)


def one_cycle(total_steps: PositiveInt, warmup: Share, power: Power, hold: Share = 0) -> Factor:
    """Return a cosine from 1/25 to 1 over the fraction `warmup` of the steps, then a cosine ** `power` from 1 to 0.

    Between the two the factor stays 1 for the fraction `hold` of the steps; what of it does not fit is left out.
    """
    rise = max(round(total_steps * warmup), 1)
    start = min(rise + round(total_steps * hold), total_steps)

    def factor(step: int) -> float:
        if step < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
        fall = min(max(step - start, 0) / max(total_steps - start, 1), 1.0)
        return float(((1 + math.cos(math.pi * fall)) / 2) ** power)

    return factor


def _warmed_up(factor: Factor, warmup_steps: int) -> Factor:
    """Return the factor times (k + 1) / warmup_steps in the first steps."""
    if not warmup_steps:
        return factor
    return lambda step: factor(step) * min(1.0, (step + 1) / warmup_steps)
