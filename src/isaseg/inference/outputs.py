"""The files of a prediction: label files, overlays, the legend, the submission."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isaseg.data.info import dataset_info
from isaseg.errors import DataError
from isaseg.inference.label_files import LabelFormat, write_label_file, write_submission
from isaseg.inference.photographs import Picture
from isaseg.runs.overlay import write_legend, write_overlay


class Outputs(NamedTuple):
    """The folder of a prediction; each file in it is written whole or not at all.

    Attributes:
        folder: The folder.
        form: How labels are written.
        overlays: Whether overlays and a legend are written too.
    """

    folder: Path
    form: LabelFormat
    overlays: bool

    def write(self, picture: Picture, image: np.ndarray, labels: np.ndarray) -> None:
        """Write the files of one picture: `image` is uint8 RGB (H, W, 3), `labels` are train ids, uint8 (H, W)."""
        write_label_file(self._labels(picture), labels, self.form)
        if self.overlays:
            path = self.folder / "overlays" / f"{picture.name}.jpg"
            write_overlay(path, image, labels, self.form.colours)

    def finish(self, submitted: dict[str, Picture] | None) -> str:
        """Write the legend, and a submission if its pictures are given by name; return what the folder holds."""
        form, holds = self.form, f"labels/*.png hold the ids of {self.form.title}"
        if self.overlays:
            write_legend(self.folder / "legend.png", form.classes, form.ids, form.colours)
            holds += ", overlays/*.jpg show them, legend.png names the colours"
        if submitted is not None:
            files = {name: self._labels(picture) for name, picture in submitted.items()}
            write_submission(self.folder / "submission.zip", files)
            whole = dataset_info("cityscapes").splits["test"]
            holds += f", submission.zip has {len(files)} of them (the test split: {whole})"
        return holds

    def _labels(self, picture: Picture) -> Path:
        return self.folder / "labels" / f"{picture.name}.png"


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create the folder, and report what cannot be written in it.

    Raises:
        DataError: If it cannot be created, or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        where = str(error.filename or folder)
        raise DataError(
            f"expected to write {where!r}, got: {error.strerror}; make room, or give another output"
        ) from error
