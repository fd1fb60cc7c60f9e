"""Lamps: reproducible, and labelled by the rule that the lit lamp decides."""

import numpy as np
import pytest

from isaseg.data.sets.lamps import LAMP, LIGHTS, Lamps
from isaseg.errors import ConfigError


def test_a_scene_is_a_pure_function_of_seed_split_and_index() -> None:
    for a, b in zip(Lamps("val").load(5), Lamps("val").load(5), strict=True):
        assert np.array_equal(a, b)  # type: ignore[arg-type]
    image = Lamps("val").load(5)[0]
    for other in (
        Lamps("val").load(6),
        Lamps("train").load(5),
        Lamps("test").load(5),
        Lamps("val", seed=1).load(5),
    ):
        assert not np.array_equal(image, other[0])


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


def test_lengths_and_errors() -> None:
    assert len(Lamps("train", train_length=9, val_length=4)) == 9
    assert len(Lamps("val", train_length=9, val_length=4)) == 4
    with pytest.raises(ConfigError, match="val_length=0"):
        Lamps("val", val_length=0)
