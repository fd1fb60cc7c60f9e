"""Reach is measured on the code: known fields of view and supports, and a bound counted by hand."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from isaseg.models import attention, context, criss_cross
from isaseg.models.backbone import Backbone
from isaseg.models.block import conv_norm_act
from isaseg.report import reach
from isaseg.report.reach import Bound, FieldOfView

ISA = attention.InterlacedSparseAttention


def scenes(*masks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Given masks, with the right half as the far region."""
    return [(mask, np.indices(mask.shape)[1] >= mask.shape[1] // 2) for mask in masks]


def test_the_embedded_network_sees_39_pixels() -> None:
    fov = reach.field_of_view([Backbone("test_resnet", out_indices=[1]), conv_norm_act(32, 64, 3)])
    assert fov == FieldOfView((39, 39), (-19, -19), 4)


def test_field_of_view_counts_kernels_dilation_pooling_and_an_offset() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    assert reach.field_of_view([plain]) == FieldOfView((7, 7), (-3, -3), 1)
    pooled = nn.Sequential(nn.Conv2d(3, 4, (1, 5), padding=(0, 2)), nn.BatchNorm2d(4), nn.MaxPool2d(2))
    assert reach.field_of_view([pooled]) == FieldOfView((2, 6), (0, -2), 2)


def test_a_network_that_sees_everything_is_refused() -> None:
    everywhere = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Upsample(size=4))
    with pytest.raises(ValueError, match="at most 1024 pixels"):
        reach.field_of_view([everywhere])


def test_the_measured_module_is_left_as_it_was() -> None:
    module = criss_cross.CrissCrossAttention(8).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    reach.attention_support(module, 3, 4)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def lattice(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return (p[0] - q[0]) % 2 == 0 and (p[1] - q[1]) % 4 == 0


def window(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return p[0] // 2 == q[0] // 2 and p[1] // 4 == q[1] // 4


def cross(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return p[0] == q[0] or p[1] == q[1]


@pytest.mark.parametrize(
    ("make", "hears"),
    [
        (context.NoContext, lambda p, q: p == q),
        (attention.SelfAttention2d, lambda p, q: True),
        (context.PyramidPooling, lambda p, q: True),
        (functools.partial(ISA, group_size=(2, 4), order="long"), lattice),
        (functools.partial(ISA, group_size=(2, 4), order="short"), window),
        (functools.partial(ISA, group_size=(2, 4)), lambda p, q: True),
        (functools.partial(criss_cross.PlainCrissCross, passes=1), cross),
        (functools.partial(criss_cross.PlainCrissCross, passes=2), lambda p, q: True),
        (functools.partial(criss_cross.CrissCrossAttention, recurrence=1), cross),
        (functools.partial(criss_cross.CrissCrossAttention, recurrence=2), lambda p, q: True),
    ],
)
def test_support_is_the_pattern_of_the_module(make, hears) -> None:  # type: ignore[no-untyped-def]
    height, width = 6, 8
    cells = [(i, j) for i in range(height) for j in range(width)]
    expected = torch.tensor([[hears(p, q) for q in cells] for p in cells])
    assert torch.equal(reach.attention_support(make(4), height, width), expected)


def test_cells_see_the_cue_in_their_window_clipped_at_the_border() -> None:
    cue = torch.zeros(8, 12, dtype=torch.bool)
    cue[0, 11] = True
    # cell columns 0, 4, 8 see pixels -2..2, 2..6, 6..10; with one pixel more the last reaches the cue
    assert not reach.cells_that_see(cue, FieldOfView((5, 5), (-2, -2), 4)).any()
    seen = reach.cells_that_see(cue, FieldOfView((6, 6), (-2, -2), 4))
    assert seen.nonzero().tolist() == [[0, 2]]


def scene() -> np.ndarray:
    """Stride 4, one row of four cells: lamp in cell 0, object of class 1 in the columns of cells 1 to 3."""
    mask = np.zeros((4, 16), np.uint8)
    mask[:, 0], mask[:, 4:], mask[:, 15] = reach.LAMP, 1, 255
    return mask


def test_the_bound_counts_what_can_be_decided() -> None:
    fov = FieldOfView((4, 4), (0, 0), 4)  # a cell sees its own block alone
    alone = reach.group_accuracy_bound(torch.eye(4, dtype=torch.bool), fov, scenes(scene()))
    # up-sampling mixes cell 0 into columns up to 5; of the columns 4 to 14 so two are decidable
    assert alone.group_acc == pytest.approx((2 + 9 / 3) / 11)
    assert alone.group_acc_far == pytest.approx(1 / 3)
    nobody_but_itself = torch.zeros(
        4, 4, dtype=torch.bool
    )  # the head still concatenates the cell's own feature
    assert reach.group_accuracy_bound(nobody_but_itself, fov, scenes(scene())) == alone
    everyone = reach.group_accuracy_bound(torch.ones(4, 4, dtype=torch.bool), fov, scenes(scene()))
    assert everyone == Bound(1.0, 1.0)


def test_the_bound_averages_over_the_pixels_of_all_scenes() -> None:
    fov = FieldOfView((4, 4), (0, 0), 4)
    dark = np.where(scene() == reach.LAMP, 0, scene()).astype(np.uint8)
    eye = torch.eye(4, dtype=torch.bool)
    both = reach.group_accuracy_bound(eye, fov, scenes(scene(), dark))
    assert both.group_acc == pytest.approx((2 + 9 / 3 + 11 / 3) / 22)


def test_lamps_bounds_are_in_the_order_of_reach() -> None:
    from isaseg.data.sets.lamps import Lamps

    fov = FieldOfView((39, 39), (-19, -19), 4)
    source = Lamps("val")
    lamps = [source.load(i)[1:3] for i in range(40)]
    rows, cols = (torch.arange(1024) // 32, torch.arange(1024) % 32)
    crossing = (rows[:, None] == rows) | (cols[:, None] == cols)
    none, one_pass, dense = (
        reach.group_accuracy_bound(support, fov, lamps)
        for support in (torch.eye(1024, dtype=torch.bool), crossing, torch.ones(1024, 1024, dtype=torch.bool))
    )
    assert none.group_acc < 0.5 < one_pass.group_acc < 0.9
    assert none.group_acc_far == pytest.approx(1 / 3, abs=0.01), "far is beyond the field of view"
    assert dense == Bound(1.0, 1.0)
