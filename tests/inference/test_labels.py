"""Labels from coarse logits, against resizing all the logits and taking the argmax."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from isaseg.inference import labels as module
from isaseg.inference.labels import labels_from_coarse, largest, resize


def smooth(classes: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return logits of regions with borders and a little noise, as a trained network's are."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(1, classes, height // 12 + 2, width // 12 + 2, generator=generator) * 4
    x = F.interpolate(regions, size=(height, width), mode="bicubic")
    return x + 0.3 * torch.randn(1, classes, height, width, generator=generator)


def check(coarse: Tensor, sizes: list[tuple[int, int]], align_corners: bool) -> None:
    full = resize(coarse, sizes, align_corners)
    labels = labels_from_coarse(coarse, sizes, align_corners)
    assert labels.dtype == torch.uint8
    assert labels.shape == (len(coarse), *sizes[-1])
    chosen = full.gather(1, labels[:, None].long())[:, 0]
    best = full.amax(1)
    # where another class was chosen, the two are equal but for rounding
    assert (best - chosen).max() <= 3e-6 * full.abs().max()
    assert (chosen == best).float().mean() > 0.999


@settings(max_examples=60, deadline=None)
@given(
    classes=st.sampled_from([1, 2, 3, 19, 60, 150, 256]),
    coarse=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    factors=st.lists(st.tuples(st.floats(0.3, 9), st.floats(0.3, 9)), min_size=1, max_size=2),
    align_corners=st.booleans(),
    noise=st.booleans(),
    seed=st.integers(0, 100),
)
def test_any_shape(
    classes: int,
    coarse: tuple[int, int],
    factors: list[tuple[float, float]],
    align_corners: bool,
    noise: bool,
    seed: int,
) -> None:
    sizes, size = [], coarse
    for down, along in factors:
        size = (max(1, int(size[0] * down)), max(1, int(size[1] * along)))
        sizes.append(size)
    torch.manual_seed(seed)
    x = torch.randn(1, classes, *coarse) if noise else smooth(classes, *coarse, seed)
    check(x, sizes, align_corners)


@pytest.mark.parametrize("kind", ["smooth", "noise", "even"])
@pytest.mark.parametrize(
    ("classes", "coarse", "sizes", "align_corners"),
    [(19, (64, 128), [(512, 1024)], False), (150, (33, 44), [(260, 347), (240, 320)], True)],
    ids=["cityscapes", "ade20k"],
)
def test_published_sizes(
    classes: int, coarse: tuple[int, int], sizes: list[tuple[int, int]], kind: str, align_corners: bool
) -> None:
    """(Of half their height and width.)"""
    torch.manual_seed(0)
    made = {"smooth": smooth(classes, *coarse), "noise": torch.randn(1, classes, *coarse)}
    check(made.get(kind, torch.randn(classes, 1, 1).expand(1, classes, *coarse)), sizes, align_corners)


@pytest.mark.parametrize("strip", [1, 5000])
def test_labels_do_not_depend_on_the_strips(strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRIP", strip)
    for classes in (19, 60):
        check(smooth(classes, 30, 40), [(240, 320)], False)
        check(torch.randn(2, classes, 9, 11), [(70, 99), (51, 120)], True)


def test_a_tenth_of_the_full_logits_is_never_held() -> None:
    x = torch.randn(1, 150, 64, 86)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as memory:
        labels_from_coarse(x, [(512, 683)], False)
    events = sorted(memory.events() or [], key=lambda event: event.time_range.end)
    peak = max(accumulate(event.self_cpu_memory_usage for event in events))
    assert 0 < peak < 4 * 150 * 512 * 683 / 10


def test_of_equal_classes_the_first_wins() -> None:
    x = torch.zeros(1, 5, 4, 6)
    x[:, 2:] = 1.0
    assert labels_from_coarse(x, [(32, 48)], False).unique().tolist() == [2]


def test_half_precision_is_interpolated_in_full() -> None:
    x = smooth(19, 16, 16).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = labels_from_coarse(x, [(128, 128)], False)
    assert torch.equal(got, labels_from_coarse(x.float(), [(128, 128)], False))


@pytest.mark.parametrize("classes", [1, 7, 80])
def test_largest(classes: int) -> None:
    x = torch.randn(classes, 13, 17)
    assert torch.equal(largest(x.clone()).long(), x.argmax(0))
