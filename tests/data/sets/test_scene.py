"""Drawing: placement without overlap, outlines one pixel to each side, stripes of the stated period."""

import numpy as np

from isaseg.data.sets import scene


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
