"""The charts of the page, by Plotly. What comes from runs is escaped: Plotly reads tags in a text."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from isaseg.report.charts import COLOURS, DASHES, MARKERS, Chart, Line

_POINTS = 300  # of a curve; longer ones are thinned out
_Option = tuple[str, dict[str, Any], dict[str, Any]]


def interactive(charts: Sequence[Chart]) -> go.Figure:
    """Return a figure with a menu to choose one of `charts`, at least one, and a menu to choose the scale of x."""
    data = [[_trace(line, chart.is_curve) for line in chart.lines] for chart in charts]
    layouts = [{"xaxis.title.text": escape(chart.x), "yaxis.title.text": escape(chart.y)} for chart in charts]
    choices = []
    for chart, traces, layout in zip(charts, data, layouts, strict=True):
        name = chart.y if chart.is_curve else chart.x
        choices.append((name, {key: [trace[key] for trace in traces] for key in ("x", "y", "mode")}, layout))
    figure = go.Figure(data[0]).update_layout(layouts[0])
    scales: list[_Option] = [(kind, {}, {"xaxis.type": kind}) for kind in ("linear", "log")]
    figure.update_layout(updatemenus=[_menu(choices, "left"), _menu(scales, "right")], height=480)
    margin = {"t": 50, "r": 10, "b": 50, "l": 60}
    return figure.update_layout(template="plotly_white", margin=margin, hoverlabel_namelength=-1)


def _trace(line: Line, is_curve: bool) -> dict[str, Any]:
    """Return what Plotly draws of a line; a click on the legend hides the whole row."""
    places = np.linspace(0, len(line.x) - 1, min(len(line.x), _POINTS)).round().astype(int)
    colour = COLOURS[line.place % len(COLOURS)]
    dash, marker = DASHES[line.place % len(DASHES)][1], MARKERS[line.place % len(MARKERS)][1]
    return {
        "x": [line.x[place] for place in places],
        "y": [float(f"{line.y[place]:.5g}") for place in places],
        "error_y": {"array": [] if math.isnan(line.sd) else [line.sd]},
        "mode": "lines" if is_curve and len(line.x) > 1 else "markers",
        "line": {"color": colour, "dash": dash, "width": 2.5 if line.is_mean else 1},
        "marker": {"color": colour, "symbol": marker, "size": 10 if line.is_mean else 5},
        "opacity": 1.0 if line.is_mean else 0.45,
        "name": escape(line.label),
        "legendgroup": str(line.place),
        "showlegend": line.is_mean,
    }


def _menu(options: Sequence[_Option], side: str) -> dict[str, Any]:
    """Return a menu; an option is a label and what it changes in the traces and in the layout."""
    buttons = [{"label": escape(text), "method": "update", "args": list(args)} for text, *args in options]
    return {"buttons": buttons, "x": float(side == "right"), "xanchor": side, "y": 1.02, "yanchor": "bottom"}
