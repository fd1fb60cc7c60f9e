"""The page: one HTML file that holds its data, charts and pictures, and requests nothing from any network.

Everything that comes from runs (labels, errors, keys, class names) is escaped here or in `charts`. The
Content-Security-Policy lets only the page's two scripts run, by their hashes, and nothing be fetched.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib import resources
from string import Template

from plotly.offline import get_plotlyjs

from isaseg.report import table
from isaseg.report.charts import charts
from isaseg.report.pictures import sample_pictures
from isaseg.report.rows import Comparison


def page(comparison: Comparison) -> str:
    """Return the HTML."""
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    own = re.findall(r"<script>(.*?)</script>", template, flags=re.DOTALL)[1]
    return Template(template).substitute(
        hashes=f"{_hash(get_plotlyjs())} {_hash(own)}",
        plotly=get_plotlyjs(),
        subtitle=escape(_subtitle(comparison)),
        table=_table(comparison),
        notes="".join(f"<li>{escape(note)}</li>" for note in table.notes(comparison)),
        charts=_charts(comparison),
        pictures=_pictures(comparison),
        not_counted=_not_counted(comparison),
        runs=_runs(comparison),
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _subtitle(comparison: Comparison) -> str:
    runs = [run for row in comparison.rows for run in row.runs] + list(comparison.loose)
    counts = [
        f"{count} {state}"
        for state in ("finished", "failed", "unfinished")
        if (count := sum(run.state == state for run in runs))
    ]
    return f"{table.metric_name(comparison)} · {', '.join(counts)} · {datetime.now().astimezone():%Y-%m-%d %H:%M}"


def _table(comparison: Comparison) -> str:
    columns = table.columns(comparison)
    head = "".join(f'<th scope="col" aria-sort="none">{escape(title)}</th>' for title, _ in columns.values())
    body = []
    for place, row in enumerate(comparison.rows):
        held = {**table.record(comparison, row), "row": place}
        cells = [
            f'data-value="{"" if held[key] is None else held[key]}">{escape(texts[place])}'
            for key, (_, texts) in columns.items()
        ]
        marked = ' class="baseline"' if row is comparison.baseline else ""
        rest = "".join(f"<td {cell}</td>" for cell in cells[1:])
        body.append(f'<tr{marked}><th scope="row" {cells[0]}</th>{rest}</tr>')
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"


def _charts(comparison: Comparison) -> str:
    return "".join(
        f'<h2>{escape(title)}</h2><div class="chart"></div><script type="application/json">{figure.to_json()}</script>'
        for title, figure in charts(comparison).items()
    )


def _pictures(comparison: Comparison) -> str:
    groups = []
    for name, shown in sample_pictures(comparison.rows).items():
        figures = "".join(
            f'<figure><figcaption>{escape(row.label)}</figcaption><img alt="{escape(f"{name}: {row.label}")}" '
            f'src="data:image/jpeg;base64,{data}"></figure>'
            for row, data in shown
        )
        groups.append(f'<h3>{escape(name)}</h3><div class="pictures">{figures}</div>')
    title = "<h2>Sample pictures</h2><p>Of the first seed that has them, at its best checkpoint.</p>"
    return title + "".join(groups) if groups else ""


def _not_counted(comparison: Comparison) -> str:
    items = [f"{run.folder}: {sentence}" for run, sentence in table.not_counted(comparison)]
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<h2>Not counted</h2><ul id="not-counted">{listed}</ul>' if items else ""


def _runs(comparison: Comparison) -> str:
    records = table.run_records(comparison)
    lines: list[Sequence[object]] = [list(records[0]), *(list(record.values()) for record in records)]
    cells = ("".join(f"<td>{'' if v is None else escape(str(v))}</td>" for v in line) for line in lines)
    return "".join(f"<tr>{line}</tr>" for line in cells)
