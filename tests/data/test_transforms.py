"""The training transform keeps image and labels together, invents no label, and depends on its key alone."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ks_2samp

from isaseg import config
from isaseg.data.resize import base_size
from isaseg.data.transforms import (
    BrightnessShift,
    HorizontalFlip,
    PhotometricDistortion,
    RandomRotate90,
    Sample,
    TrainTransform,
)
from isaseg.errors import ConfigError
from tests.conftest import compose_overrides

SYMMETRIES = [HorizontalFlip(p=0.5), RandomRotate90(p=1)]


def sample(height: int = 40, width: int = 56) -> Sample:
    """Return an image whose channels say the label, so that image and labels can be compared afterwards."""
    mask = np.random.default_rng(0).integers(0, 5, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    return np.repeat(mask[..., None] * 50, 3, axis=2).astype(np.uint8), mask.astype(np.uint8), mask == 3


def test_image_labels_and_region_go_through_one_geometry() -> None:
    transform = TrainTransform((24, 24), scale=None, augment=SYMMETRIES)
    results = set()
    for k in range(80):
        image, mask, far = transform(*sample(), (0, k, 0))
        assert np.array_equal(image[..., 0], mask * 50)
        assert far is not None
        assert np.array_equal(far, mask == 3)
        results.add(mask.tobytes())
    assert len(results) > 40


def test_flip_and_turns_give_all_eight_symmetries_and_nothing_else() -> None:
    transform = TrainTransform((40, 40), scale=None, augment=SYMMETRIES)
    image, mask, _ = sample(40, 40)
    allowed = {np.rot90(m, turns).tobytes() for m in (mask, mask[:, ::-1]) for turns in range(4)}
    assert {transform(image, mask, None, (0, k, 0))[1].tobytes() for k in range(100)} == allowed


@pytest.mark.parametrize("scale", [(0.5, 0.6), (1.2, 1.4)])
@pytest.mark.parametrize("colours", [PhotometricDistortion, BrightnessShift])
def test_padding_is_ignored_and_grey_whatever_the_colours(scale: tuple[float, float], colours: type) -> None:
    """It stands for zero once normalised."""
    transform = TrainTransform((96, 96), scale, augment=[colours(), *SYMMETRIES], ignore_index=7)
    plain = TrainTransform((96, 96), scale, ignore_index=7)
    changed = []
    for k in range(20):
        image, mask, far = transform(*sample(), (0, k, 0))
        assert (mask == 7).any()
        assert (image[mask == 7] == (124, 116, 104)).all()
        assert far is not None and not far[mask == 7].any()
        changed.append(image.sum() != plain(*sample(), (0, k, 0))[0].sum())
    assert sum(changed) > 10


def test_a_mirror_swaps_paired_classes() -> None:
    transform = TrainTransform((40, 56), scale=None, augment=[HorizontalFlip(p=0.5)])
    image, mask, _ = sample()
    swapped = np.array([0, 2, 1, 3, 4], np.uint8)[mask][:, ::-1]
    results = [transform(image, mask, None, (0, k, 0), flip_pairs=((1, 2),))[1] for k in range(20)]
    assert any(np.array_equal(r, swapped) for r in results)
    assert all(np.array_equal(r, swapped) or np.array_equal(r, mask) for r in results)


def ramps(height: int, width: int) -> np.ndarray:
    """Return a picture whose red is the column and whose green is the row, so that a crop says where it was."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 255)], axis=2).astype(np.uint8)


