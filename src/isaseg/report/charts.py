"""What the charts show, for Matplotlib (`figures`) and for Plotly (`page`) alike: score against cost, and curves."""

import math
from typing import NamedTuple

from isaseg.report.rows import Comparison, Row, scale_of
from isaseg.report.runs import finite
from isaseg.report.table import metric_name, with_unit

# Okabe and Ito's colours, which colour-blind readers can tell apart, with a dash pattern and a marker besides. Seven
# colours and four patterns have no common divisor: twenty-eight rows look different. Patterns are (Matplotlib, Plotly).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))
MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"))
LEGEND = "faint: each seed; strong: mean\n*: not converged, shows speed of learning"

_COSTS = {
    "attention_mult_adds": "multiply-adds of attention",
    "ms_per_step": "milliseconds a step",
    "mult_adds": "multiply-adds of the network",
    "parameters": "parameters",
    "attention_score_mib": "score memory (MiB)",
}


class Line(NamedTuple):
    """Points of a row that are drawn alike: those of one or all of its runs, or of their mean.

    Attributes:
        place: Place of the row in the comparison, which determines colour, dash pattern and marker.
        label: Label of the row, with a star if not all of its finished runs have converged.
        is_mean: Whether it is the mean, which is drawn strong and named in the legend.
        x: Costs or steps.
        y: Scores.
        sd: Standard deviation of the mean, NaN if there is none to draw.
    """

    place: int
    label: str
    is_mean: bool
    x: list[float]
    y: list[float]
    sd: float = math.nan


class Chart(NamedTuple):
    """Lines and the titles of the two axes; `is_curve` if points are joined."""

    x: str
    y: str
    is_curve: bool
    lines: list[Line]


def cost_charts(comparison: Comparison) -> list[Chart]:
    """Return the score against each cost that is known; a row that does not know it has lines without points.

    All charts have the same lines in the same order, so that a menu can exchange them.
    """
    scale, found = scale_of(comparison.metric), []
    for key, title in _COSTS.items():
        lines = []
        for place, row in enumerate(comparison.rows):
            cost, label = row.cost(key), marked(comparison, row)
            scores = [] if cost is None else list(row.scores.values())
            mean = [row.score.mean] if scores else []
            for values, is_mean, sd in ((scores, False, math.nan), (mean, True, row.score.sd)):
                x, y = [cost or 0.0] * len(values), [scale * value for value in values]
                lines.append(Line(place, label, is_mean, x, y, scale * sd))
        if any(line.x for line in lines):
            found.append(Chart(title, metric_name(comparison), False, lines))
    return found


def curve_charts(comparison: Comparison) -> list[Chart]:
    """Return the curves of each metric that the runs have, first those of the one that is compared."""
    metrics = {key for row in comparison.rows for run in row.runs for key in run.history.curves}
    found = []
    for key in sorted(metrics, key=lambda key: (key != comparison.metric, key)):
        lines = []
        for place, row in enumerate(comparison.rows):
            curves = [(finite(run.history.curves.get(key, {})), False) for run in row.runs]
            for curve, is_mean in [*curves, (row.mean_curve(key), True)]:
                values = [scale_of(key) * value for value in curve.values()]
                lines.append(Line(place, marked(comparison, row), is_mean, list(curve), values))
        found.append(Chart("step", with_unit(key), True, lines))
    return found


def marked(comparison: Comparison, row: Row) -> str:
    """Return the label, with a star if not all of the finished runs have converged."""
    converged = row.converged(comparison.metric)
    return row.label + " *" * (converged not in (None, row.count("finished")))
