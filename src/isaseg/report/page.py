"""The page: one HTML file that holds its data, charts and pictures, and requests nothing from any network.

Everything that comes from runs (labels, errors, keys, class names) is escaped, here or in `interactive`. The
Content-Security-Policy lets only the page's two scripts run, by their hashes, and nothing be fetched.
"""

import base64
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image
from plotly.offline import get_plotlyjs

from isaseg.console import percent
from isaseg.report import table
from isaseg.report.charts import Chart, cost_charts, curve_charts
from isaseg.report.classes import classes
from isaseg.report.interactive import interactive
from isaseg.report.rows import Comparison, Row, scored

log = logging.getLogger(__name__)

_SCENES = 3  # of each row
_WIDTH = 760  # pixels of image, label map and prediction side by side


def page(comparison: Comparison) -> str:
    """Return the HTML."""
    template = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    own = re.findall(r"<script>(.*?)</script>", template, flags=re.DOTALL)[1]
    return Template(template).substitute(
        hashes=f"{_hash(get_plotlyjs())} {_hash(own)}",
        plotly=get_plotlyjs(),
        subtitle=escape(f"{table.metric_name(comparison)} · {datetime.now().astimezone():%Y-%m-%d %H:%M}"),
        table=_table(comparison),
        notes="".join(f"<li>{escape(note)}</li>" for note in table.notes(comparison)),
        charts=_chart("Score against cost", cost_charts(comparison))
        + _chart("Curves", curve_charts(comparison)),
        classes=_classes(comparison),
        pictures=_pictures(comparison),
        not_counted=_not_counted(comparison),
    )


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _table(comparison: Comparison) -> str:
    shown = table.shown_columns(comparison)
    lines = [[(c.value(row), c.show(row)) for c in shown] for row in comparison.rows]
    return _sortable([c.title for c in shown], lines)


def _classes(comparison: Comparison) -> str:
    """Return a table with a line for each class; sorted by a row, it shows the classes on which that row is worst."""
    records = classes(comparison)
    if not records:
        return ""
    lines = [[(value, _share(value)) for value in held.values()] for held in records]
    text = _sortable(list(records[0]), lines)
    where = escape(scored(comparison.rows))
    title = f"<h2>IoU % of each class</h2><p>At {where}, mean over the seeds.</p>"
    return f'{title}<div class="scroll"><table id="classes">{text}</table></div>'


def _share(value: str | float | None) -> str:
    return table.NOTHING if value is None else value if isinstance(value, str) else percent(value, 1)


def _sortable(titles: Sequence[str], lines: Iterable[Sequence[tuple[Any, str]]]) -> str:
    """Return head and body of a table whose cells are (value to sort by, text)."""
    head = "".join(f'<th scope="col" aria-sort="none">{escape(title)}</th>' for title in titles)
    body = ""
    for line in lines:
        cells = [f'data-value="{"" if v is None else escape(str(v))}">{escape(text)}' for v, text in line]
        body += f'<tr><th scope="row" {cells[0]}</th>{"".join(f"<td {cell}</td>" for cell in cells[1:])}</tr>'
    return f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"


def _chart(title: str, charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    data = interactive(charts).to_json()
    return f'<h2>{title}</h2><div class="chart"></div><script type="application/json">{data}</script>'


def _pictures(comparison: Comparison) -> str:
    groups = []
    for name, shown in _sample_pictures(comparison.rows).items():
        figures = "".join(
            f'<figure><figcaption>{escape(row.label)}</figcaption><img alt="{escape(f"{name}: {row.label}")}" '
            f'src="data:image/jpeg;base64,{data}"></figure>'
            for row, data in shown
        )
        groups.append(f'<h3>{escape(name)}</h3><div class="pictures">{figures}</div>')
    where = escape(scored(comparison.rows))
    title = f"<h2>Sample pictures</h2><p>Of the first seed that has them, at {where}.</p>"
    return title + "".join(groups) if groups else ""


def _not_counted(comparison: Comparison) -> str:
    items = [f"{run.folder}: {sentence}" for run, sentence in table.not_counted(comparison)]
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<h2>Not counted</h2><ul id="not-counted">{listed}</ul>' if items else ""


def _sample_pictures(rows: Sequence[Row]) -> dict[str, list[tuple[Row, str]]]:
    """Return the scenes that most rows have a picture of, each with these rows and their JPEG files in base64."""
    found = [(row, _files(row)) for row in rows]
    counts = Counter(name for _, files in found for name in sorted(files))
    shown: dict[str, list[tuple[Row, str]]] = {}
    for name, _ in counts.most_common(_SCENES):
        for row, files in found:
            if name in files and (data := _small(files[name])) is not None:
                shown.setdefault(Path(name).stem, []).append((row, data))
    return shown


def _files(row: Row) -> dict[str, Path]:
    """Return the pictures of the first finished run that has some, by name."""
    found = (
        {path.name: path for path in run.folder.glob("pictures/*.png")} for run in row.runs if run.metrics
    )
    return next((files for files in found if files), {})


def _small(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_WIDTH, 2 * _WIDTH))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("warning: %s is left out (%s)", path, error)
        return None
    data = io.BytesIO()
    small.save(data, "JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode()