def resize_then_crop(image: np.ndarray, crop: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return the classical pipeline: resize the whole picture, pad it below and right, crop, flip."""
    factor = rng.uniform(0.5, 2.0)
    image = cv2.resize(image, (round(image.shape[1] * factor), round(image.shape[0] * factor)))
    below, right = (max(0, c - n) for c, n in zip(crop, image.shape[:2], strict=True))
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(124, 116, 104))
    y, x = (int(rng.integers(n - c + 1)) for c, n in zip(crop, image.shape[:2], strict=True))
    image = image[y : y + crop[0], x : x + crop[1]]
    return image[:, ::-1] if rng.random() < 0.5 else image


def place_of(crop: np.ndarray) -> tuple[float, float, float, float, float, float]:
    """Return where a crop of `ramps` came from: rows and columns to a pixel, first row and column, flip, filled share."""
    inside = crop[..., 2] == 255
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    part = crop[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(float)
    x, y = part[..., 0].mean(0), part[..., 1].mean(1)
    flipped = x[-1] < x[0]
    x = x[::-1] if flipped else x
    return (
        (y[-2] - y[1]) / (len(y) - 3),
        (x[-2] - x[1]) / (len(x) - 3),
        y[1],
        x[1],
        float(flipped),
        inside.mean(),
    )


@pytest.mark.parametrize("size", [(200, 240), (90, 250), (60, 70)])
def test_scale_place_flip_and_padding_are_distributed_as_when_the_whole_picture_is_resized(
    size: tuple[int, int],
) -> None:
    crop, image, blank = (64, 80), ramps(*size), np.zeros(size, np.uint8)
    transform = TrainTransform(crop, (0.5, 2.0), pad="corner", augment=[HorizontalFlip(p=0.5)])
    ours = np.array([place_of(transform(image, blank, None, (0, k, 0))[0]) for k in range(700)])
    rng = np.random.default_rng(1)
    theirs = np.array([place_of(resize_then_crop(image, crop, rng)) for _ in range(700)])
    for name, a, b in zip(
        ("rows", "columns", "top", "left", "flip", "filled"), ours.T, theirs.T, strict=True
    ):
        assert ks_2samp(a.round(2), b.round(2), method="asymp").pvalue > 0.01, name
    # and together: the place depends on the scale in the same way
    for a, b in ((0, 2), (1, 3), (2, 3)):
        assert np.corrcoef(ours[:, a], ours[:, b])[0, 1] == pytest.approx(
            np.corrcoef(theirs[:, a], theirs[:, b])[0, 1], abs=0.12
        )


@pytest.mark.parametrize(("factor", "interpolation"), [(2.0, "linear"), (0.5, "linear"), (2.0, "cubic")])
def test_a_window_resized_has_the_pixels_of_the_whole_picture_resized(
    factor: float, interpolation: str
) -> None:
    """But for the outermost pixels, which have no neighbours outside the window."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, 9, (48, 64)).astype(np.uint8)
    transform = TrainTransform((16, 24), (factor, factor), interpolation=interpolation)
    flag = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}[interpolation]
    size = (round(64 * factor), round(48 * factor))
    whole = cv2.resize(image, size, interpolation=flag)
    whole_labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    compared = 0
    for k in range(20):
        got, mask, _ = transform(image, labels, None, (0, k, 0))
        rng = np.random.default_rng((0, k, 0))
        window = transform.window((48, 64), transform.factors((48, 64), rng), rng)
        y, x = window.rows.start * factor, window.columns.start * factor
        if not y.is_integer() or not x.is_integer():
            continue  # between two pixels of the whole picture resized
        y, x, compared = int(y), int(x), compared + 1
        assert np.array_equal(mask, whole_labels[y : y + 16, x : x + 24])
        margin = 0 if factor < 1 else 4
        inner = np.s_[margin : 16 - margin, margin : 24 - margin]
        assert np.abs(got[inner].astype(int) - whole[y : y + 16, x : x + 24][inner]).max() <= 1
    assert compared > 2


