"""Mean, spread and differences over seeds, with Student's t intervals at 95 %."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1); NaN where there are too few values."""

    mean: float
    sd: float


class Difference(NamedTuple):
    """A difference of two means with its confidence interval; the interval is NaN if a side has a single seed."""

    value: float
    low: float
    high: float
    how: Literal["paired", "Welch", "none"]


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the sample standard deviation of any number of values."""
    mean = statistics.fmean(values) if values else math.nan
    return Spread(mean, statistics.stdev(values) if len(values) > 1 else math.nan)


def difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return the mean of `scores` minus the mean of `baseline`, both by seed and not empty.

    If both sides have the same seeds, at least two, the t interval is that of the differences per seed (paired).
    Otherwise it is Welch's, which does not assume equal variances.
    """
    from scipy import stats  # takes two seconds to import

    ours, theirs = ([side[seed] for seed in sorted(side)] for side in (scores, baseline))
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    if min(len(ours), len(theirs)) < 2:
        return Difference(value, math.nan, math.nan, "none")
    paired = scores.keys() == baseline.keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy warns of values that are all alike
        test = stats.ttest_rel(ours, theirs) if paired else stats.ttest_ind(ours, theirs, equal_var=False)
        interval = test.confidence_interval(0.95)
    low, high = (value if math.isnan(end) else float(end) for end in interval)  # NaN: neither side varies
    return Difference(value, low, high, "paired" if paired else "Welch")
