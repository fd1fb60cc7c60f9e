"""The figures as files: score against cost, curves, the grid of group sizes, classes against the baseline."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from isaseg.files import replace_file
from isaseg.report.rows import Comparison, Row, finite, scale_of
from isaseg.report.table import metric_name

# Okabe and Ito's colours, which colour-blind readers can tell apart, with a dash pattern and a marker besides. Seven
# colours and four patterns have no common divisor: twenty-eight rows look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
DASHES = ((), (6, 2), (2, 1.6), (7, 2, 1.5, 2))
_MARKERS = "os^D"
COSTS = {  # the first two that are known are drawn
    "attention_mult_adds": "multiply-adds of attention",
    "ms": "milliseconds a step",
    "mult_adds": "multiply-adds of the network",
    "parameters": "parameters",
    "attention_score_mib": "score memory (MiB)",
}
_LEAST = (
    1.0  # points that the colours of a heat map span at least: hundredths must not look like black and white
)
_ONE_PANEL = 6  # rows; curves of more are drawn in a panel for each context module


def write_figures(comparison: Comparison, output: Path) -> list[str]:
    """Draw what there is to draw and return the names of the files; remove those of an earlier comparison."""
    draw: dict[str, Callable[[Comparison], Figure | None]] = {
        "accuracy_cost.png": _accuracy_cost,
        "curves.png": _curves,
        "group_size.png": _group_size,
        "classes.png": _classes,
    }
    drawn = []
    for name, function in draw.items():
        figure = function(comparison)
        if figure is None:
            (output / name).unlink(missing_ok=True)
            continue
        with replace_file(output / name) as file:
            figure.savefig(file, format="png")
        drawn.append(name)
    return drawn


def grids(comparison: Comparison) -> dict[str, dict[tuple[int, int], Row]]:
    """Return the rows by group size, where it varies, for each label without the group size."""
    found: dict[str, dict[tuple[int, int], Row]] = {}
    for row in comparison.rows:
        high, _, wide = row.values.get("attention.group_size", "").partition("x")
        if high.isdecimal() and wide.isdecimal() and row.scores:
            rest = row.label.replace(f"-{high}x{wide}", "", 1)
            found.setdefault(rest, {})[int(high), int(wide)] = row
    return {rest: cells for rest, cells in found.items() if len(cells) > 1}


def heat(cells: dict[tuple[int, int], Row], scale: float) -> tuple[list[int], list[int], NDArray[np.float64]]:
    """Return the heights, the widths and the mean scores (heights, widths) of one of the `grids`, NaN where unknown."""
    high, wide = (sorted({place[axis] for place in cells}) for axis in (0, 1))
    values = np.full((len(high), len(wide)), math.nan)
    for (h, w), row in cells.items():
        values[high.index(h), wide.index(w)] = scale * row.score.mean
    return high, wide, values


def class_gaps(comparison: Comparison) -> tuple[list[str], list[tuple[Row, list[float]]]]:
    """Return the baseline's classes, and each row's IoU minus the baseline's in points; NaN where one is missing."""
    base = comparison.baseline.classes() if comparison.baseline is not None else {}
    found = []
    for row in comparison.rows:
        held = row.classes()
        if row is not comparison.baseline and held.keys() & base.keys():
            found.append((row, [100 * (held.get(name, math.nan) - value) for name, value in base.items()]))
    return list(base), found


def marked(comparison: Comparison, row: Row) -> str:
    """Return the label, with a star if not all of the runs have converged."""
    return row.label + (" *" if _is_hollow(comparison, row) else "")


def _is_hollow(comparison: Comparison, row: Row) -> bool:
    return row.converged(comparison.metric) not in (None, row.count("finished"))


def _accuracy_cost(comparison: Comparison) -> Figure | None:
    rows = [row for row in comparison.rows if row.scores]
    known = [key for key in COSTS if any(row.cost(key) is not None for row in rows)][:2]
    if not known:
        return None
    scale = scale_of(comparison.metric)
    figure = Figure(figsize=(4.4 * len(known) + 2.4, 4.2), dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, known, strict=True):
        places = [row.cost(key) for row in rows]
        for row, x in zip(rows, places, strict=True):
            if x is not None:
                colour, _, marker = style(comparison, row)
                axes.errorbar(
                    x,
                    scale * row.score.mean,
                    None if math.isnan(row.score.sd) else scale * row.score.sd,
                    ls="none",
                    color=colour,
                    marker=marker,
                    mfc="white" if _is_hollow(comparison, row) else colour,
                    ms=6.5,
                    capsize=2.5,
                    label=_plain(marked(comparison, row)),
                )
        positive = [x for x in places if x]
        if len(positive) > 1 and max(positive) > 10 * min(positive):
            axes.set_xscale("symlog", linthresh=min(positive))  # has a place for 0, the cost of no context
        elif positive:
            axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        axes.set_xlabel(COSTS[key], fontsize=9)
        _tidy(axes)
    panels[0].set_ylabel(_plain(metric_name(comparison)), fontsize=9)
    _legend(figure, comparison, panels)
    return figure


