"""The whole network: sizes, which map feeds which head, resizing, keys."""

from functools import partial
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.backbone import Backbone
from isaseg.models.head import AuxHead, ContextHead
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import Segmenter, build_segmenter

ISA = partial(InterlacedSparseAttention, group_size=(2, 2))


def make(aux_channels: int | None = 4) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(Backbone("test_resnet", output_stride=8), 5, ISA, 8, 0.1, aux_channels)


def image(height: int = 41, width: int = 50) -> Tensor:
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)


class Constant(nn.Module):
    """A head or a backbone that gives what it was told to, whatever it sees."""

    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.values)


@pytest.mark.parametrize("size", [(41, 50), (32, 64), (17, 9)])
def test_logits_have_the_size_of_the_image(size: tuple[int, int]) -> None:
    segmenter = make()
    assert segmenter(image(*size)).shape == (2, 5, *size)
    logits, aux_logits = segmenter.coarse_with_aux(image(*size))
    assert aux_logits is not None
    assert logits.shape[:2] == aux_logits.shape[:2] == (2, 5)
    assert max(logits.shape[2:]) < max(size)


@torch.no_grad()
def test_w3_every_way_in_refuses_a_normalised_image_but_the_one_that_says_so() -> None:
    """Also with a backbone of a user's own, which may not look."""
    x, own = torch.rand(1, 3, 64, 64), cast(Backbone, Constant(torch.rand(1, 96, 8, 8)))
    segmenter = make().eval()
    for network in (segmenter, segmenter.fuse(), Segmenter(own, segmenter.head)):
        for take in (network, network.coarse, network.coarse_with_aux):
            with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\).*got torch.float32 \(1, 3, 64, 64\)"):
                take(x)
    x = image()
    assert torch.equal(
        segmenter.coarse(segmenter.backbone.normalise(x), normalised=True), segmenter.coarse(x)
    )


@torch.no_grad()
def test_the_auxiliary_head_changes_no_prediction() -> None:
    x = image()
    both, alone = make().eval(), make(aux_channels=None).eval()
    assert torch.equal(both(x), both._resize(both.coarse_with_aux(x)[0], x.shape[-2:]))
    alone.load_state_dict({k: v for k, v in both.state_dict().items() if not k.startswith("aux_head.")})
    assert torch.equal(both(x), alone(x))
    assert alone.coarse_with_aux(x)[1] is None


def test_the_last_map_feeds_the_head_and_the_one_before_it_the_auxiliary_head() -> None:
    maps = [torch.full((1, 1, 2, 2), float(i)) for i in range(3)]
    parts = (Constant(*maps), nn.Identity(), nn.Identity())
    segmenter = Segmenter(cast(Backbone, parts[0]), cast(ContextHead, parts[1]), cast(AuxHead, parts[2]))
    logits, aux_logits = segmenter.coarse_with_aux(image(4, 6))
    assert (logits == 2).all()
    assert aux_logits is not None
    assert (aux_logits == 1).all()
    assert (segmenter(image(4, 6)) == 2).all()


@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_is_bilinear(align_corners: bool) -> None:
    grid = torch.randn(1, 2, 3, 4)
    parts = (Constant(grid), nn.Identity())
    backbone, head = cast(Backbone, parts[0]), cast(ContextHead, parts[1])
    segmenter = Segmenter(backbone, head, align_corners=align_corners)
    assert torch.equal(segmenter.coarse(image(9, 10)), grid)
    logits = segmenter(image(9, 10))
    want = F.interpolate(grid, size=(9, 10), mode="bilinear", align_corners=align_corners)
    assert torch.equal(logits, want)


@torch.no_grad()
def test_weights_in_channels_last_memory_are_the_same() -> None:
    """The same parameters, values and logits; a copy for inference has them so, and loads what a planar network saves."""
    segmenter, x = make().eval(), image()
    parameters, state = dict(segmenter.named_parameters()), segmenter.fuse().state_dict()
    want = segmenter(x)
    assert segmenter.channels_last() is segmenter
    for network in (segmenter, segmenter.fuse()):
        kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[2] > 1]
        assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert all(parameter is parameters[name] for name, parameter in segmenter.named_parameters())
    torch.testing.assert_close(segmenter(x), want, rtol=1e-5, atol=1e-6)  # other CPUs may round otherwise
    other = make().fuse()
    other.load_state_dict({key: value.contiguous() for key, value in state.items()})
    assert torch.equal(other(x), segmenter.fuse()(x))


def test_both_losses_reach_their_parameters() -> None:
    segmenter = make().train()
    logits, aux_logits = segmenter.coarse_with_aux(image())
    assert aux_logits is not None
    (logits.square().sum() + aux_logits.square().sum()).backward()
    grads = {name: p.grad for name, p in segmenter.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None] == []
    # timm starts residual branches at zero, so that of the backbone only the trunk is sure to hear at first
    sure = [name for name in grads if not name.startswith("backbone.model.layer")]
    assert "backbone.model.conv1.0.weight" in sure
    assert [name for name in sure if not cast(Tensor, grads[name]).any()] == []


def test_widths_follow_from_the_backbone() -> None:
    """And by default, corners are not aligned."""
    segmenter = make()
    assert segmenter.aux_head is not None and not segmenter.align_corners
    assert {key.split(".")[0] for key in segmenter.state_dict()} == {"backbone", "head", "aux_head"}
    assert cast(Tensor, segmenter.head.reduce[0].weight).shape == (8, 96, 3, 3)
    assert cast(Tensor, segmenter.aux_head.reduce[0].weight).shape == (4, 192, 3, 3)


def test_an_auxiliary_head_needs_a_second_map() -> None:
    backbone = Backbone("test_resnet", out_indices=[1])
    assert build_segmenter(backbone, 3, ISA, 8, aux_channels=None).aux_head is None
    with pytest.raises(ValueError, match=r"two maps.*got backbone.channels=\[32\].*head.aux_channels=null"):
        build_segmenter(backbone, 3, ISA, 8)


def test_a_negative_slope_is_that_of_both_heads_and_of_no_backbone() -> None:
    backbone = Backbone("test_resnet", output_stride=8)
    leaky = build_segmenter(backbone, 5, ISA, 8, negative_slope=0.01)
    for part in (leaky.head, leaky.aux_head):
        activations = [m for m in cast(nn.Module, part).modules() if "ReLU" in type(m).__name__]
        assert {type(m) for m in activations} == {nn.LeakyReLU}
        assert {m.negative_slope for m in activations} == {0.01}
    assert not any(isinstance(m, nn.LeakyReLU) for m in leaky.backbone.modules())
    plain = build_segmenter(backbone, 5, ISA, 8)
    assert not any(isinstance(m, nn.LeakyReLU) for m in plain.modules())
