"""The charts as PNG files, by Matplotlib."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isaseg.files import save_figure
from isaseg.report.charts import COLOURS, DASHES, LEGEND, MARKERS, Chart, cost_charts, curve_charts
from isaseg.report.rows import Comparison
from isaseg.report.table import with_unit

_TOGETHER, _COLUMNS = 6, 4  # curves of more rows than that are drawn in a panel each


def write_figures(comparison: Comparison, output: Path) -> None:
    """Draw what there is to draw; remove the figures of an earlier comparison.

    Score against the first two costs that are known, and the curves of the metric that is compared.
    """
    curves = [chart for chart in curve_charts(comparison) if chart.y == with_unit(comparison.metric)]
    if len(comparison.rows) > _TOGETHER:
        curves = [apart for chart in curves for apart in _apart(chart)]
    figures = {"accuracy_cost.png": cost_charts(comparison)[:2], "curves.png": curves}
    for name, charts in figures.items():
        if not charts:
            (output / name).unlink(missing_ok=True)
            continue
        save_figure(_figure(charts), output / name)


def _apart(chart: Chart) -> list[Chart]:
    """Return a chart for each row."""
    places = dict.fromkeys(line.place for line in chart.lines)
    return [chart._replace(lines=[line for line in chart.lines if line.place == place]) for place in places]


def _figure(charts: Sequence[Chart]) -> Figure:
    """Draw charts side by side: a few large ones with a common legend, or many small ones of a row each."""
    small, columns = len(charts) > 2, min(len(charts), _COLUMNS)
    lines = math.ceil(len(charts) / columns)
    size = (11.0, 0.6 + 2.2 * lines) if small else (3.4 + max(4.4 * columns, 6.0), 4.4)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplots(lines, columns, sharex=small, sharey=True, squeeze=False)
    for axes, chart in zip(panels.flat, charts, strict=False):
        _draw(axes, chart)
        axes.set_title(_plain(chart.lines[0].label) if small else "", fontsize=8, wrap=True)
    for axes in panels.flat[len(charts) :]:
        axes.remove()
    for axes in panels[:, 0]:
        axes.set_ylabel(_plain(charts[0].y), fontsize=9)
    if small:
        figure.suptitle(LEGEND.replace("\n", "      "), fontsize=8)
        return figure
    named = {
        text: line
        for axes in panels.flat
        for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    look = {"fontsize": 8, "title_fontsize": 7.5, "frameon": False, "handlelength": 3, "alignment": "left"}
    figure.legend(named.values(), named.keys(), loc="outside right upper", title=LEGEND, **look)
    return figure


def _draw(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        axes.errorbar(
            line.x,
            line.y,
            None if math.isnan(line.sd) else line.sd,
            color=COLOURS[line.place % len(COLOURS)],
            ls=DASHES[line.place % len(DASHES)][0] if chart.is_curve else "none",
            marker="none" if chart.is_curve and len(line.x) > 1 else MARKERS[line.place % len(MARKERS)][0],
            label=_plain(line.label) if line.is_mean else None,
            alpha=1.0 if line.is_mean else 0.4,
            lw=1.9 if line.is_mean else 0.8,
            ms=6.5 if line.is_mean else 3.5,
            capsize=2.5,
        )
    costs = [x for line in chart.lines for x in line.x if x > 0 and not chart.is_curve]
    if costs and max(costs) > 10 * min(costs):
        axes.set_xscale("symlog", linthresh=min(costs))  # has a place for 0, the cost of no context
    axes.set_xlabel(chart.x, fontsize=9)
    axes.tick_params(labelsize=8, labelbottom=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # matplotlib would read a formula