def _curves(comparison: Comparison) -> Figure | None:
    metric, scale = comparison.metric, scale_of(comparison.metric)
    if not any(run.history.get(metric) for row in comparison.rows for run in row.runs):
        return None
    groups = _panels(comparison.rows)
    columns = min(len(groups), 2)
    lines = math.ceil(len(groups) / columns)
    size = (9.6 + 2.4 * (columns - 1), 1.4 + 3.0 * lines)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    for axes, rows in zip(panels, groups, strict=False):
        for row in rows:
            colour, dash, _ = style(comparison, row)
            label = _plain(marked(comparison, row))
            for run in row.runs:
                curve = finite(run.history.get(metric, {}))
                axes.plot(list(curve), [scale * v for v in curve.values()], color=colour, alpha=0.4, lw=0.8)
            mean = {step: scale * value for step, value in row.mean_curve(metric).items()}
            look = {"lw": 1.9, "dashes": dash or (None, None)} if mean else {"lw": 0.8, "alpha": 0.4}
            named = label if mean else f"{label} (none finished)"
            axes.plot(list(mean), list(mean.values()), color=colour, label=named, **look)
        if comparison.baseline is not None and comparison.baseline not in rows:
            mean = comparison.baseline.mean_curve(metric)
            axes.plot(list(mean), [scale * v for v in mean.values()], color="#999999", lw=1.0, zorder=1)
        axes.set_xlabel("step", fontsize=9)
        _tidy(axes)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    for axes in panels[::columns]:
        axes.set_ylabel(_plain(f"{metric} %" if scale == 100 else metric), fontsize=9)
    _legend(
        figure, comparison, panels, "thin: each seed; thick: mean" + "; grey: baseline" * (len(groups) > 1)
    )
    return figure


def _panels(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows by context module if there are many; modules of a single row share a panel."""
    if len(rows) <= _ONE_PANEL:
        return [list(rows)]
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.values.get("attention._target_", ""), []).append(row)
    single = [row for group in found.values() if len(group) == 1 for row in group]
    return [group for group in (*found.values(), single) if len(group) > 1 or group is single and single]


def _group_size(comparison: Comparison) -> Figure | None:
    found = grids(comparison)
    if not found:
        return None
    scale = scale_of(comparison.metric)
    columns = min(len(found), 3)
    lines = math.ceil(len(found) / columns)
    size = (1.2 + 3.6 * columns, 0.6 + 3.0 * lines)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    every = [scale * row.score.mean for cells in found.values() for row in cells.values()]
    top = max(every)
    low = min(*every, top - _LEAST) if scale == 100 else min(every)
    for axes, (rest, cells) in zip(panels, found.items(), strict=False):
        high, wide, values = heat(cells, scale)
        image = axes.imshow(values, cmap="cividis", vmin=low, vmax=top)
        _numbers(axes, values, values > (low + top) / 2, ".2f" if scale == 100 else ".4g")
        axes.set_xticks(range(len(wide)), [str(w) for w in wide], fontsize=8)
        axes.set_yticks(range(len(high)), [str(h) for h in high], fontsize=8)
        axes.set_title(_plain(rest), fontsize=9)
        axes.set_xlabel("$P_w$", fontsize=9)
        axes.set_ylabel("$P_h$", fontsize=9)
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    figure.colorbar(image, ax=panels, shrink=0.8).set_label(_plain(metric_name(comparison)), fontsize=8)
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
    axes.set_xticks(range(len(names)), [_plain(name) for name in names], fontsize=8, rotation=45, ha="right")
    axes.set_yticks(range(len(found)), [_plain(row.label) for row, _ in found], fontsize=8)
    title = f"IoU minus that of {comparison.baseline.label}\npoints, at the best checkpoints, mean over seeds"
    figure.suptitle(_plain(title), fontsize=8.5)
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    return figure


def style(comparison: Comparison, row: Row) -> tuple[str, tuple[float, ...], str]:
    """Return colour, dash pattern and marker of a row."""
    place = comparison.rows.index(row)
    return COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)], _MARKERS[place % len(_MARKERS)]


def _legend(figure: Figure, comparison: Comparison, panels: Iterable[Axes], note: str = "") -> None:
    named = {
        text: line for axes in panels for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    stars = any(_is_hollow(comparison, row) for row in comparison.rows)
    notes = [note] * bool(note) + ["* not converged: speed of learning"] * stars
    figure.legend(
        named.values(),
        named.keys(),
        loc="outside right upper",
        title="\n".join(notes) or None,
        title_fontsize=7.5,
        fontsize=8,
        frameon=False,
        handlelength=3,
        alignment="left",
    )


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
    return text.replace("$", r"\$")  # matplotlib would read a formula
