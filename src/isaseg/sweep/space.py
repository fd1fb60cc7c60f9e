"""What a search may try: the swept values, in Hydra's syntax, as Optuna distributions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from isaseg.errors import ConfigError
from isaseg.sweep.launch import check_one_sweep

Space = dict[str, BaseDistribution]


def parse(params: Mapping[str, str], arguments: Sequence[str]) -> tuple[Space, list[str]]:
    """Return the search space and the overrides that are the same for every trial.

    `a,b` or `choice(a,b)`: one of these. `range(start,stop,step)`: stop excluded, as everywhere in Hydra.
    `interval(low,high)`: a real number, or an integer if both ends are; both ends included.
    `tag(log, ...)`: on a logarithmic scale.

    Args:
        params: What a file of conf/sweep searches: key to values, as on the command line.
        arguments: Overrides of the command line; they replace a param of the same key.

    Raises:
        ConfigError: For values that cannot be searched, or none.
    """
    texts = [*(f"{key}={values}" for key, values in params.items()), *arguments]
    parsed = {
        override.get_key_element(): override for override in OverridesParser.create().parse_overrides(texts)
    }
    for override in parsed.values():
        check_one_sweep(override)
    space = {key: _distribution(override) for key, override in parsed.items() if override.is_sweep_override()}
    if not space:
        raise ConfigError(
            "expected something to search, got only single values; "
            "try sweep=search, or 'optim.lr=tag(log,interval(1e-4,1e-2))'"
        )
    return space, [str(override.input_line) for key, override in parsed.items() if key not in space]


def samples(space: Space) -> list[dict[str, Any]]:
    """Return a few sets of values that contain every choice and both ends of every interval."""
    values = {
        key: list(one.choices) if isinstance(one, CategoricalDistribution) else [one.low, one.high]  # type: ignore[attr-defined]
        for key, one in space.items()
    }
    count = max(map(len, values.values()))
    return [{key: held[min(i, len(held) - 1)] for key, held in values.items()} for i in range(count)]


def overrides(values: Mapping[str, Any]) -> list[str]:
    """Return `values` as overrides, numbers in full precision."""
    return [f"{key}={value if isinstance(value, str) else repr(value)}" for key, value in values.items()]


def _distribution(override: Override) -> BaseDistribution:
    sweep, text = override.value(), override.input_line
    tags = sweep.tags if isinstance(sweep, Sweep) else set()
    if tags - {"log"}:
        raise ConfigError(f"expected no tag but log, got {text}")
    try:
        if isinstance(sweep, IntervalSweep):
            return _interval(sweep)
        if isinstance(sweep, RangeSweep):
            return _range(sweep)
        if tags or getattr(sweep, "shuffle", False):
            raise ValueError(
                "log needs numbers in an interval or a range, and a search draws in its own order"
            )
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    except ValueError as error:
        raise ConfigError(f"{text} cannot be searched: {error}") from error


def _interval(sweep: IntervalSweep) -> BaseDistribution:
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("expected two finite ends")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _range(sweep: RangeSweep) -> BaseDistribution:
    values = sorted(sweep.range())
    if not values:
        raise ValueError("the range is empty")
    low, high, step, log = values[0], values[-1], abs(sweep.step), "log" in sweep.tags
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
        return IntDistribution(low, high, log=log, step=step)
    # 0.1 + 0.1 + 0.1 is not 0.3
    return FloatDistribution(round(low, 12), round(high, 12), log=log, step=step)
