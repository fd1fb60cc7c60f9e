"""Sample pictures of the runs, small enough to be part of the page."""

import base64
import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from isaseg.report.rows import Row

log = logging.getLogger(__name__)

_SCENES = 3  # of each row
_WIDTH = 760  # pixels of image, label map and prediction side by side


def sample_pictures(rows: Sequence[Row]) -> dict[str, list[tuple[Row, str]]]:
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
