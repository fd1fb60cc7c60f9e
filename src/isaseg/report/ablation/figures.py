"""The two figures of the ablation: mIoU against steps, and against cost. Labels stand beside what they name."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from isaseg.report.ablation.jobs import PANELS
from isaseg.report.ablation.results import Result

# Okabe and Ito: apart for colour-blind readers too; a dash pattern and a marker say the same again
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = ("o", "s", "^", "D")
_REFERENCE = "#999999"
_SINGLE = 5  # so few rows fit into one panel


def plot_curves(results: Sequence[Result], path: Path) -> None:
    """Draw mIoU against steps: mean over the seeds, each seed a thin line, one panel a family."""
    panels = _panels(results)
    columns = min(len(panels), 2)
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(9.6, 3.0 * lines + 0.3), dpi=120, facecolor="white", layout="constrained")
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    dense = next((result for result in results if result.row.name == "dense"), None)
    for axes, (title, members) in zip(grid, panels, strict=False):
        if dense is not None and dense not in members:
            steps, means = _mean_curve(dense)
            axes.plot(steps, means, color=_REFERENCE, lw=1.0, zorder=1)
            near = next((j for j, mean in enumerate(means) if mean > 70), len(means) - 1)
            place, shift = (steps[near], means[near]), (6, -10)
            axes.annotate("dense", place, shift, textcoords="offset points", fontsize=7.5, color="#777777")
        _panel(axes, members, title)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("mIoU on validation (%)", fontsize=9)
    figure.savefig(path)


def plot_cost(results: Sequence[Result], path: Path) -> None:
    """Draw mIoU against the multiply-adds of attention, on a logarithmic axis with a place for zero."""
    figure = Figure(figsize=(9.6, 4.8), dpi=120, facecolor="white")
    axes = figure.add_axes((0.075, 0.13, 0.83, 0.6))
    costs = [result.facts.cost.attention_mult_adds / 1e6 for result in results]
    low = min((cost for cost in costs if cost > 0), default=1.0)
    high = max([*costs, 10 * low])
    places = [math.log10(cost) if cost > 0 else math.log10(low) - 0.75 for cost in costs]
    panels = [title for title, _ in _panels(results, single=0)]
    limits = (math.log10(low) - 1.0, math.log10(high) + 0.2)
    axes.set_xlim(*limits)
    axes.set_ylim(0, 103)
    for result, x in zip(results, places, strict=True):
        family = panels.index(result.row.panel) % len(_COLOURS)
        y, deviation = result.percent("val/mIoU")
        error = None if math.isnan(deviation) else deviation
        face = _COLOURS[family] if result.converged else "white"
        axes.errorbar(
            x,
            y,
            error,
            marker=_MARKERS[family],
            ms=6.5,
            color=_COLOURS[family],
            mfc=face,
            capsize=2.5,
            zorder=3,
            clip_on=False,
        )
    for upper in (True, False):
        _label_points(axes, results, places, panels, upper, (limits[1] - limits[0]) * 0.026)
    _cost_axis(axes, limits, places if 0 in costs else [], math.log10(low) - 0.75)
    side = results[0].facts.side
    axes.set_xlabel(f"multiply-adds of attention on a {side[0]} × {side[1]} map (millions)", fontsize=9)
    axes.set_ylabel("mIoU on validation (%)", fontsize=9)
    note = "mean ± standard deviation over seeds"
    note += (
        "" if all(result.converged for result in results) else "; hollow: not converged, speed of learning"
    )
    figure.text(0.905, 0.012, note, ha="right", fontsize=7.5, color="#555555")
    figure.savefig(path, bbox_inches="tight")


def spread_out(
    wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move places apart until neighbours are `gap` apart, each as near as it can be to where it was wanted.

    Order is kept. If they do not all fit between `low` and `high` they go beyond `high`.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[tuple[float, list[int]]] = []  # centre, members
    for index in order:
        centre, members = min(max(wanted[index], low), high), [index]
        while (
            clusters
            and centre - (len(members) - 1) / 2 * gap < clusters[-1][0] + (len(clusters[-1][1]) + 1) / 2 * gap
        ):
            members = clusters.pop()[1] + members
            half = (len(members) - 1) / 2 * gap
            centre = statistics.fmean(wanted[i] for i in members)
            centre = max(min(centre, high - half), low + half)
        clusters.append((centre, members))
    places = [0.0] * len(wanted)
    for centre, members in clusters:
        for position, index in enumerate(members):
            places[index] = centre + (position - (len(members) - 1) / 2) * gap
    return places


def _panels(results: Sequence[Result], single: int = _SINGLE) -> list[tuple[str, list[Result]]]:
    if len(results) <= single:
        return [("", list(results))]
    titles = [title for title in PANELS if any(result.row.panel == title for result in results)]
    return [(title, [result for result in results if result.row.panel == title]) for title in titles]


def _mean_curve(result: Result) -> tuple[list[int], list[float]]:
    """Return the steps that all seeds have in common, and the mean mIoU there in per cent."""
    steps = sorted(set.intersection(*(set(run.curve) for run in result.runs)))
    return steps, [100 * statistics.fmean(run.curve[step] for run in result.runs) for step in steps]


def _panel(axes: Axes, members: Sequence[Result], title: str) -> None:
    curves = [_mean_curve(result) for result in members]
    last = max(steps[-1] for steps, _ in curves)
    places = spread_out([means[-1] for _, means in curves], 7.5, 3, 99)
    for index, (result, (steps, means), place) in enumerate(zip(members, curves, places, strict=True)):
        colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
        for run in result.runs:
            axes.plot(steps, [100 * run.curve[step] for step in steps], color=colour, alpha=0.45, lw=0.7)
        axes.plot(steps, means, color=colour, linestyle=dash, lw=1.8)
        axes.plot(
            (steps[-1], last * 1.01, last * 1.04),
            (means[-1], means[-1], place),
            color=colour,
            lw=0.7,
            clip_on=False,
        )
        mark = "" if result.converged else " *"
        axes.text(last * 1.05, place, result.row.label + mark, color=colour, fontsize=8.5, va="center")
    axes.set_xlim(0, last)
    axes.set_ylim(0, 102)
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.set_xlabel(
        "step" + (" (* not converged)" if not all(r.converged for r in members) else ""), fontsize=8.5
    )
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label_points(
    axes: Axes,
    results: Sequence[Result],
    places: Sequence[float],
    panels: Sequence[str],
    upper: bool,
    gap: float,
) -> None:
    """Label the points of the upper half above the axes, those of the lower half below the lowest of them."""
    chosen = [i for i, result in enumerate(results) if (result.percent("val/mIoU")[0] >= 50) == upper]
    if not chosen:
        return
    heights = [results[i].percent("val/mIoU")[0] for i in chosen]
    level = 107.0 if upper else max(min(heights) - 6, 3)
    for i, y, x in zip(chosen, heights, spread_out([places[i] for i in chosen], gap), strict=True):
        colour = _COLOURS[panels.index(results[i].row.panel) % len(_COLOURS)]
        axes.plot((places[i], x), (y, level), color=colour, lw=0.6, alpha=0.7, clip_on=False, zorder=2)
        axes.text(
            x,
            level + (1 if upper else -1),
            results[i].row.label,
            rotation=40 if upper else -40,
            rotation_mode="anchor",
            ha="left",
            va="center",
            fontsize=8.5,
            color=colour,
        )


def _cost_axis(axes: Axes, limits: tuple[float, float], places: Sequence[float], zero: float) -> None:
    ticks = [
        float(t)
        for t in range(math.ceil(limits[0]), math.floor(limits[1]) + 1)
        if not places or t > zero + 0.3
    ]
    axes.xaxis.set_major_locator(FixedLocator([zero, *ticks] if places else ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: "0" if places and t == zero else f"{10**t:g}"))
    if places:
        middle = zero + 0.3  # the axis is broken between nothing and the smallest cost
        for x in (middle - 0.02, middle + 0.02):
            axes.plot((x - 0.02, x + 0.02), (-2, 2), color="black", lw=0.8, clip_on=False)
    axes.set_yticks(range(0, 101, 20))
    _tidy(axes)
