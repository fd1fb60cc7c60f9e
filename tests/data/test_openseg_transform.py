"""protocol=openseg draws scale, aspect, place, padding, mirror and brightness as openseg does, by two-sample tests.

Its pictures are made here by what its code says in lib/datasets/tools/cv2_aug_transforms.py and collate.py: the whole
picture is resized, cropped, mirrored, made brighter or darker, and padded once it is normalised.
"""

from typing import Any

import cv2
import numpy as np
import pytest

from isaseg import config
from isaseg.data.transforms import TrainTransform
from tests.conftest import compose_overrides
from tests.draws import place, ramp, table
from tests.two_samples import alike, as_often, mutant

COUNT = 600
CROP = (96, 128)
SIZES = [(200, 230), (80, 100)]  # hardly padded, and mostly


def openseg(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a crop and where it is no padding."""
    height, width = image.shape[:2]
    scale, aspect = rng.uniform(0.5, 2.0), rng.uniform(0.9, 1.1)
    size = int(width * scale * aspect**0.5), int(height * scale / aspect**0.5)
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    kept = [min(CROP[axis], image.shape[axis]) for axis in (0, 1)]
    top, left = (int(rng.integers(image.shape[axis] - kept[axis] + 1)) for axis in (0, 1))
    image = image[top : top + kept[0], left : left + kept[1]]
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = np.clip(image.astype(int) + rng.integers(-10, 11), 0, 255).astype(np.uint8)
    above, before = (int(rng.integers(CROP[axis] - kept[axis] + 1)) for axis in (0, 1))
    whole, filled = np.zeros((*CROP, 3), np.uint8), np.zeros(CROP, bool)
    inside = np.s_[above : above + kept[0], before : before + kept[1]]
    whole[inside], filled[inside] = image, True
    return whole, filled


@pytest.fixture(scope="module")
def theirs() -> dict[tuple[int, int], dict[str, Any]]:
    rng = np.random.default_rng(1)
    return {size: table([place(*openseg(ramp(*size), rng), size) for _ in range(COUNT)]) for size in SIZES}


def draw(size: tuple[int, int], *overrides: str) -> dict[str, Any]:
    words = ["data=cityscapes", "protocol=openseg", f"data.crop_size=[{CROP[0]},{CROP[1]}]", *overrides]
    transform = config.build(compose_overrides(*words).data.transform, "data.transform")
    image, blank, inside = ramp(*size), np.zeros(size, np.uint8), np.ones(size, bool)
    found = []
    for k in range(COUNT):
        crop, mask, filled = transform(image, blank, inside, (0, k, 0))
        assert np.array_equal(mask == 255, ~filled)
        assert (crop[~filled] == transform.pad_colour).all(), "0 once normalised, whatever the brightness"
        found.append(place(crop, filled, size))
    return table(found)


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    aspects = [x["columns"] / x["rows"] for x in (ours, theirs)]
    scales = [np.sqrt(x["columns"] * x["rows"]) for x in (ours, theirs)]
    found = {"scale": alike(*scales), "aspect": alike(*aspects)}
    found |= {name: as_often(ours[name].round(), theirs[name].round()) for name in ("flip", "shift")}
    middle = np.median(scales[1])
    for name in ("top", "left", "above", "before"):
        for part, chosen in (
            ("small", [x < middle for x in scales]),
            ("large", [x >= middle for x in scales]),
        ):
            a, b = ours[name][chosen[0]], theirs[name][chosen[1]]
            if min(np.count_nonzero(~np.isnan(x)) for x in (a, b)) > 60:
                found[f"{name}, {part}"] = alike(a, b)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_all_is_distributed_as_in_openseg(
    size: tuple[int, int], theirs: dict[tuple[int, int], dict[str, Any]]
) -> None:
    found = compare(draw(size), theirs[size])
    print(size, {key: f"{p:.3f}" for key, p in found.items()})
    assert len(found) > 7
    assert min(found.values()) > 0.01, found


@pytest.mark.parametrize(
    ("wrong", "overrides"),
    [
        ("scale", "data.transform.scale=[0.5,1.7]"),
        ("above, small", "data.transform.pad=centre"),
        ("left, large", ""),
    ],
)
def test_what_is_drawn_otherwise_is_told(
    wrong: str,
    overrides: str,
    theirs: dict[tuple[int, int], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if wrong == "left, large":
        changed = mutant(TrainTransform._interval, "start =", "rng.integers(", "0.8 * rng.integers(")
        monkeypatch.setattr(TrainTransform, "_interval", changed)
    size = SIZES["above" in wrong]
    found = compare(draw(size, *overrides.split()), theirs[size])
    print(overrides, f"{found[wrong]:.1e}")
    assert found[wrong] < 1e-3
