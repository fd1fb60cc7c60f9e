"""Cards: the hard mode of Lamps. The frame of the card of its own hue decides the class of an object.

So each object must find its cue by content: a look-up, not one broadcast.
"""

from dataclasses import replace

import numpy as np

from isaseg.data.sets import lamps, scene
from isaseg.data.source import Loaded

FRAMES = ("white", "black", "chequered")
CLASSES = (
    "background",
    *(f"{frame} {texture}" for frame in FRAMES for texture in ("plain", "striped")),
    "card",
)
CARD = 7
CARD_HALF = 9  # 19 pixels across
_RIM = 3
_HUES_IN_USE = 3
_CLEARANCE = 13  # radius of the circle around a card


class Cards(lamps.Lamps):
    """A split of Cards: scene `i` is a pure function of seed, split and `i`; nothing is stored.

    Two or three hues are in use, each with a square card; a decoy card of an unused hue may lie about. Arguments and
    errors are those of `Lamps`.
    """

    classes = CLASSES

    def draw(self, index: int) -> Loaded:
        """Draw scene `index`.

        Returns:
            Image uint8 (128, 128, 3), train ids uint8 (128, 128), and the object pixels more than 40 pixels from the
            card of their own hue, bool (128, 128).
        """
        rng = scene.generator(self.seed, self.split, index)
        canvas = scene.background(rng)
        hues = rng.permutation(len(scene.HUES)).tolist()
        used, decoys = int(rng.integers(2, _HUES_IN_USE + 1)), int(rng.integers(2))
        frames = rng.integers(len(FRAMES), size=used + decoys).tolist()
        objects = scene.things(rng)
        centres = scene.place(rng, [_CLEARANCE] * (used + decoys) + [thing.radius for thing in objects])
        far = np.zeros((scene.SIZE, scene.SIZE), bool)
        for number, centre in enumerate(centres[: used + decoys]):
            if centre is not None:
                scene.draw_card(canvas, *centre, CARD_HALF, hues[number], _frame(frames[number]), CARD)
        for number, centre in enumerate(centres[used + decoys :]):
            card = number % used  # every hue in use has an object while there is room
            at = centres[card]
            if centre is None or at is None:
                continue
            thing = replace(objects[number], x=centre[0], y=centre[1], hue=hues[card])
            scene.draw_thing(canvas, thing, 1 + 2 * frames[card] + thing.striped, rng)
            far |= (canvas.instance == canvas.count) & scene.beyond(*at)
        image, mask = scene.finish(canvas, rng)
        return Loaded(image, mask, far & (mask != scene.IGNORE))


def _frame(kind: int) -> np.ndarray:
    """Return grey levels of a card's frame, -1 where the hue shows."""
    side = 2 * CARD_HALF + 1
    y, x = np.mgrid[:side, :side]
    levels: np.ndarray = np.where(FRAMES[kind] == "white", 250, np.zeros((side, side), int))
    if FRAMES[kind] == "chequered":
        levels = np.where((x // _RIM + y // _RIM) % 2 == 0, 250, 0)
    levels[_RIM:-_RIM, _RIM:-_RIM] = -1
    return levels
