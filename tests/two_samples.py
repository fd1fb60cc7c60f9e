"""Two-sample tests of what is drawn at random, and functions made wrong, to show that the tests would tell."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Return the probability of samples that differ as much or more; what is not a number counts for nothing."""
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    assert min(len(a), len(b)) > 60, "too few to compare"
    return float(ks_2samp(a, b, method="asymp").pvalue)


def as_often(a: np.ndarray, b: np.ndarray) -> float:
    """Return the probability of counts of each value that differ as much or more."""
    values = np.unique(np.concatenate([a, b]))
    counts = [[np.count_nonzero(x == value) for value in values] for x in (a, b)]
    return float(chi2_contingency(counts, correction=False).pvalue)


def mutant(function: Callable[..., Any], line: str, before: str, after: str) -> Callable[..., Any]:
    """Return a function with other words in the line of its source that begins so."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    (index,) = (k for k, text in enumerate(lines) if text.strip().startswith(line))
    assert before in lines[index]
    lines[index] = lines[index].replace(before, after)
    names: dict[str, Any] = {}
    exec("\n".join(lines), vars(inspect.getmodule(function)), names)
    changed: Callable[..., Any] = names[function.__name__]
    return changed
