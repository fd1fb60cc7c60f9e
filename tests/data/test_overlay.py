"""Overlays: halves of picture and colour, borders, thinning; the legend."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isaseg.data.info import backgrounds
from isaseg.data.overlay import overlay, write_jpeg, write_legend

COLOURS = np.array([[200, 0, 0], [0, 100, 40]], np.uint8)


def test_a_pixel_is_the_mean_of_picture_and_colour_and_borders_are_light() -> None:
    image = np.full((4, 6, 3), (20, 40, 60), np.uint8)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    blend = overlay(image, labels, COLOURS)
    assert blend[0, 0].tolist() == [110, 20, 30] and blend[2, 5].tolist() == [10, 70, 50]
    assert (blend[:, 3] >= 170).all() and (blend[:, [0, 1, 2, 4, 5]] < 170).all()
    assert image[0, 0].tolist() == [20, 40, 60]


@pytest.mark.parametrize(
    ("size", "thinned"),
    [((1, 1), (1, 1)), ((2048, 100), (2048, 100)), ((3000, 1500), (2048, 1024)), ((1, 9000), (1, 2048))],
)
def test_large_ones_are_thinned(size: tuple[int, int], thinned: tuple[int, int]) -> None:
    image, labels = np.full((*size, 3), 100, np.uint8), np.ones(size, np.uint8)
    blend = overlay(image, labels, COLOURS)
    assert blend.shape == (*thinned, 3) and (blend == [50, 100, 70]).all()


def test_a_file_has_red_where_red_belongs(tmp_path: Path) -> None:
    image, labels = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    write_jpeg(tmp_path / "a.jpg", overlay(image, labels, COLOURS))
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "JPEG" and np.abs(np.asarray(picture, int) - [100, 0, 0]).max() <= 3


def test_the_legend_shows_every_colour(tmp_path: Path) -> None:
    colours = np.arange(171 * 3, dtype=np.uint16).reshape(171, 3).astype(np.uint8)
    names = [f"class {i}" for i in range(170)] + [r"$\x$" + "Ж" * 10_000]
    write_legend(tmp_path / "legend.png", names, np.arange(171), colours)
    with Image.open(tmp_path / "legend.png") as picture:
        assert max(picture.size) < 4000
        pixels = picture.convert("RGB").getcolors(2**20)
    assert {tuple(colour) for colour in colours.tolist()} <= {colour for _, colour in pixels}


def test_a_background_is_not_tinted() -> None:
    image = np.full((4, 6, 3), (20, 40, 60), np.uint8)
    labels = np.zeros((4, 6), np.uint8)
    labels[:, 3:] = 1
    blend = overlay(image, labels, COLOURS, backgrounds(["Background", "dog"]))
    assert (blend[:, :3] == image[0, 0]).all() and blend[2, 5].tolist() == [10, 70, 50]
