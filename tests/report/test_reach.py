"""Reach is measured on the code: known fields of view and supports, and a bound counted by hand."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from isaseg import config
from isaseg.data.sets.cards import Cards
from isaseg.models import baselines, criss_cross, interlaced
from isaseg.models.backbone import Backbone
from isaseg.models.layers import conv_norm_act
from isaseg.report import reach
from isaseg.report.reach import Bound, attention_support
from tests.conftest import compose_overrides
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
    reach.attention_support(module, 8, 3, 4)
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
    assert torch.equal(reach.attention_support(make(4), 4, 6, 8), allowed((6, 8), hears))


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
    return reach.group_accuracy_bound(
        support, reach.Scenes(stacked, far, seen[:, None], torch.zeros_like(stacked))
    )


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


def test_on_cards_an_object_needs_the_card_of_its_own_hue() -> None:
    """Cards of hues 1 and 2 in cells 0 and 3; an object of each beside the other's card."""
    mask = torch.zeros(1, 4, 16, dtype=torch.uint8)
    mask[..., 0], mask[..., 15], mask[..., 4:6], mask[..., 10:12] = 7, 7, 1, 1
    cue = torch.zeros_like(mask)
    cue[..., 0], cue[..., 15], cue[..., 4:6], cue[..., 10:12] = 1, 2, 2, 1
    seen = torch.zeros(1, 3, 1, 4, dtype=torch.bool)
    seen[0, 1, 0, 0] = seen[0, 2, 0, 3] = True
    scenes = reach.Scenes(mask, mask == 1, seen, cue)
    near = torch.eye(4, dtype=torch.bool)
    near[1, 0] = near[2, 3] = True  # the cell next to a card hears from it: of the other hue
    assert reach.group_accuracy_bound(near, scenes) == pytest.approx((1 / 3, 1 / 3))
    swapped = scenes._replace(cue=torch.tensor([0, 2, 1], dtype=torch.uint8)[cue.long()])
    assert reach.group_accuracy_bound(near, swapped) == (1.0, 1.0)
    assert reach.group_accuracy_bound(torch.ones(4, 4, dtype=torch.bool), scenes) == (1.0, 1.0)


def test_the_cues_of_cards_join_the_objects_of_a_hue_with_its_card() -> None:
    source = Cards("val", val_length=8)
    for index in range(len(source)):
        image, mask, _ = source.load(index)
        cue = source.cues(index)
        inside = (mask > 0) & (mask != source.ignore_index)
        assert ((cue > 0) == (mask > 0))[mask != source.ignore_index].all()
        for k in np.unique(cue[inside]):
            objects = inside & (cue == k) & (mask < 7)
            assert (inside & (cue == k) & (mask == 7)).any(), "each cue has its card"
            assert len({(c - 1) // 2 for c in mask[objects]}) <= 1, "and one frame decides all its objects"


def test_the_rows_of_every_sweep_can_be_measured() -> None:
    for path in (config.conf_dir() / "sweep").glob("*.yaml"):
        swept = OmegaConf.load(path).hydra.sweeper
        rows = [*swept.get("rows", []), *(f"attention={name}" for name in _modules(swept))]
        for row in rows:
            cfg = compose_overrides(*(word for word in row.split() if word.startswith("attention")))
            assert attention_support(*reach._module(cfg), 4, 4).any(1).sum() in (0, 16), row


@pytest.mark.parametrize(
    "words",
    ["attention=isa_parallel", "attention=isa attention.heads=16", "attention=cgnl attention.groups=16"],
)
def test_a_module_that_is_wide_at_either_end_can_be_measured(words: str) -> None:
    cfg = compose_overrides(*words.split())
    assert attention_support(*reach._module(cfg), 2, 3).all(), "each hears from all"


def _modules(swept: DictConfig) -> list[str]:
    return [name for name in swept.get("params", {}).get("attention", "").split(",") if name]
