"""Writes a comparison: each file whole or not at all."""

from pathlib import Path

from isaseg.errors import DataError
from isaseg.files import replace_file
from isaseg.report import table
from isaseg.report.figures import write_figures
from isaseg.report.page import page
from isaseg.report.rows import Comparison


def write(comparison: Comparison, output: Path) -> Path:
    """Write tables, figures and the page to a folder; return the page.

    Raises:
        DataError: If the folder cannot be made or written.
    """
    texts = {
        "table.md": table.markdown,
        "table.csv": table.as_csv,
        "table.tex": table.latex,
        "runs.csv": table.runs_csv,
        "index.html": page,
    }
    try:
        for name, text in texts.items():
            with replace_file(output / name) as file:
                file.write(text(comparison).encode("utf-8", errors="replace"))
        write_figures(comparison, output)
    except OSError as error:
        raise DataError(
            f"expected --output to be a folder that can be written, got {output}: {error}"
        ) from error
    return output / "index.html"
