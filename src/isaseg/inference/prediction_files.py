"""What is written of predictions: label files, overlays, maps of entropy, and one sheet that shows many of them."""

from collections.abc import Collection, Sequence
from pathlib import Path

import cv2
import numpy as np

from isaseg.data.info import backgrounds
from isaseg.data.overlay import heat, overlay, write_jpeg, write_legend
from isaseg.data.tools.contact_sheet import draw_tiles, tile
from isaseg.files import replace_file
from isaseg.inference.label_files import LabelFormat, write_label_file
from isaseg.inference.photographs import Picture

_SHOWN = 24  # pictures on the sheet


class PredictionFiles:
    """The files of a call, in the folders labels, overlays and entropy, and what shows all of them.

    Args:
        folder: Of the output.
        form: Ids and colours.
        kinds: What is written of labels, overlays and entropy; the sheet always is.
        pictures: All that there will be; evenly spaced ones, 24 at most, are on the sheet.
    """

    def __init__(
        self, folder: Path, form: LabelFormat, kinds: Collection[str], pictures: Sequence[Picture]
    ) -> None:
        self.folder, self.form, self.kinds = folder, form, kinds
        self.shown = {picture.name for picture in pictures[:: -(-len(pictures) // _SHOWN)]}
        self.tiles: list[tuple[np.ndarray, str]] = []
        self.seen: set[int] = set()

    def write(
        self, picture: Picture, image: np.ndarray, labels: np.ndarray, entropy: np.ndarray | None
    ) -> None:
        """Write the files of a picture.

        Args:
            picture: Its file and name.
            image: uint8 RGB (H, W, 3).
            labels: Train ids, uint8 (H, W).
            entropy: Normalised, times 255, uint8 (H, W); None if there is none.
        """
        clear, colours = backgrounds(self.form.classes), self.form.colours
        if "labels" in self.kinds:
            write_label_file(self.folder / "labels" / f"{picture.name}.png", labels, self.form)
        if "overlays" in self.kinds:
            path = self.folder / "overlays" / f"{picture.name}.jpg"
            write_jpeg(path, overlay(image, labels, colours, clear))
        if "entropy" in self.kinds and entropy is not None:
            write_jpeg(self.folder / "entropy" / f"{picture.name}.jpg", heat(image, entropy))
        if picture.name in self.shown:
            small = tile(image, cv2.INTER_AREA)
            row = [small, overlay(small, tile(labels, cv2.INTER_NEAREST_EXACT), colours, clear)]
            if "entropy" in self.kinds and entropy is not None:
                row.append(heat(small, tile(entropy, cv2.INTER_AREA)))
            self.tiles.append((np.hstack(row), picture.name))
            self.seen.update(np.unique(labels).tolist())

    def finish(self) -> str:
        """Write what shows all pictures; return what the folder holds, for people."""
        holds = [f"labels/*.png hold the ids of {self.form.title}"] if "labels" in self.kinds else []
        if "overlays" in self.kinds:
            write_legend(self.folder / "legend.png", self.form.classes, self.form.ids, self.form.colours)
            holds.append("overlays/*.jpg show them, legend.png names the colours")
        if "probabilities" in self.kinds:
            holds.append("probabilities/*.npy are float16 (H, W, K)")
        if "entropy" in self.kinds:
            holds.append("entropy/*.jpg go from violet (certain) to yellow (all classes alike)")
        if self.tiles:
            legend = [(self.form.classes[i], self.form.colours[i]) for i in sorted(self.seen)]
            title = "picture, labels" + ", entropy" * ("entropy" in self.kinds)
            with replace_file(self.folder / "contact_sheet.jpg") as file:
                draw_tiles(self.tiles, title, legend, columns=2).savefig(file, format="jpeg")
            holds.append(
                "contact_sheet.jpg shows a few" if len(self.shown) > 1 else "contact_sheet.jpg shows it"
            )
        return ", ".join(holds)