def test_the_aspect_is_stretched_by_the_root_in_both_directions() -> None:
    image, blank = ramps(250, 250), np.zeros((250, 250), np.uint8)
    transform = TrainTransform((64, 64), (1.0, 1.0), aspect=(0.9, 1.1))
    steps = np.array([place_of(transform(image, blank, None, (0, k, 0))[0])[:2] for k in range(200)])
    ratio = steps[:, 0] / steps[:, 1]
    assert steps.prod(axis=1) == pytest.approx(1, abs=0.03)
    assert ratio.min() == pytest.approx(0.9, abs=0.02)
    assert ratio.max() == pytest.approx(1.1, abs=0.02)


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((512, 683), None, (512, 683)),
        ((512, 683), {"short_side": 520}, (520, 694)),
        ((683, 512), {"short_side": 520}, (694, 520)),
        ((300, 1500), {"short_side": 512, "long_side": 2048}, (410, 2048)),
        ((375, 500), {"short_side": 520, "long_side": 520}, (390, 520)),
        ((375, 500), {"size": [473, 473]}, (473, 473)),
    ],
)
def test_the_base_size_is_that_of_the_protocols(
    size: tuple[int, int], resize: dict[str, object] | None, expected: tuple[int, int]
) -> None:
    assert base_size(*size, resize) == expected
    if resize is not None:
        crop = (min(expected) // 4,) * 2
        transform = TrainTransform(crop, (1.0, 1.0), resize)
        rng = np.random.default_rng(0)
        window = transform.window(size, transform.factors(size, rng), rng)
        for axis, part in enumerate((window.rows, window.columns)):
            assert part.stop - part.start == pytest.approx(crop[axis] * size[axis] / expected[axis], abs=0.5)


def test_a_crop_that_one_class_fills_is_drawn_again_as_in_mmsegmentation() -> None:
    mask, image = np.zeros((120, 160), np.uint8), np.zeros((120, 160, 3), np.uint8)
    mask[:, 110:] = 1
    mask[:20] = 255
    shares: list[list[float]] = [[], []]
    transform = TrainTransform((32, 32), (1.0, 1.0), cat_max_ratio=0.75)
    rng = np.random.default_rng(2)
    for k in range(400):
        shares[0].append(share(transform(image, mask, None, (0, k, 0))[1]))
        place = None
        for _ in range(10):
            place = rng.integers((89, 129)) if place is None else place
            crop = mask[place[0] : place[0] + 32, place[1] : place[1] + 32]
            if share(crop) < 0.75:
                break
            place = rng.integers((89, 129))
        shares[1].append(share(mask[place[0] : place[0] + 32, place[1] : place[1] + 32]))
    assert np.mean(np.array(shares[0]) >= 0.75) == pytest.approx(
        np.mean(np.array(shares[1]) >= 0.75), abs=0.05
    )
    assert ks_2samp(*shares).pvalue > 0.01
    free = TrainTransform((32, 32), (1.0, 1.0))
    assert np.mean([share(free(image, mask, None, (0, k, 0))[1]) >= 0.75 for k in range(200)]) > 0.5


def share(mask: np.ndarray) -> float:
    counts = np.bincount(mask[mask != 255], minlength=2)
    return float(counts.max() / max(counts.sum(), 1))


def test_a_picture_of_one_class_or_none_is_cropped_all_the_same() -> None:
    transform = TrainTransform((16, 16), cat_max_ratio=0.75)
    for label in (3, 255):
        mask = np.full((40, 40), label, np.uint8)
        assert set(np.unique(transform(ramps(40, 40), mask, None, (0, 0, 0))[1])) <= {label, 255}


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(["corner", "centre", "random"]),
    st.sampled_from([None, {"short_side": 30}, {"size": [20, 50]}]),
    st.integers(0, 1000),
)
def test_d8_any_sizes_give_the_crop_and_only_labels_that_were_there(
    size: tuple[int, int], crop: tuple[int, int], pad: str, resize: dict[str, object] | None, seed: int
) -> None:
    mask = np.random.default_rng(seed).choice(np.array([0, 3, 254], np.uint8), size)
    image = np.repeat(mask[..., None], 3, axis=2)
    geometry: Any = {"aspect": (0.7, 1.4), "cat_max_ratio": 0.75, "pad": pad, "interpolation": "cubic"}
    augment = [PhotometricDistortion(), HorizontalFlip(p=0.5)]
    transform = TrainTransform(crop, (0.3, 3.0), resize, augment=augment, **geometry)
    got, labels, _ = transform(image, mask, None, (seed, 0, 0))
    assert got.shape == (*crop, 3)
    assert labels.shape == crop
    assert got.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {*np.unique(mask).tolist(), 255}


