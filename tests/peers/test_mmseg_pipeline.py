"""Our training transform beside mmsegmentation's pipelines, where it is installed (`make peers`): draws and padding.

The same pictures go through both, 2000 times; `tests.draws` reads off what was drawn. Two-sample tests must not tell them
apart, and must tell each of some wrong transforms.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isaseg import config
from isaseg.data import colour_jitter, transforms
from isaseg.data.transforms import TrainTransform
from tests.conftest import compose_overrides
from tests.draws import colours, palette, place, ramp, stripes, table
from tests.peers.peer import PEER, run_peer
from tests.two_samples import alike, as_often, mutant

needed = pytest.mark.skipif(not PEER.exists(), reason="mmsegmentation is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]

COUNT = 2000
CONFIGS = {
    "cityscapes": "isanet/isanet_r101-d8_4xb2-80k_cityscapes-512x1024.py",
    "ade20k": "isanet/isanet_r101-d8_4xb4-160k_ade20k-512x512.py",
    "pascal_voc": "isanet/isanet_r101-d8_4xb4-40k_voc12aug-512x512.py",
}
# Of Cityscapes and of ADE20K, and one whose size its long side decides: 2048 of {short_side: 512, long_side: 2048}
PLACES = {
    "cityscapes_1024x2048": ("cityscapes", (1024, 2048)),
    "ade20k_512x683": ("ade20k", (512, 683)),
    "ade20k_300x1500": ("ade20k", (300, 1500)),
}
PADDED = ["pascal_voc", "ade20k"]


def small_picture() -> tuple[np.ndarray, np.ndarray]:
    """Return a picture of half of the short side that the configurations give, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, (32, 42)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    labels[labels == 7] = 255
    return rng.integers(0, 256, (256, 336, 3), np.uint8), labels


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all that mmseg made."""
    folder = tmp_path_factory.mktemp("peer")
    image, mask = small_picture()
    np.savez(folder / "picture.npz", image=image, mask=mask)
    common = {"count": COUNT, "seed": 3}
    places = [
        {"name": name, "config": CONFIGS[data], "size": size, **common}
        for name, (data, size) in PLACES.items()
    ]
    padding = [
        {"name": data, "config": CONFIGS[data], "picture": str(folder / "picture.npz")} for data in PADDED
    ]
    palettes = [{"name": "colours", "config": CONFIGS["ade20k"], **common}]
    task = {"output": str(folder), "places": places, "colours": palettes, "padding": padding}
    run_peer("mmseg_pipeline.py", task, folder)
    return folder


def transform_of(data: str, *overrides: str, keep: str) -> TrainTransform:
    """Return the transform of protocol=mmseg, of whose changes those stay whose name has `keep` in it."""
    cfg = compose_overrides(f"data={data}", "protocol=mmseg", *overrides)
    nodes = cfg.data.transform.augment
    cfg.data.transform.augment = [node for node in nodes if keep in node._target_]
    built: TrainTransform = config.build(cfg.data.transform, "data.transform")
    return built


def draw_places(transform: TrainTransform, size: tuple[int, int]) -> dict[str, Any]:
    image, mask, inside = ramp(*size), stripes(*size), np.ones(size, bool)
    found = []
    for k in range(COUNT):
        crop, _, filled = transform(image, mask, inside, (0, k, 0))
        assert filled is not None
        found.append(place(crop, filled, size))
    return table(found)


def draw_colours() -> dict[str, Any]:
    image = palette()
    size = f"data.crop_size=[{image.shape[0]},{image.shape[1]}]"
    fixed = ["data.transform.scale=null", "data.transform.resize=null", size]
    transform = transform_of("ade20k", *fixed, keep="PhotometricDistortion")
    blank = np.zeros(image.shape[:2], np.uint8)
    return table([colours(transform(image, blank, None, (0, k, 0))[0]) for k in range(COUNT)])


def compare_places(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    found = {name: alike(ours[name], theirs[name]) for name in ("rows", "columns")}
    found["flip"] = as_often(ours["flip"], theirs["flip"])
    middle = np.median(theirs["columns"])
    for name in ("top", "left"):
        found[name] = alike(ours[name], theirs[name])
        for half, is_in in (
            ("small", lambda x: x["columns"] < middle),
            ("large", lambda x: x["columns"] >= middle),
        ):
            a, b = ours[name][is_in(ours)], theirs[name][is_in(theirs)]
            if min(np.count_nonzero(~np.isnan(x)) for x in (a, b)) > 60:
                found[f"{name}, {half}"] = alike(a, b)
    return found


def compare_colours(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, unchanged in (("shift", 0), ("contrast", 1), ("saturation", 1), ("hue", 0)):
        applied = [x[name] != unchanged for x in (ours, theirs)]
        found[name] = alike(ours[name][applied[0]], theirs[name][applied[1]])
        found[f"{name}, how often"] = as_often(*applied)
    decided = [x["first"][~np.isnan(x["first"])] for x in (ours, theirs)]
    return found | {"order": as_often(decided[0], decided[1])}


@pytest.mark.parametrize("name", PLACES)
def test_scale_place_and_flip_are_distributed_as_in_mmseg(name: str, peer: Path) -> None:
    data, size = PLACES[name]
    ours, theirs = draw_places(transform_of(data, keep="Flip"), size), np.load(peer / f"{name}.npz")
    found = compare_places(ours, dict(theirs))
    print(name, {key: f"{p:.3f}" for key, p in found.items()})
    assert min(found.values()) > 0.01, found
    for padding in ("above", "before"):
        assert not (ours[padding] > 0).any() and not (theirs[padding] > 0).any()
        assert np.mean(np.isnan(ours[padding])) == pytest.approx(np.mean(np.isnan(theirs[padding])), abs=0.04)


def test_colours_are_distributed_as_in_mmseg(peer: Path) -> None:
    found = compare_colours(draw_colours(), dict(np.load(peer / "colours.npz")))
    print({key: f"{p:.3f}" for key, p in found.items()})
    assert min(found.values()) > 0.01, found


@pytest.mark.parametrize(
    ("wrong", "change"),
    [
        ("rows", ["data.transform.scale=[0.5,1.9]"]),
        ("rows", ["data.transform.resize={short_side: 560, long_side: 2048}"]),
        ("left", ["data.transform.cat_max_ratio=1.0"]),
        ("left", ["data.transform.cat_max_ratio=0.85"]),
        ("flip", ["data.transform.augment=[{_target_: isaseg.data.transforms.HorizontalFlip, p: 0.4}]"]),
        ("top", ("start =", "rng.integers(", "0.9 * rng.integers(")),
    ],
)
def test_a_wrong_place_is_told(
    wrong: str, change: list[str] | tuple[str, str, str], peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(change, tuple):
        monkeypatch.setattr(TrainTransform, "_interval", mutant(TrainTransform._interval, *change))
    overrides = change if isinstance(change, list) else []
    name = "ade20k_512x683"
    data, size = PLACES[name]
    ours = draw_places(transform_of(data, *overrides, keep="Flip"), size)
    found = compare_places(ours, dict(np.load(peer / f"{name}.npz")))
    print(change, f"{found[wrong]:.1e}")
    assert found[wrong] < 1e-3


@pytest.mark.parametrize(
    ("wrong", "line", "before", "after"),
    [
        ("shift", "shift =", "(-32, 32)", "(-26, 26)"),
        ("contrast", "contrast =", "(0.5, 1.5)", "(0.5, 1.3)"),
        ("saturation", "saturation =", "(0.5, 1.5)", "(0.6, 1.4)"),
        ("hue", "turn =", "(-18, 18)", "(-14, 14)"),
        ("shift, how often", "shift =", "< 0.5", "< 0.4"),
        ("contrast, how often", "contrast =", "< 0.5", "< 0.4"),
        ("saturation, how often", "saturation =", "< 0.5", "< 0.4"),
        ("hue, how often", "turn =", "< 0.5", "< 0.4"),
        ("order", "contrast_first =", "< 0.5", "< 0.2"),
    ],
)
def test_wrong_colours_are_told(
    wrong: str, line: str, before: str, after: str, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "photometric", mutant(colour_jitter.photometric, line, before, after))
    found = compare_colours(draw_colours(), dict(np.load(peer / "colours.npz")))
    print(line, after, f"{found[wrong]:.1e}")
    assert found[wrong] < 1e-3


@pytest.mark.parametrize("data", PADDED)
def test_a_small_picture_is_padded_as_in_mmseg(data: str, peer: Path) -> None:
    """VOC: black, before normalisation, as there. ADE20K: there 0 after it, here the nearest colour of 8 bits."""
    image, mask = small_picture()
    transform = transform_of(data, "data.transform.scale=[0.5,0.5]", keep="nothing")
    ours, labels, _ = transform(image, mask, None, (0, 0, 0))
    theirs = np.load(peer / f"{data}.npz")
    assert np.array_equal(labels, theirs["mask"])
    inside = np.zeros(labels.shape, bool)
    inside[: mask.shape[0], : mask.shape[1]] = True
    assert (labels[~inside] == 255).all()
    error = np.abs(ours.astype(float) - theirs["image"])
    assert error[inside].max() < 1e-3
    assert error[~inside].max() < (1e-3 if data == "pascal_voc" else 0.5)
