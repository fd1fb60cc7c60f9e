"""Mean, spread and differences over seeds, with Student's t intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from scipy.special import stdtrit  # scipy.stats takes a second longer to import


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of `n` values; NaN where there are too few."""

    n: int
    mean: float
    sd: float


class Difference(NamedTuple):
    """A difference of two means with its confidence interval; no interval (NaN) if a side has a single seed."""

    value: float
    low: float
    high: float
    how: Literal["paired", "Welch", "none"]


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of any number of values."""
    return Spread(
        len(values),
        statistics.fmean(values) if values else math.nan,
        statistics.stdev(values) if len(values) > 1 else math.nan,
    )


def difference(scores: Mapping[int, float], baseline: Mapping[int, float], confidence: float) -> Difference:
    """Return mean of `scores` minus mean of `baseline`, both by seed.

    With the same seeds on both sides, two at least, the differences of each seed are taken (paired t); otherwise
    variances are not assumed equal (Welch 1947, degrees of freedom after Satterthwaite).

    Args:
        scores: Score of each seed, one at least.
        baseline: Likewise.
        confidence: Between 0 and 1, such as 0.95.
    """
    ours, theirs = spread(list(scores.values())), spread(list(baseline.values()))
    value = ours.mean - theirs.mean
    if min(ours.n, theirs.n) < 2:
        return Difference(value, math.nan, math.nan, "none")
    if scores.keys() == baseline.keys():
        error = spread([scores[seed] - baseline[seed] for seed in scores]).sd / math.sqrt(ours.n)
        return _interval(value, error, ours.n - 1, confidence, "paired")
    a, b = ours.sd**2 / ours.n, theirs.sd**2 / theirs.n
    freedom = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (theirs.n - 1)) if a + b > 0 else 1.0
    return _interval(value, math.sqrt(a + b), freedom, confidence, "Welch")


def _interval(
    value: float, error: float, freedom: float, confidence: float, how: Literal["paired", "Welch"]
) -> Difference:
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Difference(value, value - half, value + half, how)