@pytest.mark.parametrize(("pad", "offsets"), [("corner", {0}), ("centre", {12}), ("random", set(range(25)))])
def test_a_small_picture_lies_where_pad_says(pad: str, offsets: set[int]) -> None:
    transform = TrainTransform((64, 56), scale=None, pad=pad)
    image, mask, _ = sample()
    found = {
        int(np.flatnonzero((transform(image, mask, None, (0, k, 0))[1] != 255).any(1))[0]) for k in range(300)
    }
    assert found == offsets


@pytest.mark.parametrize("colours", [PhotometricDistortion, BrightnessShift])
def test_padding_has_the_colour_of_its_key(colours: type) -> None:
    cfg = compose_overrides("data.transform.pad_colour=[0,130,255]", "data.crop_size=[64,64]")
    colour = config.build(cfg.data.transform, "data.transform").pad_colour
    transform = TrainTransform((64, 64), scale=None, augment=[colours(), SYMMETRIES[0]], pad_colour=colour)
    for k in range(10):
        image, mask, _ = transform(*sample(), (0, k, 0))
        assert (image[mask == 255] == (0, 130, 255)).all() and (mask == 255).any()
        assert not (image[mask != 255] == (0, 130, 255)).all(axis=1).any()


@pytest.mark.parametrize(
    ("scale", "step", "expected"),
    [
        ((0.5, 2.0), 0.25, [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]),
        ((0.7, 1.0), 0.1, [0.7, 0.8, 0.9, 1.0]),
        ((1.5, 1.5), 0.5, [1.5]),
    ],
)
def test_stepped_scales_are_all_steps_with_both_ends_and_equally_likely(
    scale: tuple[float, float], step: float, expected: list[float]
) -> None:
    transform = TrainTransform((64, 80), scale, scale_step=step)
    rng = np.random.default_rng(0)
    drawn = np.round([transform.factors((100, 100), rng)[0] for _ in range(1400)], 9)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == expected
    assert len(expected) == 1 or chisquare(counts).pvalue > 0.01
    image, blank = ramps(250, 250), np.zeros((250, 250), np.uint8)
    for k in range(50):
        rows, columns, *_ = place_of(transform(image, blank, None, (0, k, 0))[0])
        for length, crop in ((rows, 64), (columns, 80)):  # a window is off by half a pixel at most
            assert min(abs(crop * length - crop / factor) for factor in expected) < 0.6 + 0.01 * crop


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *(
            (f"{name}={limits}", name)
            for name in ("scale", "aspect")
            for limits in ("[a,b]", "[1]", "[2,1]", "[0,1]")
        ),
        ("cat_max_ratio=1.5", "cat_max_ratio to be less than or equal to 1"),
        ("cat_max_ratio=0", "cat_max_ratio to be greater than 0"),
        ("pad=middle", "pad .*corner"),
        ("interpolation=nearest", "interpolation .*cubic"),
        *((f"scale_step={step}", "scale_step to be greater than 0") for step in (0, -0.25)),
        *((f"pad_colour={colour}", "pad_colour") for colour in ("[0,0]", "[0,0,256]", "[0.5,0,0]", "grey")),
        ("pad_colour=[0,-1,0]", r"pad_colour\[1\] to be greater than or equal to 0"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(override: str, message: str) -> None:
    cfg = compose_overrides(f"data.transform.{override}")
    with pytest.raises(ConfigError, match=rf"data\.transform\.{message}"):
        config.build(cfg.data.transform, "data.transform")


@pytest.mark.parametrize(
    ("scale", "got"),
    [
        ("[0.5,2.0]", r"0\.4 for \[0\.5, 2\.0\]"),
        ("null", "0.4 for null"),
        ("[1.0,1.1]", r"for \[1\.0, 1\.1\]"),
    ],
)
def test_a_step_that_does_not_divide_the_scales_is_refused(scale: str, got: str) -> None:
    cfg = compose_overrides(f"data.transform.scale={scale}", "data.transform.scale_step=0.4")
    with pytest.raises(ConfigError, match=rf"scale_step to divide data\.transform\.scale .*{got}"):
        config.build(cfg.data.transform, "data.transform")
