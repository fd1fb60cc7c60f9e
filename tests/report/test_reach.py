"""Reach is measured on the code: known fields of view and supports, and a bound counted by hand."""

import functools
import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from isaseg.models import baselines, criss_cross, interlaced
from isaseg.models.backbone import Backbone
from isaseg.models.layers import conv_norm_act
from isaseg.report import reach
from isaseg.report.reach import Bound
from tests.models.references import allowed, cross, everything, lattice, window

ISA = interlaced.InterlacedSparseAttention


def seen(stages: Sequence[nn.Module], row: int, column: int, height: int, width: int) -> list[list[int]]:
    """The cells that see a cue in one pixel."""
    cues = torch.zeros(1, height, width, dtype=torch.bool)
    cues[0, row, column] = True
    return reach.cells_that_see(stages, cues)[0].nonzero().tolist()


def test_a_feature_of_the_embedded_network_sees_39_pixels_and_no_more() -> None:
    stages = [Backbone("test_resnet", out_indices=[1]), conv_norm_act(32, 64, 3)]
    for row, column in ((0, 127), (61, 64), (3, 2)):
        near = [[cell for cell in range(32) if abs(4 * cell - place) <= 19] for place in (row, column)]
        assert seen(stages, row, column, 128, 128) == [list(cell) for cell in itertools.product(*near)]


def test_the_field_of_view_counts_kernels_dilation_and_pooling() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    cells = seen([plain], 8, 0, 16, 16)  # 7 x 7 pixels, clipped at the border
    assert cells == [[i, j] for i in range(5, 12) for j in range(4)]
    wide, pool = nn.Conv2d(3, 4, (1, 5), padding=(0, 2)), nn.MaxPool2d(2)
    assert seen([wide, nn.BatchNorm2d(4), pool], 5, 8, 16, 16) == [[2, 3], [2, 4], [2, 5]]


def test_a_network_that_sees_everything_leaves_nothing_unseen() -> None:
    everywhere = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Upsample(size=4))
    assert len(seen([everywhere], 0, 0, 16, 16)) == 16


def test_the_measured_module_is_left_as_it_was() -> None:
    module = criss_cross.CrissCrossAttention(8).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    reach.attention_support(module, 3, 4)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("make", "hears"),
    [
        (baselines.NoContext, lambda p, q: p == q),
        (baselines.SelfAttention2d, everything),
        (baselines.PyramidPooling, everything),
        (functools.partial(ISA, group_size=(2, 4), order="long"), lattice((2, 4))),
        (functools.partial(ISA, group_size=(2, 4), order="short"), window((2, 4))),
        (functools.partial(ISA, group_size=(2, 4)), everything),
        (functools.partial(criss_cross.PlainCrissCross, passes=1), cross),
        (functools.partial(criss_cross.PlainCrissCross, passes=2), everything),
        (functools.partial(criss_cross.CrissCrossAttention, recurrence=1), cross),
        (functools.partial(criss_cross.CrissCrossAttention, recurrence=2), everything),
    ],
)
def test_support_is_the_pattern_of_the_module(make, hears) -> None:  # type: ignore[no-untyped-def]
    assert torch.equal(reach.attention_support(make(4), 6, 8), allowed((6, 8), hears))


def scene() -> Tensor:
    """One row of four cells of 4 x 4 pixels: lamp in cell 0, object of class 1 in the columns of cells 1 to 3."""
    mask = torch.zeros(4, 16, dtype=torch.uint8)
    mask[:, 0], mask[:, 4:], mask[:, 15] = reach.LAMP, 1, 255
    return mask


def bound(support: Tensor, *masks: Tensor) -> Bound:
    """The bound if a cell sees its own block alone; the right half is far."""
    stacked = torch.stack(masks)
    far = (torch.arange(16) >= 8).expand(stacked.shape)
    seen = (stacked == reach.LAMP).unflatten(2, (4, 4)).any(3).any(1, keepdim=True)
    return reach.group_accuracy_bound(support, seen, stacked, far)


def test_the_bound_counts_what_can_be_decided() -> None:
    alone = bound(torch.eye(4, dtype=torch.bool), scene())
    # upsampling mixes cell 0 into columns up to 5, so two of the columns 4 to 14 can be decided
    assert alone.group_acc == pytest.approx((2 + 9 / 3) / 11)
    assert alone.group_acc_far == pytest.approx(1 / 3)
    nobody = torch.zeros(4, 4, dtype=torch.bool)  # the head still concatenates the cell's own feature
    assert bound(nobody, scene()) == alone
    assert bound(torch.ones(4, 4, dtype=torch.bool), scene()) == Bound(1.0, 1.0)


def test_the_bound_averages_over_the_pixels_of_all_scenes() -> None:
    dark = torch.where(scene() == reach.LAMP, 0, scene())
    both = bound(torch.eye(4, dtype=torch.bool), scene(), dark)
    assert both.group_acc == pytest.approx((2 + 9 / 3 + 11 / 3) / 22)
