"""Optimizers and their schedules; the length of a schedule comes from the configuration, in optimizer steps.

Lightning's `estimated_stepping_batches` is not used: reading it loses the position of the loader when a run resumes
(lightning#20550).
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from isaseg.training._compat import unscaled_by_lightning

Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0, le=1000)]
Power = Annotated[float, Field(ge=0, le=100)]
Schedule = tuple[Optimizer, LambdaLR]


def sgd_poly(
    model: nn.Module,
    lr: PositiveFloat,
    total_steps: PositiveInt,
    momentum: Share = 0.9,
    weight_decay: Factor = 5e-4,
    decay_norm_and_bias: bool = True,
    head_lr_mult: Factor = 1.0,
    power: Power = 0.9,
    min_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule:
    """Return SGD with a rate that falls from `lr` to `min_lr` as (1 - step / total_steps) ** power."""
    groups = parameter_groups(model, lr, weight_decay, decay_norm_and_bias, head_lr_mult)
    optimizer = unscaled_by_lightning(SGD(groups, lr=lr, momentum=momentum, fused=True))
    return optimizer, LambdaLR(optimizer, poly(total_steps, power, min_lr / lr, warmup_steps))


def adamw_poly(
    model: nn.Module,
    lr: PositiveFloat,
    total_steps: PositiveInt,
    weight_decay: Factor = 1e-2,
    decay_norm_and_bias: bool = False,
    head_lr_mult: Factor = 1.0,
    power: Power = 1.0,
    min_lr: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt = 0,
) -> Schedule:
    """Return AdamW with the schedule of `sgd_poly`."""
    groups = parameter_groups(model, lr, weight_decay, decay_norm_and_bias, head_lr_mult)
    optimizer = unscaled_by_lightning(AdamW(groups, lr=lr, fused=True))
    return optimizer, LambdaLR(optimizer, poly(total_steps, power, min_lr / lr, warmup_steps))


def adamw_one_cycle(
    model: nn.Module,
    lr: PositiveFloat,
    total_steps: PositiveInt,
    weight_decay: Factor = 1e-2,
    decay_norm_and_bias: bool = False,
    head_lr_mult: Factor = 1.0,
    warmup: Share = 0.15,
    power: Power = 1.0,
) -> Schedule:
    """Return AdamW; a cosine rise to `lr` over the fraction `warmup` of the steps, then a cosine ** `power` fall to 0."""
    groups = parameter_groups(model, lr, weight_decay, decay_norm_and_bias, head_lr_mult)
    optimizer = unscaled_by_lightning(AdamW(groups, lr=lr, fused=True))
    return optimizer, LambdaLR(optimizer, one_cycle(total_steps, warmup, power))


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, decay_norm_and_bias: bool, head_lr_mult: float
) -> list[dict[str, Any]]:
    """Return groups of parameters by learning rate (backbone or not) and by decay (weights, or norms and biases)."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = lr if name.startswith("backbone.") else lr * head_lr_mult
        decay = weight_decay if decay_norm_and_bias or parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def poly(total_steps: int, power: float, floor: float = 0.0, warmup_steps: int = 0) -> Callable[[int], float]:
    """Return the factor as a function of step k: floor + (1 - floor) (1 - k / total_steps) ** power, as in mmseg."""

    def factor(step: int) -> float:
        value = floor + (1 - floor) * float((1 - min(step, total_steps) / total_steps) ** power)
        return value * min(1.0, (step + 1) / warmup_steps) if warmup_steps else value

    return factor


def one_cycle(total_steps: int, warmup: float, power: float = 1.0) -> Callable[[int], float]:
    """Return the factor as a function of the step: a cosine from 1/25 to 1, then a cosine ** `power` from 1 to 0."""
    rise = max(round(total_steps * warmup), 1)

    def factor(step: int) -> float:
        if step < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / rise)) / 2
        fall = min((step - rise) / max(total_steps - rise, 1), 1.0)
        return float(((1 + math.cos(math.pi * fall)) / 2) ** power)

    return factor
