"""A data source: called with split=train, val or test, it returns that split, or None where there is none."""

import cv2
import numpy as np

from isaseg.data.source import Loaded

SIZE = 64


class Shapes:
    """Generated pictures of grey squares and discs on noise."""

    classes = ("background", "square", "disc")
    palette = np.array([(40, 40, 40), (220, 120, 40), (60, 140, 220)], np.uint8)
    ignore_index = 255
    groups = None
    flip_pairs = ()

    def __init__(self, split: str, length: int = 64) -> None:
        self.split, self.length = split, length

    def __len__(self) -> int:
        """Return the number of pictures."""
        return self.length

    def name(self, index: int) -> str:
        """Return the name of a picture."""
        return f"{self.split}_{index:04d}"

    def load(self, index: int) -> Loaded:
        """Return a picture, uint8 RGB (64, 64, 3), and its labels, uint8 (64, 64)."""
        rng = np.random.default_rng(("train", "val", "test").index(self.split) * self.length + index)
        image = rng.integers(60, 120, (SIZE, SIZE, 3), np.uint8)
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for label in (1, 2):
            x, y = rng.integers(12, SIZE - 12, 2).tolist()
            for canvas, value in ((image, (200, 200, 200)), (mask, label)):
                if label == 1:
                    cv2.rectangle(canvas, (x - 8, y - 8), (x + 8, y + 8), value, -1)
                else:
                    cv2.circle(canvas, (x, y), 9, value, -1)
        return Loaded(image, mask)
