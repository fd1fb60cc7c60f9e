"""The optimizer, its groups of parameters and the schedule of their rates; the length comes from the configuration.

Lightning's `estimated_stepping_batches` is not used: reading it loses the position of the loader when a run resumes
(lightning#20550).
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from isaseg.errors import ConfigError
from isaseg.training._compat import unscaled_by_lightning

Mult = Annotated[float, Field(ge=0, le=1000)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
Optimization = tuple[Optimizer, LRScheduler]


def make_optimizer(
    model: nn.Module,
    optimizer: Callable[..., Any],
    schedule: Callable[..., Any],
    lr: PositiveFloat,
    weight_decay: Mult,
    total_steps: PositiveInt,
    decay_norm_and_bias: bool,
    head_lr_mult: Mult,
    layer_decay: LayerDecay | None,
) -> Optimization:
    """Return an optimizer over the groups of `parameter_groups`, and the schedule, which advances every optimizer step.

    Args:
        model: The network.
        optimizer: Takes the groups, and `lr` and `weight_decay` where it has parameters of these names: a class of
            torch.optim or timm.optim, or one like them.
        schedule: Takes `total_steps` and `lr` where it has parameters of these names and returns the factor of the rates
            as a function of the step, as `schedules.poly` does; or a class of torch.optim.lr_scheduler, which takes the
            optimizer.
        lr: Rate, which the schedule multiplies.
        weight_decay: Of what decays.
        total_steps: Optimizer steps of the schedule.
        decay_norm_and_bias: See `parameter_groups`.
        head_lr_mult: See `parameter_groups`.
        layer_decay: See `parameter_groups`.

    Raises:
        ConfigError: If they do not fit together, or no step of this optimizer could be taken.
    """
    _check_free("optimizer", optimizer, ("params", "lr", "weight_decay"))
    groups = parameter_groups(model, lr, weight_decay, decay_norm_and_bias, head_lr_mult, layer_decay)
    settings = _wanted(optimizer, lr=lr, weight_decay=weight_decay)
    if weight_decay and "weight_decay" not in settings:
        raise ConfigError(
            f"expected optim.weight_decay=0 for {_name(optimizer)}, which has no weight decay, got {weight_decay}"
        )
    chosen = getattr(optimizer, "keywords", {}).keys() & {"fused", "foreach", "differentiable"}
    is_fused = _class(optimizer) in (SGD, Adam, AdamW) and not chosen
    made = _build("optimizer", optimizer, groups, **settings, **({"fused": True} if is_fused else {}))
    _check_steps(made)
    return unscaled_by_lightning(made) if is_fused else made, _scheduler(made, schedule, lr, total_steps)


def parameter_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    decay_norm_and_bias: bool = True,
    head_lr_mult: float = 1.0,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return the parameters that are trained in groups of one rate and weight decay; the last ones have the head's rate.

    Args:
        model: A network; what is not below its `backbone` is its head.
        lr: Rate of the backbone.
        weight_decay: Of what decays.
        decay_norm_and_bias: Whether norms and biases (all vectors) and what `backbone.no_weight_decay()` names decay too.
        head_lr_mult: Rate of the head, as a multiple of `lr`.
        layer_decay: Multiplies the rate of a backbone's layer once for each layer above it, the head included, as in BEiT
            (arXiv 2106.08254); `backbone.layers_above()` counts them. None: the same rate in all layers.

    Raises:
        ConfigError: If `layer_decay` is given for a backbone that does not know its layers.
    """
    backbone: Any = getattr(model, "backbone", None)
    above: dict[str, int] = {}
    if layer_decay is not None:
        if not hasattr(backbone, "layers_above"):
            raise ConfigError(
                f"expected a backbone with layers_above() for optim.layer_decay={layer_decay}, "
                f"got {type(backbone).__name__}; set optim.layer_decay=null"
            )
        above = backbone.layers_above()
    spared: set[str] = set() if decay_norm_and_bias else getattr(backbone, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("backbone.")
        rate = lr * head_lr_mult if inner == name else lr * (layer_decay or 1.0) ** above.get(inner, 0)
        decays = decay_norm_and_bias or (parameter.ndim > 1 and inner not in spared)
        groups.setdefault((rate, weight_decay if decays else 0.0), []).append(parameter)
    of_head = lr * head_lr_mult
    return [
        {"params": groups[rate, decay], "lr": rate, "weight_decay": decay}
        for rate, decay in sorted(groups, key=lambda key: key[0] == of_head)
    ]


def reschedule(checkpoint: dict[str, Any], optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Give a training checkpoint of another number of steps the rates that this schedule has at its step.

    Args:
        checkpoint: What the file holds; it is changed.
        optimizer: A new one, like that of the checkpoint.
        scheduler: Its schedule, which is stepped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer takes no step between
        for _ in range(checkpoint["lr_schedulers"][0]["last_epoch"]):
            scheduler.step()
    checkpoint["lr_schedulers"] = [scheduler.state_dict()]
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    for held, new in zip(groups, optimizer.state_dict()["param_groups"], strict=True):
        # what schedules change
        held.update({key: new[key] for key in ("lr", "momentum", "betas") if key in new})
    checkpoint["stopped"] = False  # early


def _scheduler(
    optimizer: Optimizer, schedule: Callable[..., Any], lr: float, total_steps: int
) -> LRScheduler:
    kind = _class(schedule)
    if kind is not None and issubclass(kind, ReduceLROnPlateau):
        raise ConfigError(
            "expected a schedule that follows the optimizer steps, got optim.schedule._target_=ReduceLROnPlateau, which "
            "follows a score; choose another one, e.g. optim/schedule=cosine"
        )
    if kind is not None and issubclass(kind, LRScheduler):
        made: LRScheduler = _build("schedule", schedule, optimizer)
        # it raises at the step after its last
        if isinstance(made, OneCycleLR) and made.total_steps < total_steps:
            raise ConfigError(
                f"expected OneCycleLR for all {total_steps} steps of the run, got total_steps={made.total_steps}; set "
                "optim.schedule.total_steps='${trainer.max_steps}'"
            )
        return made
    _check_free("schedule", schedule, ("total_steps", "lr"))
    warmup = getattr(schedule, "keywords", {}).get("warmup_steps", 0)
    if isinstance(warmup, int) and warmup >= total_steps:
        raise ConfigError(
            f"expected a warm-up shorter than the {total_steps} steps of the run, got "
            f"optim.schedule.warmup_steps={warmup}; lower it or raise trainer.max_steps"
        )
    factor = _build("schedule", schedule, **_wanted(schedule, total_steps=total_steps, lr=lr))
    scheduled: LRScheduler = _build("schedule", LambdaLR, optimizer, factor)
    return scheduled


def _check_steps(optimizer: Any) -> None:
    """Raise for an optimizer that needs more of a step than the gradients of one batch."""
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"expected optim.optimizer to make an optimizer, got {type(optimizer).__name__}")
    parameters = inspect.signature(type(optimizer).step).parameters
    closure = parameters.get("closure")
    if closure is None and all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        raise ConfigError(
            f"expected an optimizer whose step Lightning can give a closure, got {type(optimizer).__name__}; "
            "write `def step(self, closure=None)`"
        )
    why = None
    if closure is not None and closure.default is inspect.Parameter.empty:
        why = "computes the loss several times a step"
    elif getattr(optimizer, "is_second_order", False):  # timm's word
        why = "needs second derivatives"
    elif isinstance(optimizer, SparseAdam):
        why = "takes sparse gradients alone"
    if why:
        raise ConfigError(
            f"expected an optimizer that steps by the gradients of one batch, got {type(optimizer).__name__}, which "
            f"{why}; choose another optim.optimizer._target_"
        )


def _build(key: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return make(*args, **kwargs)
    except Exception as error:  # of any class, the user's own too
        raise ConfigError(f"optim.{key}: {_name(make)} cannot be built: {error}") from error


def _check_free(key: str, make: Any, taken: Iterable[str]) -> None:
    for name in taken:
        if name in getattr(make, "keywords", {}):
            raise ConfigError(f"expected {name} from optim.{name}, got optim.{key}.{name}; remove the latter")


def _wanted(make: Any, **known: float) -> dict[str, float]:
    """Return those of the settings that have a parameter."""
    parameters = inspect.signature(_inner(make)).parameters
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in known.items() if is_open or name in parameters}


def _inner(make: Any) -> Any:
    return getattr(make, "func", make)  # of a partial


def _class(make: Any) -> type | None:
    inner = _inner(make)
    return inner if isinstance(inner, type) else None


def _name(make: Any) -> str:
    return getattr(_inner(make), "__name__", str(make))
