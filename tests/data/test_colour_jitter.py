"""Colour jitter follows its published definitions, in uint8, and depends on its generator alone."""

import colorsys

import numpy as np
import pytest

from isaseg.data.colour_jitter import brightness, photometric


def picture(height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def draws(seed: int) -> dict[str, float]:
    """Repeat what photometric draws."""
    rng = np.random.default_rng(seed)
    return {
        "shift": rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0,
        "first": rng.random() < 0.5,
        "contrast": rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0,
        "saturation": rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0,
        "turn": int(rng.integers(-18, 18)) if rng.random() < 0.5 else 0,
    }


def reference(image: np.ndarray, d: dict[str, float]) -> np.ndarray:
    """Return PhotoMetricDistortion in floating point, pixel by pixel."""
    x = np.clip(image.astype(float) + d["shift"], 0, 255)
    if d["first"]:
        x = np.clip(x * d["contrast"], 0, 255)
    flat = []
    for red, green, blue in x.reshape(-1, 3) / 255:
        hue, sat, value = colorsys.rgb_to_hsv(red, green, blue)
        flat.append(colorsys.hsv_to_rgb((hue + d["turn"] / 180) % 1, min(1, sat * d["saturation"]), value))
    x = np.array(flat).reshape(x.shape) * 255
    return x if d["first"] else np.clip(x * d["contrast"], 0, 255)


def test_photometric_is_the_published_distortion_up_to_rounding() -> None:
    """A step of hue is six grey levels (in mmsegmentation, of 180 steps: eight), and turn and hue are both rounded."""
    image = picture()
    for seed in range(60):
        d = draws(seed)
        got = photometric(image, np.random.default_rng(seed)).astype(float)
        want = reference(image, d)
        coloured = d["saturation"] != 1 or d["turn"] != 0
        assert np.abs(got - want).max() <= (12 if coloured else 1.6), d
        assert np.abs(got - want).mean() <= (2 if coloured else 0.6), d
        assert abs((got - want).mean()) < 0.7, d


def test_every_part_is_applied_every_other_time() -> None:
    image = np.full((2, 2, 3), (100, 120, 140), np.uint8)
    results = [photometric(image, np.random.default_rng(seed))[0, 0] for seed in range(600)]
    same = np.mean([np.array_equal(r, image[0, 0]) for r in results])
    assert same == pytest.approx(1 / 16, abs=0.03)
    assert len(np.unique(results, axis=0)) > 200


def test_the_image_that_is_passed_in_stays() -> None:
    image = picture()
    before = image.copy()
    for seed in range(20):
        photometric(image, np.random.default_rng(seed))
        brightness(image, np.random.default_rng(seed))
    assert np.array_equal(image, before)


def test_brightness_is_one_whole_number_for_all_channels() -> None:
    image = np.full((3, 5, 3), (100, 3, 252), np.uint8)
    shifts = set()
    for seed in range(200):
        got = brightness(image, np.random.default_rng(seed)).astype(int)
        shift = int(got[0, 0, 0]) - 100
        assert (got == np.clip(image.astype(int) + shift, 0, 255)).all()
        shifts.add(shift)
    assert shifts == set(range(-10, 11))
