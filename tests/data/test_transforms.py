"""The training transform keeps image and labels together, invents no label, and depends on its key alone."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from isaseg.data.transforms import Sample, TrainTransform
from isaseg.errors import ConfigError


def sample(height: int = 40, width: int = 56) -> Sample:
    """Return an image whose channels say the label, so that image and labels can be compared afterwards."""
    mask = np.random.default_rng(0).integers(0, 5, (height // 8, width // 8)).repeat(8, 0).repeat(8, 1)
    return np.repeat(mask[..., None] * 50, 3, axis=2).astype(np.uint8), mask.astype(np.uint8), mask == 3


def test_the_same_key_gives_the_same_sample_and_others_differ() -> None:
    transform, other = TrainTransform((24, 24)), TrainTransform((24, 24))
    first = transform(*sample(), (0, 1, 2))
    for key in ((0, 1, 3), (0, 2, 2), (1, 1, 2)):
        assert not np.array_equal(transform(*sample(), key)[0], first[0])
    for again in (transform(*sample(), (0, 1, 2)), other(*sample(), (0, 1, 2))):
        for a, b in zip(first, again, strict=True):
            assert np.array_equal(a, b)  # type: ignore[arg-type]


def test_no_global_random_state_is_used() -> None:
    states = (
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].copy(),
    )
    TrainTransform((24, 24), quarter_turns=True)(*sample(), (0, 0, 0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], states[2])


def test_labels_are_never_invented_and_have_the_size_of_the_crop() -> None:
    transform = TrainTransform((48, 48), (0.5, 2.0), ignore_index=255)
    seen = set()
    for k in range(60):
        image, mask, far = transform(*sample(), (0, k, 0))
        assert image.shape == (48, 48, 3)
        assert mask.shape == (48, 48)
        assert far is not None
        assert np.array_equal(far, mask == 3)
        seen |= set(np.unique(mask).tolist())
    assert seen == {0, 1, 2, 3, 4, 255}


def test_image_labels_and_region_go_through_one_geometry() -> None:
    transform = TrainTransform((24, 24), scale=None, flip=True, quarter_turns=True, photometric=False)
    results = set()
    for k in range(80):
        image, mask, far = transform(*sample(), (0, k, 0))
        assert np.array_equal(image[..., 0], mask * 50)
        assert far is not None
        assert np.array_equal(far, mask == 3)
        results.add(mask.tobytes())
    assert len(results) > 40


def test_flip_and_turns_give_all_eight_symmetries_and_nothing_else() -> None:
    transform = TrainTransform((40, 40), scale=None, flip=True, quarter_turns=True, photometric=False)
    image, mask, _ = sample(40, 40)
    allowed = {np.rot90(m, turns).tobytes() for m in (mask, mask[:, ::-1]) for turns in range(4)}
    assert {transform(image, mask, None, (0, k, 0))[1].tobytes() for k in range(100)} == allowed


def test_padding_is_grey_and_ignored() -> None:
    transform = TrainTransform((64, 64), scale=None, flip=False, photometric=False, ignore_index=7)
    image, mask, far = transform(*sample(), (0, 0, 0))
    assert (mask == 7).sum() == 64 * 64 - 40 * 56
    assert (image[mask == 7] == (124, 116, 104)).all()
    assert far is not None
    assert not far[mask == 7].any()


def test_a_mirror_swaps_paired_classes() -> None:
    transform = TrainTransform((40, 56), scale=None, flip=True, photometric=False)
    image, mask, _ = sample()
    swapped = np.array([0, 2, 1, 3, 4], np.uint8)[mask][:, ::-1]
    results = [transform(image, mask, None, (0, k, 0), flip_pairs=((1, 2),))[1] for k in range(20)]
    assert any(np.array_equal(r, swapped) for r in results)
    assert all(np.array_equal(r, swapped) or np.array_equal(r, mask) for r in results)


def test_scale_and_place_of_the_crop_are_independent() -> None:
    """One seed for all steps of a Compose would tie the crop's corner to the scale."""
    transform = TrainTransform((16, 16), scale=(0.5, 2.0), flip=False, photometric=False)
    y, x = np.mgrid[:200, :200]
    image = np.stack([y, x, 0 * x], axis=2).astype(np.uint8)
    corners, scales = [], []
    for k in range(150):
        out = transform(image, np.zeros((200, 200), np.uint8), None, (0, k, 0))[0].astype(float)
        extent = out[-1, 0, 0] - out[0, 0, 0]
        scales.append(15 / extent)
        corners.append(out[0, 0, 0] / (200 - extent))
    assert abs(np.corrcoef(corners, np.log(scales))[0, 1]) < 0.3
    assert min(scales) < 0.7
    assert max(scales) > 1.5


def test_photometric_changes_colours_within_their_ranges() -> None:
    transform = TrainTransform((40, 56), scale=None, flip=False, photometric=True)
    image, mask, _ = sample()
    image = np.full_like(image, (100, 120, 140))
    colours = np.array([transform(image, mask, None, (0, k, 0))[0][0, 0] for k in range(200)])
    assert len(np.unique(colours, axis=0)) > 80
    assert (colours == (100, 120, 140)).all(axis=1).mean() == pytest.approx(1 / 16, abs=0.05)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="transform.scale"):
        TrainTransform((8, 8), scale=(0.0, 2.0))
    with pytest.raises(ConfigError, match="square data.crop_size"):
        TrainTransform((8, 16), quarter_turns=True)


def test_importing_opens_no_connection() -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): sys.exit('a connection was opened')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import isaseg.data.transforms"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
