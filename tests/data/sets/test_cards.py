"""Cards: every object is labelled by the frame of the card of its own hue."""

import cv2
import numpy as np

from isaseg.data.sets import scene
from isaseg.data.sets.cards import CARD, CARD_HALF, Cards


def nearest_hue(colours: np.ndarray) -> int:
    colour = colours.astype(float).mean(axis=0)
    unit = scene.HUES / np.linalg.norm(scene.HUES, axis=1, keepdims=True)
    return int(np.argmax(unit @ (colour / np.linalg.norm(colour))))


def group_of_card(image: np.ndarray, y: int, x: int) -> int:
    ring = (
        image[y - CARD_HALF : y + CARD_HALF + 1, x - CARD_HALF : x + CARD_HALF + 1].astype(float).mean(axis=2)
    )
    edge = np.concatenate([ring[1], ring[-2], ring[:, 1], ring[:, -2]])
    return 0 if (edge > 128).mean() > 0.9 else 1 if (edge < 128).mean() > 0.9 else 2


def test_the_frame_of_the_card_of_the_same_hue_decides() -> None:
    source, seen = Cards("train"), set()
    for index in range(40):
        image, mask, _ = source.load(index)
        count, regions = cv2.connectedComponents((mask == CARD).astype(np.uint8))
        cards = {}
        for number in range(1, count):
            y, x = (round(c) for c in np.argwhere(regions == number).mean(axis=0))
            cards[nearest_hue(image[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3))] = group_of_card(
                image, y, x
            )
        assert len(cards) == count - 1, "one card for a hue"
        for label in range(1, 7):
            count, regions = cv2.connectedComponents((mask == label).astype(np.uint8))
            for number in range(1, count):
                if (regions == number).sum() > 20:  # not a corner cut off by outlines
                    assert cards[nearest_hue(image[regions == number])] == (label - 1) // 2, index
                    seen.add(label)
    assert seen == {1, 2, 3, 4, 5, 6}


def test_a_scene_is_a_pure_function_and_far_lies_on_objects() -> None:
    first, again = Cards("val").load(3), Cards("val").load(3)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)  # type: ignore[arg-type]
    assert not np.array_equal(first[0], Cards("train").load(3)[0])
    _, mask, far = first
    assert far is not None
    assert np.isin(mask[far], range(1, 7)).all()
