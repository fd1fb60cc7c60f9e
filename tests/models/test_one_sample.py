"""One sample a forward pass: which context modules can be trained with it, and what the others are answered."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isaseg.errors import ConfigError
from isaseg.models.contract import check_one_sample
from isaseg.models.segmenter import Segmenter
from tests.models.test_devices import ATTENTIONS, network

REFUSED = {
    "pyramid_pooling": "branches.0.1, a batch norm of PyramidPooling",
    "aspp": "pool.1, a batch norm of ASPP",
}


class Mean(nn.Module):
    """A user's own module, with a norm of the mean of the map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(x.mean((2, 3), keepdim=True))


class NotOnMeta(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean().item()


def trains(segmenter: Segmenter) -> bool:
    """Return whether a forward pass of one sample works; only torch's refusal counts as a failure."""
    try:
        segmenter.coarse_with_aux(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    except ValueError as error:
        assert "more than 1 value per channel" in str(error)
        return False
    return True


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_w4_what_cannot_be_trained_with_one_sample_is_refused_before(attention: str) -> None:
    segmenter = network(attention).train()
    before, state = copy.deepcopy(segmenter.state_dict()), torch.get_rng_state()
    if attention in REFUSED:
        wanted = (
            rf"got one: head.attention.{REFUSED[attention]}, .*data.batch_size.*sync_batch.*another attention"
        )
        with pytest.raises(ConfigError, match=wanted):
            check_one_sample(segmenter, 64, 96)
    else:
        check_one_sample(segmenter, 64, 96)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())
    assert not any(part._forward_pre_hooks for part in segmenter.modules())
    assert trains(segmenter) == (attention not in REFUSED)


@pytest.mark.parametrize(
    ("module", "works"),
    [(Mean(nn.BatchNorm2d(16)), False), (Mean(nn.GroupNorm(2, 16)), True), (NotOnMeta(), True)],
)
def test_a_module_of_ones_own_is_tried_too(module: Any, works: bool) -> None:
    segmenter = network("none").train()
    segmenter.head.attention = module
    if not works:
        with pytest.raises(
            ConfigError, match=r"head.attention.norm, a batch norm of Mean, .*another attention"
        ):
            check_one_sample(segmenter, 64, 96)
    else:
        check_one_sample(segmenter, 64, 96)
    assert trains(segmenter) is works


def test_a_backbone_whose_map_is_one_position_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"got one: backbone\..*, a batch norm of Backbone, .*another backbone"
    ):
        check_one_sample(network("none"), 1, 1)
