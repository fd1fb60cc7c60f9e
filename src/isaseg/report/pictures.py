"""Sample pictures of the runs, small enough to be part of the page."""

import base64
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from isaseg.report.rows import Row
from isaseg.report.runs import is_own

log = logging.getLogger(__name__)

_SCENES = 3  # of each row
_WIDTH = 760  # pixels of image, label map and prediction side by side
_BUDGET = 6_000_000  # bytes of all pictures in base64; Plotly takes another five million of the page
_MOST_PIXELS = 50_000_000  # larger pictures are not opened


def sample_pictures(rows: Sequence[Row]) -> dict[str, list[tuple[Row, str]]]:
    """Return the scenes that most rows have a picture of, each with these rows and their JPEG files in base64."""
    found = [(row, files) for row in rows if (files := _files(row))]
    counts = Counter(name for _, files in found for name in files)
    names = sorted(sorted(counts), key=lambda name: -counts[name])[:_SCENES]
    shown: dict[str, list[tuple[Row, str]]] = {}
    left = _BUDGET
    for name in names:
        for row, files in found:
            data = _small(files[name]) if name in files else None
            if data is not None and len(data) <= left:
                left -= len(data)
                shown.setdefault(Path(name).stem, []).append((row, data))
    return shown


def _files(row: Row) -> dict[str, Path]:
    for run in row.runs:
        files = {
            path.name: path
            for path in sorted((run.folder / "pictures").glob("*.png"))
            if is_own(path, run.folder)
        }
        if files and run.state == "finished":
            return files
    return {}


def _small(path: Path) -> str | None:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels")
            small = picture.convert("RGB")
            small.thumbnail((_WIDTH, 2 * _WIDTH))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        log.warning("warning: %s is left out (%s)", path, error)
        return None
    data = io.BytesIO()
    small.save(data, "JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode()
