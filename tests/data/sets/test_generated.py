"""Generated data sets: scenes are reproducible, labelled by their rule, and drawn as stated."""

import cv2
import numpy as np
import pytest

from isaseg.data.sets import scene
from isaseg.data.sets.cards import CARD, CARD_HALF, Cards
from isaseg.data.sets.lamps import LAMP, LIGHTS, Lamps


@pytest.mark.parametrize("data", [Lamps, Cards])
def test_a_scene_is_a_pure_function_of_seed_split_and_index(data: type[Lamps]) -> None:
    for a, b in zip(data("val").load(5), data("val").load(5), strict=True):
        assert np.array_equal(a, b)  # type: ignore[arg-type]
    image, mask, far = data("val").load(5)
    others = (data("val").load(6), data("train").load(5), data("test").load(5), data("val", seed=1).load(5))
    assert not any(np.array_equal(image, other[0]) for other in others)
    assert np.isin(mask[far], range(1, 7)).all()


def test_the_lamps_colour_decides_the_group_of_every_object() -> None:
    source = Lamps("train")
    assert source.groups is not None
    seen = set()
    for index in range(60):
        image, mask, _ = source.load(index)
        colour = np.median(image[mask == LAMP], axis=0)
        lit = int(np.argmin([np.abs(colour - np.array(light)).sum() for light in LIGHTS.values()]))
        objects = set(np.unique(mask).tolist()) - {0, LAMP, 255}
        assert objects
        assert objects <= set(source.groups[lit]), index
        seen |= objects
    assert seen == {1, 2, 3, 4, 5, 6}


def test_hue_and_shape_say_nothing_about_the_group() -> None:
    source = Lamps("train")
    reds = []
    for index in range(150):
        image, mask, _ = source.load(index)
        for group in source.groups or ():
            inside = np.isin(mask, group)
            if inside.any():
                reds.append((group[0], image[inside].mean(axis=0)))
    means = [np.mean([c for g, c in reds if g == first], axis=0) for first in (1, 3, 5)]
    assert np.ptp(means, axis=0).max() < 20


def test_far_is_the_object_pixels_more_than_40_from_the_lamp() -> None:
    for index in range(10):
        _, mask, far = Lamps("val").load(index)
        assert far is not None
        centre = np.argwhere(mask == LAMP).mean(axis=0)
        y, x = np.mgrid[:128, :128]
        distance = np.hypot(y - centre[0], x - centre[1])
        assert (distance[far] > 39).all()
        assert np.isin(mask[far], range(1, 7)).all()
        assert not (np.isin(mask, range(1, 7)) & (distance > 41) & ~far).any()


def test_shapes_types_and_share_of_ignored_pixels() -> None:
    shares = []
    for index in range(30):
        image, mask, _ = Lamps("train").load(index)
        assert image.shape == (128, 128, 3)
        assert image.dtype == mask.dtype == np.uint8
        shares.append((mask == 255).mean())
    assert 0.04 < np.mean(shares) < 0.1


def test_lengths() -> None:
    assert len(Lamps("train", train_length=9, val_length=4)) == 9
    assert len(Lamps("val", train_length=9, val_length=4)) == 4


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


def blank() -> scene.Canvas:
    return scene.Canvas(np.full((scene.SIZE, scene.SIZE, 3), 128, np.uint8))


def test_placed_circles_lie_inside_and_apart() -> None:
    radii = [8, 8, 16, 16, 14, 12, 11, 9]
    for seed in range(20):
        centres = scene.place(np.random.default_rng(seed), radii)
        found = [(c, r) for c, r in zip(centres, radii, strict=True) if c is not None]
        assert centres[0] is not None
        for n, ((x, y), r) in enumerate(found):
            assert r < x < scene.SIZE - r
            assert r < y < scene.SIZE - r
            for (u, v), s in found[:n]:
                assert (x - u) ** 2 + (y - v) ** 2 > (r + s) ** 2


def test_outlines_are_ignored_one_pixel_to_each_side() -> None:
    canvas = blank()
    scene.draw_card(canvas, (64, 64), 0, np.full((19, 19), -1), label=7)
    _, mask = scene.finish(canvas, np.random.default_rng(0))
    row = mask[64, 50:80].tolist()
    assert row == [0] * 4 + [255, 255] + [7] * 17 + [255, 255] + [0] * 5


def test_stripes_have_the_stated_period() -> None:
    canvas = blank()
    thing = scene.Thing("disc", 16, 2, True)
    scene.draw_thing(canvas, (64, 64), thing, 2, np.random.default_rng(1))
    dark = canvas.image[..., 1].astype(float) < 100
    inside = canvas.mask == 2
    assert 0.4 < dark[inside].mean() < 0.6
    field = np.where(inside, dark - dark[inside].mean(), 0)
    power = np.abs(np.fft.fftshift(np.fft.fft2(field)))
    v, u = np.unravel_index(power.argmax(), power.shape)
    frequency = np.hypot(u - 64, v - 64) / scene.SIZE
    assert abs(1 / frequency - scene.STRIPE_PERIOD) < 0.7
