"""The charts of the page, by Plotly. What comes from runs is escaped: Plotly reads tags in a text."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any, Literal

import plotly.graph_objects as go

from isaseg.report.figures import COSTS, class_gaps, grids, heat, marked, style
from isaseg.report.rows import Comparison, Row, finite, is_share, scale_of
from isaseg.report.table import metric_name

_POINTS = 150_000  # of all curves together; longer ones are thinned out
_DASHES = {(): "solid", (6, 2): "dash", (2, 1.6): "dot", (7, 2, 1.5, 2): "dashdot"}
_LAYOUT = {"template": "plotly_white", "margin": {"t": 50, "r": 10, "b": 50, "l": 60}}
_MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}


def charts(comparison: Comparison) -> dict[str, go.Figure]:
    """Return what there is to draw, by title."""
    found = {"Score against cost": _cost(comparison), "Curves": _curves(comparison)}
    scale = scale_of(comparison.metric)
    for rest, cells in grids(comparison).items():
        high, wide, values = heat(cells, scale)
        found[f"Group size, {rest}"] = _heat_map(
            [f"P_w {w}" for w in wide],
            [f"P_h {h}" for h in high],
            values.tolist(),
            ".2f",
            colorscale="Cividis",
        )
    names, gaps = class_gaps(comparison)
    if gaps and comparison.baseline is not None:  # classes downwards: there may be many
        points = [list(line) for line in zip(*(line for _, line in gaps), strict=True)]
        columns, lines = [escape(row.label) for row, _ in gaps], [escape(name) for name in names]
        title = f"Classes: IoU minus that of {comparison.baseline.label}, points, at the best checkpoints"
        found[title] = _heat_map(columns, lines, points, "+.1f", colorscale="PuOr_r", zmid=0)
    return {title: figure for title, figure in found.items() if figure is not None}


def _cost(comparison: Comparison) -> go.Figure | None:
    rows = [row for row in comparison.rows if row.scores]
    known = [key for key in COSTS if any(row.cost(key) is not None for row in rows)]
    if not known:
        return None
    scale = scale_of(comparison.metric)
    figure = go.Figure()
    for row in rows:
        look = _look(comparison, row)
        hollow = "-open" if marked(comparison, row) != row.label else ""
        marker = {"color": look["color"], "symbol": look["symbol"] + hollow, "size": 10}
        error = None if math.isnan(row.score.sd) else {"array": [scale * row.score.sd]}
        y = [scale * row.score.mean]
        figure.add_scatter(y=y, error_y=error, mode="markers", marker=marker, **look["group"])
        y = [scale * score for score in row.scores.values()]
        marker = {"color": look["color"], "size": 5, "opacity": 0.45}
        figure.add_scatter(y=y, mode="markers", marker=marker, **look["group"] | {"showlegend": False})

    def places(key: str) -> list[list[float | None]]:
        return [[row.cost(key)] * n for row in rows for n in (1, len(row.scores))]

    menus = [
        _menu([(COSTS[key], {"x": places(key)}, {"xaxis.title.text": COSTS[key]}) for key in known]),
        _menu([(kind, {}, {"xaxis.type": kind}) for kind in ("linear", "log")], "right"),
    ]
    for trace, x in zip(figure.data, places(known[0]), strict=True):
        trace.x = x
    return _laid_out(figure, COSTS[known[0]], metric_name(comparison), menus)


def _curves(comparison: Comparison) -> go.Figure | None:
    metrics = sorted({key for row in comparison.rows for run in row.runs for key in run.history})
    if not metrics:
        return None
    metrics.sort(key=lambda key: key != comparison.metric)  # the first is shown
    points = max(min(_POINTS // (len(metrics) * sum(len(row.runs) + 1 for row in comparison.rows)), 400), 20)
    figure = go.Figure()
    curves: list[tuple[Row, Any]] = []
    for row in comparison.rows:
        look = _look(comparison, row)
        for run in row.runs:
            line = {"color": look["color"], "width": 1}
            figure.add_scatter(mode="lines", line=line, opacity=0.45, **look["group"] | {"showlegend": False})
            curves.append((row, lambda key, run=run: finite(run.history.get(key, {}))))
        line = {"color": look["color"], "width": 2.5, "dash": look["dash"]}
        figure.add_scatter(mode="lines", line=line, **look["group"])
        curves.append((row, row.mean_curve))

    def drawn(key: str) -> dict[str, list[list[float]]]:
        scale = scale_of(key)
        held = [thinned(curve(key), points) for _, curve in curves]
        y = [[float(f"{scale * v:.5g}") for v in curve.values()] for curve in held]
        return {"x": [list(curve) for curve in held], "y": y}

    names = {key: f"{key} %" if is_share(key) else key for key in metrics}
    menu = _menu([(names[key], drawn(key), {"yaxis.title.text": names[key]}) for key in metrics])
    first = drawn(metrics[0])
    for trace, x, y in zip(figure.data, first["x"], first["y"], strict=True):
        trace.x, trace.y = x, y
    return _laid_out(figure, "step (thin: each seed; thick: mean)", names[metrics[0]], [menu])


def thinned(curve: Mapping[int, float], points: int) -> dict[int, float]:
    """Return at most `points` of a curve, evenly spaced, including the first and the last."""
    steps = list(curve)
    if len(steps) > points:
        steps = [steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)]
    return {step: curve[step] for step in steps}


def _look(comparison: Comparison, row: Row) -> dict[str, Any]:
    colour, dash, marker = style(comparison, row)
    place = str(comparison.rows.index(row))
    group = {
        "name": escape(marked(comparison, row)),
        "legendgroup": place,
    }  # a click on the legend hides the group
    return {"color": colour, "dash": _DASHES[dash], "symbol": _MARKERS[marker], "group": group}


def _menu(
    options: list[tuple[str, dict[str, Any], dict[str, Any]]], side: Literal["left", "right"] = "left"
) -> dict[str, Any]:
    """Return a menu; an option is a label and what it changes in the traces and in the layout."""
    buttons = [{"label": escape(text), "method": "update", "args": list(args)} for text, *args in options]
    return {"buttons": buttons, "x": float(side == "right"), "xanchor": side, "y": 1.02, "yanchor": "bottom"}


def _laid_out(figure: go.Figure, x: str, y: str, menus: list[dict[str, Any]]) -> go.Figure:
    figure.update_layout(xaxis_title_text=escape(x), yaxis_title_text=escape(y), updatemenus=menus)
    return figure.update_layout(**_LAYOUT, height=480, hoverlabel_namelength=-1)


def _heat_map(x: list[str], y: list[str], z: list[list[float]], pattern: str, **options: Any) -> go.Figure:
    text = f"%{{z:{pattern}}}"
    figure = go.Figure(go.Heatmap(x=x, y=y, z=z, texttemplate=text, hoverongaps=False, **options))
    figure.update_xaxes(type="category", automargin=True)
    figure.update_yaxes(type="category", automargin=True, autorange="reversed")
    return figure.update_layout(**_LAYOUT, height=160 + 32 * len(y))
