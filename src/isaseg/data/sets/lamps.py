"""Lamps: small generated scenes in which one lit lamp decides the class of every object, however far away.

The texture of an object is local; the lamp's colour is needed as well, and the lamp is anywhere.
"""

import numpy as np
from pydantic import PositiveInt

from isaseg.data.sets import scene
from isaseg.data.source import Loaded

LIGHTS = {"red": (225, 45, 40), "green": (45, 200, 55), "blue": (50, 80, 225)}
TEXTURES = ("plain", "striped")
CLASSES = ("background", *(f"{light} {texture}" for light in LIGHTS for texture in TEXTURES), "lamp")
PALETTE = np.array(
    [(40, 40, 40), (230, 60, 50), (255, 160, 150), (50, 170, 60), (160, 230, 150), (50, 90, 220),
     (150, 190, 255), (255, 235, 80)], np.uint8,
)  # fmt: skip
LAMP = 7
LAMP_RADIUS = 8  # 17 pixels across
_UNLIT = (95, 95, 95)


class Lamps:
    """A split of Lamps: scene `i` is a pure function of seed, split and `i`; nothing is stored.

    Args:
        split: train, val or test; each has its own scenes.
        seed: Seed of the data set (not of the training).
        train_length: Scenes in train.
        val_length: Scenes in val and in test.
    """

    classes: tuple[str, ...] = CLASSES
    palette = PALETTE
    ignore_index = scene.IGNORE
    groups: tuple[tuple[int, ...], ...] | None = ((1, 2), (3, 4), (5, 6))
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __init__(
        self, split: str, seed: int = 0, train_length: PositiveInt = 8192, val_length: PositiveInt = 256
    ) -> None:
        self.split, self.seed = split, seed
        self.length = train_length if split == "train" else val_length
        self._drawn: dict[int, Loaded] = {}

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.length

    def name(self, index: int) -> str:
        """Return the scene's name."""
        return f"{self.split}_{index:05d}"

    def load(self, index: int) -> Loaded:
        """Return scene `index`, see `draw`; those of val and test are kept for the next validation."""
        if self.split == "train":
            return self.draw(index)
        if index not in self._drawn:
            self._drawn[index] = self.draw(index)
        return self._drawn[index]

    def draw(self, index: int) -> Loaded:
        """Draw scene `index`.

        Returns:
            Image uint8 (128, 128, 3), train ids uint8 (128, 128), and the object pixels more than 40 pixels from the
            lit lamp, bool (128, 128).
        """
        rng = scene.generator(self.seed, self.split, index)
        canvas = scene.background(rng)
        light, lamps = int(rng.integers(len(LIGHTS))), 1 + int(rng.integers(1, 3))
        objects = scene.things(rng)
        centres = scene.place(rng, [LAMP_RADIUS] * lamps + [thing.radius for thing in objects])
        for thing, centre in zip(objects, centres[lamps:], strict=True):
            if centre is not None:
                scene.draw_thing(canvas, centre, thing, 1 + 2 * light + thing.striped, rng)
        for centre in centres[1:lamps]:
            if centre is not None:
                scene.draw_disc(canvas, centre, LAMP_RADIUS, _UNLIT, label=0)
        lit = centres[0]
        assert lit is not None  # the first to be placed always finds room
        scene.draw_disc(canvas, lit, LAMP_RADIUS, list(LIGHTS.values())[light], label=LAMP)
        image, mask = scene.finish(canvas, rng)
        return Loaded(image, mask, (mask >= 1) & (mask < LAMP) & scene.beyond(*lit))
