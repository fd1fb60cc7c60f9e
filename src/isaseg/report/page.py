"""The page: one HTML file that holds its data, style, script and pictures, and asks nothing of any network.

What comes from runs (labels, errors, keys, class names) is escaped here, or reaches the page as JSON that the script
shows as text alone. The Content-Security-Policy lets this one script run, by its hash, and nothing be fetched.
"""

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from string import Template
from typing import Any

from isaseg.report import table
from isaseg.report.figures import COLOURS, DASHES, class_gaps, cost, grids
from isaseg.report.labels import short
from isaseg.report.pictures import sample_pictures
from isaseg.report.rows import Comparison, Row, finite, is_share
from isaseg.report.runs import Run

_COSTS = {
    "attention_mult_adds": "multiply-adds of attention",
    "mult_adds": "multiply-adds of the network",
    "parameters": "parameters",
    "attention_score_mib": "score memory (MiB)",
    "ms": "milliseconds a step",
}
_POINTS = 150_000  # of all curves together; longer ones are thinned out
_SORTABLE = ("row", "finished", "mean", "difference", "parameters", "mult_adds", "attention_score_mib")


def page(comparison: Comparison) -> str:
    """Return the HTML."""
    script, style = _part("charts.js") + _part("page.js"), _part("page.css")
    return Template(_part("page.html")).substitute(
        script_hash=_hash(script),
        style_hash=_hash(style),
        script=script,
        style=style,
        data=_json(_payload(comparison)),
        subtitle=escape(_subtitle(comparison)),
        table=_table(comparison),
        notes="".join(f"<li>{escape(note)}</li>" for note in table.notes(comparison)),
        unlucky=_unlucky(comparison),
        runs=_runs(comparison),
        pictures=_pictures(comparison),
    )


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(content: Any) -> str:
    r"""Return JSON in which nothing can end the element that holds it: `<` is \u003c."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _subtitle(comparison: Comparison) -> str:
    runs = [run for row in comparison.rows for run in row.runs] + list(comparison.loose)
    counts = [
        (state, sum(run.state == state for run in runs)) for state in ("finished", "failed", "unfinished")
    ]
    told = ", ".join(f"{count} {state}" for state, count in counts if count)
    return f"{table.metric_name(comparison)} · {told} · {datetime.now().astimezone():%Y-%m-%d %H:%M}"


# ---------------------------------------------------------------- what the script draws


def _payload(comparison: Comparison) -> dict[str, Any]:
    names, gaps = class_gaps(comparison)
    places = {id(row): place for place, row in enumerate(comparison.rows)}
    metrics = sorted({key for row in comparison.rows for run in row.runs for key in run.history})
    count = sum(len(run.history) for row in comparison.rows for run in row.runs)
    points = max(min(_POINTS // max(count, 1), 400), 20)
    return {
        "metric": comparison.metric,
        "metricName": table.metric_name(comparison),
        "metrics": metrics,
        "shares": [key for key in metrics if is_share(key)],
        "perCent": is_share(comparison.metric),
        "costs": {
            key: name
            for key, name in _COSTS.items()
            if any(cost(row, key) is not None for row in comparison.rows)
        },
        "rows": [_row(comparison, row, metrics, points) for row in comparison.rows],
        "grids": [
            {"title": rest, "cells": [[h, w, places[id(row)]] for (h, w), row in cells.items()]}
            for rest, cells in grids(comparison).items()
        ],
        "classes": names,
        "classGaps": [[places[id(row)], [_number(value) for value in values]] for row, values in gaps],
        "baseline": None if comparison.baseline is None else places[id(comparison.baseline)],
    }


def _row(comparison: Comparison, row: Row, metrics: Sequence[str], points: int) -> dict[str, Any]:
    return {
        "label": row.label,
        "mean": _number(row.score.mean),
        "sd": _number(row.score.sd),
        "scores": [[seed, _number(value)] for seed, value in row.scores.items()],
        "gap": table.gap(comparison, row),
        "costs": {key: cost(row, key) for key in _COSTS},
        "means": {key: _thinned(curve, points) for key in metrics if (curve := row.mean_curve(key))},
        "runs": [
            {
                "seed": run.seed,
                "state": run.state,
                "curves": {key: _thinned(finite(curve), points) for key, curve in run.history.items()},
            }
            for run in row.runs
        ],
        "classes": {name: _number(value) for name, value in row.classes().items()},
    }


def _thinned(curve: Mapping[int, float], points: int) -> list[list[float]]:
    """Return at most `points` of a curve, evenly spaced, the first and the last among them."""
    steps = list(curve)
    if len(steps) > points:
        steps = [steps[round(i * (len(steps) - 1) / (points - 1))] for i in range(points)]
    return [[step, float(f"{curve[step]:.5g}")] for step in steps]


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


# ---------------------------------------------------------------- what stands in the page as it is


def _table(comparison: Comparison) -> str:
    header, lines = table.cells(comparison)
    with_peak = ["peak_memory_mib"] * ("peak memory" in header)
    keys = [*_SORTABLE, *with_peak, "ms_per_step", "steps"]
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{escape(title)}</button></th>'
        for title in header
    )
    body = []
    for place, (row, line) in enumerate(zip(comparison.rows, lines, strict=True)):
        held = table.record(comparison, row)
        values = [str(place), *("" if held[key] is None else str(held[key]) for key in keys[1:])]
        tick = (
            f'<label><input type="checkbox" checked> {_swatch(place)} <span>{escape(line[0])}</span></label>'
        )
        cells = [f'<th scope="row" data-value="{values[0]}">{tick}</th>']
        cells += [
            f'<td data-value="{escape(value)}">{escape(cell)}</td>'
            for value, cell in zip(values[1:], line[1:], strict=True)
        ]
        marked = ' class="baseline"' if row is comparison.baseline else ""
        body.append(f'<tr data-row="{place}"{marked}>{"".join(cells)}</tr>')
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _swatch(place: int) -> str:
    dash = " ".join(map(str, DASHES[place % len(DASHES)]))
    return (
        f'<svg class="swatch c{place % len(COLOURS)}" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="26" y2="5" stroke-dasharray="{dash}"/></svg>'
    )


def _unlucky(comparison: Comparison) -> str:
    items = "".join(
        f'<li class="{run.state}"><code>{escape(str(run.folder))}</code><p>{escape(sentence)}</p></li>'
        for run, sentence in table.unlucky(comparison)
    )
    return f'<section id="unlucky"><h2>Not counted</h2><ul>{items}</ul></section>' if items else ""


def _runs(comparison: Comparison) -> str:
    base = comparison.baseline.values if comparison.baseline is not None else {}
    labelled = [(row, run) for row in comparison.rows for run in row.runs]
    items = [_run(comparison, row.label, run, _changes(row.values, base)) for row, run in labelled]
    items += [_run(comparison, run.folder.name, run, []) for run in comparison.loose]
    return "".join(items)


def _run(comparison: Comparison, label: str, run: Run, changes: Sequence[tuple[str, str, str]]) -> str:
    value = run.score(comparison.metric, comparison.at)
    shown = "" if value is None else f"{100 * value:.2f} %" if is_share(comparison.metric) else f"{value:.4f}"
    facts = [f"seed {run.seed}", run.state, f"step {run.last_step}", shown]
    about = [
        str(run.facts[key]) for key in ("device", "torch", "git_commit", "started") if run.facts.get(key)
    ]
    rows = "".join(
        f"<tr><th scope='row'>{escape(key)}</th><td>{escape(ours)}</td><td>{escape(theirs)}</td></tr>"
        for key, ours, theirs in changes
    )
    head = "<tr><th scope='col'>key</th><th scope='col'>this run</th><th scope='col'>baseline</th></tr>"
    differs = (
        f"<div class='scroll'><table>{head}{rows}</table></div>" if rows else "<p>As the baseline's.</p>"
    )
    return (
        f"<details><summary><b>{escape(label)}</b> {escape(' · '.join(filter(None, facts)))}</summary>"
        f"<p><code>{escape(str(run.folder))}</code></p><p>{escape(' · '.join(about))}</p>"
        f"{differs if run.config is not None else '<p>No configuration that can be read.</p>'}</details>"
    )


def _changes(values: Mapping[str, str], base: Mapping[str, str]) -> list[tuple[str, str, str]]:
    keys = sorted(values.keys() | base.keys(), key=lambda key: (key.split(".")[0], short(key)))
    pairs = ((key, values.get(key, "unset"), base.get(key, "unset")) for key in keys)
    return [change for change in pairs if change[1] != change[2]]


def _pictures(comparison: Comparison) -> str:
    groups = []
    for name, shown in sample_pictures(comparison.rows).items():
        figures = "".join(
            f'<figure data-row="{comparison.rows.index(row)}"><figcaption>{escape(row.label)}</figcaption>'
            f'<img alt="{escape(name)}: {escape(row.label)}" src="data:image/jpeg;base64,{data}"></figure>'
            for row, data in shown
        )
        groups.append(f"<h3>{escape(name)}</h3><div class='pictures'>{figures}</div>")
    title = (
        "<h2>Sample pictures</h2><p class='hint'>Of the first seed that has them, at its best checkpoint.</p>"
    )
    return f"<section id='samples'>{title}{''.join(groups)}</section>" if groups else ""
