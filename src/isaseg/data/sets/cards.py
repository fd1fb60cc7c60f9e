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
    *(f"{frame} {texture}" for frame in FRAMES for texture in lamps.TEXTURES),
    "card",
)
CARD = 7
CARD_HALF = 9  # 19 pixels across
_RIM = 3
_HUES_IN_USE = 3
_CLEARANCE = 13  # radius of the circle around a card


class Cards(lamps.Lamps):
    """A split of Cards, with the arguments and errors of `Lamps`.

    Two or three hues are in use, each with a square card; there may be a decoy card of an unused hue.
    """

    classes = CLASSES

    def draw(self, index: int) -> Loaded:
        """Draw scene `index`.

        Returns:
            Image uint8 (128, 128, 3), train ids uint8 (128, 128), and the object pixels more than 40 pixels from the
            card of their own hue, bool (128, 128).
        """
        return self._drawn_with_cues(index)[0]

    def cues(self, index: int) -> np.ndarray:
        """Return which look-up a pixel of scene `index` belongs to, uint8 (128, 128).

        k on the k-th card and on the objects of its hue, counted from 1, and 0 elsewhere; decoys have numbers, too.
        """
        return self._drawn_with_cues(index)[1]

    def frames(self, index: int) -> dict[int, int]:
        """Return the frame of each card of scene `index`, a position in FRAMES, by the card's number in `cues`."""
        return self._drawn_with_cues(index)[2]

    def _drawn_with_cues(self, index: int) -> tuple[Loaded, np.ndarray, dict[int, int]]:
        rng = scene.generator(self.seed, self.split, index)
        canvas = scene.background(rng)
        cue = np.zeros((scene.SIZE, scene.SIZE), np.uint8)
        hues = rng.permutation(len(scene.HUES)).tolist()
        used, decoys = int(rng.integers(2, _HUES_IN_USE + 1)), int(rng.integers(2))
        cards = used + decoys
        frames = rng.integers(len(FRAMES), size=cards).tolist()
        objects = scene.things(rng)
        centres = scene.place(rng, [_CLEARANCE] * cards + [thing.radius for thing in objects])
        far = np.zeros((scene.SIZE, scene.SIZE), bool)
        shown = {}
        for card, (hue, frame, centre) in enumerate(zip(hues, frames, centres[:cards], strict=False)):
            if centre is not None:
                scene.draw_card(canvas, centre, hue, _frame(FRAMES[frame]), CARD)
                cue[canvas.instance == canvas.count] = 1 + card
                shown[1 + card] = frame
        for number, (thing, centre) in enumerate(zip(objects, centres[cards:], strict=True)):
            card = number % used  # every hue in use has an object while there is room
            at = centres[card]
            if centre is None or at is None:
                continue
            label = 1 + 2 * frames[card] + thing.striped
            scene.draw_thing(canvas, centre, replace(thing, hue=hues[card]), label, rng)
            drawn = canvas.instance == canvas.count
            cue[drawn] = 1 + card
            far |= drawn & scene.beyond(*at)
        image, mask = scene.finish(canvas, rng)
        return Loaded(image, mask, far & (mask != scene.IGNORE)), cue, shown


def _frame(kind: str) -> np.ndarray:
    """Return the grey levels of a card's frame, -1 where the hue shows."""
    y, x = np.mgrid[: 2 * CARD_HALF + 1, : 2 * CARD_HALF + 1]
    white = {"white": True, "black": False, "chequered": (x // _RIM + y // _RIM) % 2 == 0}[kind]
    levels: np.ndarray = np.where(np.broadcast_to(white, x.shape), 250, 0)
    levels[_RIM:-_RIM, _RIM:-_RIM] = -1
    return levels
