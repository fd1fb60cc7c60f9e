"""Writes a comparison: each file whole or not at all."""

import logging
from importlib.util import find_spec
from pathlib import Path

from isaseg.files import replace_file
from isaseg.report import classes, table
from isaseg.report.figures import write_figures
from isaseg.report.rows import Comparison

log = logging.getLogger(__name__)


def write(comparison: Comparison, output: Path) -> None:
    """Write tables, figures and, if Plotly is installed, the page index.html to a folder."""
    texts = {
        "table.md": table.markdown,
        "table.csv": table.as_csv,
        "table.tex": table.latex,
        "runs.csv": table.runs_csv,
        "classes.csv": classes.classes_csv,
        "classes.md": classes.classes_markdown,
    }
    if find_spec("plotly") is not None:
        from isaseg.report.page import page

        texts["index.html"] = page
    for name, text in texts.items():
        with replace_file(output / name) as file:
            file.write(text(comparison).encode("utf-8", errors="replace"))
    write_figures(comparison, output)
    if "index.html" not in texts:
        (output / "index.html").unlink(missing_ok=True)  # of an earlier comparison
        log.info("no page index.html, which needs Plotly: run pip install 'isaseg[report]'")
