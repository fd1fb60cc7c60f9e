"""The figures as files: score against cost, curves, the grid of group sizes, classes against the baseline."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from isaseg.files import replace_file
from isaseg.report.intervals import spread
from isaseg.report.rows import Comparison, Row, finite, is_share
from isaseg.report.table import metric_name

# Okabe and Ito: apart for colour-blind readers too; a dash pattern and a marker say the same again. Seven colours
# and four patterns have no common divisor: twenty-eight rows look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
DASHES = ((), (6, 2), (2, 1.6), (7, 2, 1.5, 2))
_MARKERS = "os^D"
COSTS = {  # of the plots against cost, the first two that are known are drawn
    "attention_mult_adds": "multiply-adds of attention (millions)",
    "ms": "milliseconds a step",
    "mult_adds": "multiply-adds of the network (millions)",
    "parameters": "parameters (millions)",
    "attention_score_mib": "score memory (MiB)",
}
_LEAST = 1.0  # point that the colours of a heat map span


def write_figures(comparison: Comparison, output: Path) -> list[str]:
    """Draw what there is to draw and return the names of the files; one of an earlier comparison does not stay."""
    drawn = []
    draw: dict[str, Callable[[Comparison], Figure | None]] = {
        "accuracy_cost.png": _accuracy_cost,
        "curves.png": _curves,
        "group_size.png": _group_size,
        "classes.png": _classes,
    }
    for name, function in draw.items():
        figure = function(comparison)
        if figure is None:
            (output / name).unlink(missing_ok=True)
            continue
        with replace_file(output / name) as file:
            figure.savefig(file, format="png")
        drawn.append(name)
    return drawn


def cost(row: Row, key: str) -> float | None:
    """Return a cost of a row: a number of facts.json, or "ms" a step; None if it is not known."""
    if key == "ms":
        times = row.measured("seconds_per_step")
        return 1000 * spread(times).mean if times else None
    return row.fact(key)


def grids(comparison: Comparison) -> dict[str, dict[tuple[int, int], Row]]:
    """Return the rows by group size, for each of what else tells them apart; only where group sizes vary."""
    found: dict[str, dict[tuple[int, int], Row]] = {}
    for row in comparison.rows:
        high, _, wide = row.values.get("attention.group_size", "").partition("x")
        if high.isdecimal() and wide.isdecimal() and row.scores:
            rest = row.label.replace(f"-{high}x{wide}", "", 1)
            found.setdefault(rest, {})[int(high), int(wide)] = row
    return {rest: cells for rest, cells in found.items() if len(cells) > 1}


def class_gaps(comparison: Comparison) -> tuple[list[str], list[tuple[Row, list[float]]]]:
    """Return the baseline's classes, and the IoU of each row minus the baseline's in points; NaN where one lacks it."""
    base = comparison.baseline.classes() if comparison.baseline is not None else {}
    found = []
    for row in comparison.rows:
        held = row.classes()
        if row is not comparison.baseline and held.keys() & base.keys():
            found.append((row, [100 * (held.get(name, math.nan) - value) for name, value in base.items()]))
    return list(base), found


def _accuracy_cost(comparison: Comparison) -> Figure | None:
    rows = [row for row in comparison.rows if row.scores]
    known = [key for key in COSTS if any(cost(row, key) is not None for row in rows)][:2]
    if not known:
        return None
    scale = 100 if is_share(comparison.metric) else 1
    figure = Figure(figsize=(4.4 * len(known) + 2.4, 4.2), dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, known, strict=True):
        unit = 1e6 if "millions" in COSTS[key] else 1
        places = [None if (value := cost(row, key)) is None else value / unit for row in rows]
        for row, x in zip(rows, places, strict=True):
            if x is None:
                continue
            colour, _, marker = style(comparison, row)
            error = None if math.isnan(row.score.sd) else scale * row.score.sd
            y = scale * row.score.mean
            axes.errorbar(
                x,
                y,
                error,
                ls="none",
                color=colour,
                marker=marker,
                ms=6.5,
                capsize=2.5,
                label=_plain(row.label),
            )
        positive = [x for x in places if x]
        if len(positive) > 1 and max(positive) > 10 * min(positive):
            axes.set_xscale("symlog", linthresh=min(positive))  # a place for 0, which no context costs
        axes.set_xlabel(COSTS[key], fontsize=9)
        _tidy(axes)
    panels[0].set_ylabel(_plain(metric_name(comparison)), fontsize=9)
    named = {
        label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        named.values(), named.keys(), loc="outside right upper", fontsize=8, frameon=False, handlelength=3
    )
    return figure


def _curves(comparison: Comparison) -> Figure | None:
    metric, scale = comparison.metric, 100 if is_share(comparison.metric) else 1
    if not any(run.history.get(metric) for row in comparison.rows for run in row.runs):
        return None
    figure = Figure(figsize=(9.6, 4.4), dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots()
    for row in comparison.rows:
        colour, dash, _ = style(comparison, row)
        label: str | None = _plain(row.label)
        for run in row.runs:
            curve = finite(run.history.get(metric, {}))
            axes.plot(list(curve), [scale * v for v in curve.values()], color=colour, alpha=0.4, lw=0.8)
        mean = row.mean_curve(metric)
        if mean:
            values = [scale * value for value in mean.values()]
            axes.plot(list(mean), values, color=colour, dashes=dash or (None, None), lw=1.9, label=label)
        else:
            axes.plot([], [], color=colour, alpha=0.4, lw=0.8, label=f"{label} (none finished)")
    axes.set_xlabel("step (thin: each seed; thick: mean of the finished ones)", fontsize=9)
    axes.set_ylabel(_plain(f"{metric} %" if scale == 100 else metric), fontsize=9)
    _tidy(axes)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, handlelength=3)
    return figure


def _group_size(comparison: Comparison) -> Figure | None:
    found = grids(comparison)
    if not found:
        return None
    scale = 100 if is_share(comparison.metric) else 1
    columns = min(len(found), 3)
    lines = math.ceil(len(found) / columns)
    size = (1.2 + 3.6 * columns, 0.6 + 3.0 * lines)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    every = [scale * row.score.mean for cells in found.values() for row in cells.values()]
    # hundredths of a point must not look like black and white
    high_end = max(every)
    low = min(*every, high_end - _LEAST) if scale == 100 else min(every)
    for axes, (rest, cells) in zip(panels, found.items(), strict=False):
        high, wide = (sorted({place[axis] for place in cells}) for axis in (0, 1))
        values = np.full((len(high), len(wide)), math.nan)
        for (h, w), row in cells.items():
            values[high.index(h), wide.index(w)] = scale * row.score.mean
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high_end)
        _numbers(axes, values, values > (low + high_end) / 2, ".2f" if scale == 100 else ".4g")
        axes.set_xticks(range(len(wide)), [str(w) for w in wide], fontsize=8)
        axes.set_yticks(range(len(high)), [str(h) for h in high], fontsize=8)
        axes.set_title(_plain(rest), fontsize=9)
        axes.set_xlabel("$P_w$", fontsize=9)
        axes.set_ylabel("$P_h$", fontsize=9)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    bar = figure.colorbar(image, ax=panels, shrink=0.8)
    bar.set_label(_plain(metric_name(comparison)), fontsize=8)
    return figure


def _classes(comparison: Comparison) -> Figure | None:
    names, found = class_gaps(comparison)
    if not found or comparison.baseline is None:
        return None
    values = np.array([gaps for _, gaps in found])
    reach = max(float(np.nanmax(np.abs(values), initial=0.0)), _LEAST)
    size = (min(3.2 + 0.42 * len(names), 40), 1.9 + 0.34 * len(found))
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="PuOr_r", vmin=-reach, vmax=reach, aspect="auto")
    if len(names) <= 40:
        _numbers(axes, values, np.abs(values) < 0.7 * reach, "+.1f")
    axes.set_xticks(
        range(len(names)),
        [_plain(name) for name in names],
        fontsize=8,
        rotation=45,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(found)), [_plain(row.label) for row, _ in found], fontsize=8)
    title = f"IoU minus that of {comparison.baseline.label}, points, at the best checkpoints, mean over seeds"
    figure.suptitle(_plain(title), fontsize=8.5)
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    return figure


def style(comparison: Comparison, row: Row) -> tuple[str, tuple[float, ...], str]:
    """Return colour, dash pattern and marker of a row."""
    place = comparison.rows.index(row)
    return COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)], _MARKERS[place % len(_MARKERS)]


def _numbers(axes: Axes, values: NDArray[np.float64], bright: NDArray[np.bool_], pattern: str) -> None:
    for line, column in np.argwhere(np.isfinite(values)):
        colour = "black" if bright[line, column] else "white"
        text = format(values[line, column], pattern)
        axes.text(column, line, text, ha="center", va="center", fontsize=7.5, color=colour)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formula
