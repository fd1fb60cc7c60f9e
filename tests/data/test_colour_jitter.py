"""Colour jitter follows its published definitions, in uint8, and depends on its generator alone."""

import colorsys

import numpy as np
import pytest

from isaseg import config
from isaseg.data.colour_jitter import brightness, distortion, photometric
from isaseg.data.transforms import HorizontalFlip, PaddleDistortion, TrainTransform
from isaseg.errors import ConfigError
from tests.conftest import compose_overrides

RANGES = (0.4, 0.4, 0.4)  # PaddleSeg's configurations


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
        distortion(image, np.random.default_rng(seed), RANGES, 18)
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


def paddle_draws(seed: int) -> list[tuple[int, float]]:
    """Repeat what distortion draws: what is changed, in order, and by how much."""
    rng, done = np.random.default_rng(seed), []
    for part in rng.permutation(4).tolist():
        if rng.random() < 0.5:
            done.append((part, rng.uniform(0.6, 1.4) if part < 3 else rng.uniform(-18, 18)))
    return done


def luma(x: np.ndarray) -> np.ndarray:
    """Return the brightness of Rec. 601, (H, W, 1)."""
    return x @ np.array([[0.299], [0.587], [0.114]])


def paddle_reference(image: np.ndarray, done: list[tuple[int, float]]) -> np.ndarray:
    """Return RandomDistort in floating point; a step of hue is 1/256 of the circle."""
    x = image.astype(float)
    for part, amount in done:
        if part == 3:
            flat = []
            for red, green, blue in x.reshape(-1, 3) / 255:
                hue, sat, value = colorsys.rgb_to_hsv(red, green, blue)
                flat.append(colorsys.hsv_to_rgb((hue + amount / 256) % 1, sat, value))
            x = np.array(flat).reshape(x.shape) * 255
        else:
            grey = (np.zeros_like(x), luma(x).mean(), luma(x))[part]
            x = np.clip(grey + amount * (x - grey), 0, 255)
    return x


def test_distortion_is_paddlesegs_up_to_truncation() -> None:
    """Each part cuts off what is below a grey level, and hue is cut to 256 steps twice: a level and a half each."""
    image, orders = picture(), set()
    for seed in range(60):
        done = paddle_draws(seed)
        orders.add(tuple(part for part, _ in done))
        got = distortion(image, np.random.default_rng(seed), RANGES, 18).astype(float)
        error = got - paddle_reference(image, done)
        turned = any(part == 3 for part, _ in done)
        assert got.shape == image.shape
        assert np.abs(error).max() <= (20 if turned else 4), done
        assert np.abs(error).mean() <= (3 if turned else 2), done
    assert len(orders) > 25


def test_distortion_applies_every_part_every_other_time() -> None:
    """Two greys show brightness and contrast, two colours saturation and hue."""
    image = np.array([[[100, 100, 100], [60, 60, 60], [150, 110, 100], [90, 60, 130]]], np.uint8)
    same = [
        np.array_equal(image, distortion(image, np.random.default_rng(s), RANGES, 18)) for s in range(800)
    ]
    assert np.mean(same) == pytest.approx(1 / 16, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"contrast": 0, "saturation": 0, "hue": 0}, (0.6, 1.4)),
        ({"brightness": 0.1, "contrast": 0, "saturation": 0, "hue": 0}, (0.9, 1.1)),
        ({"brightness": 0, "contrast": 0, "saturation": 0}, (1.0, 1.0)),
    ],
)
def test_the_ranges_are_keys(changes: dict[str, float], allowed: tuple[float, float]) -> None:
    """A grey has neither saturation nor hue, and is its own mean."""
    image = np.full((4, 5, 3), 100, np.uint8)
    transform = PaddleDistortion(**changes)
    factors = [transform(image=image)["image"][0, 0, 1] / 100 for _ in range(400)]
    assert min(factors) == pytest.approx(allowed[0], abs=0.03)
    assert max(factors) == pytest.approx(allowed[1], abs=0.03)


def test_paddlesegs_distortion_changes_padding_as_its_pipeline_does() -> None:
    image, mask = np.full((20, 30, 3), 90, np.uint8), np.zeros((20, 30), np.uint8)
    augment = [PaddleDistortion(contrast=0, saturation=0, hue=0), HorizontalFlip(p=0.5)]
    pad: dict[str, object] = {"pad": "corner", "pad_colour": (127, 127, 127)}
    transform = TrainTransform((40, 40), None, augment=augment, **pad)
    found = set()
    for k in range(60):
        got, labels, _ = transform(image, mask, None, (0, k, 0))
        factor = got[0, np.flatnonzero(labels[0] == 0)[0], 0] / 90
        assert got[labels == 255].astype(float) == pytest.approx(127 * factor, abs=1.6)
        found.add(got[39, 39, 0])
    assert len(found) > 10


@pytest.mark.parametrize("words", ["brightness: 1.5", "contrast: -0.1", "saturation: wide", "hue: 200"])
def test_an_impossible_range_is_refused_by_name(words: str) -> None:
    node = f"{{_target_: isaseg.data.transforms.PaddleDistortion, {words}}}"
    cfg = compose_overrides(f"data.transform.augment=[{node}]")
    with pytest.raises(ConfigError, match=rf"augment\[0\]\.{words.partition(':')[0]} to be"):
        config.build(cfg.data.transform, "data.transform")
