"""Norms with the factor |weight| + eps: what they compute, and that nothing which handles a network loses the factor."""

import copy
from functools import partial
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.backbone import Backbone
from isaseg.models.fuse import fuse
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.norms import AbsoluteNorm, is_absolute, make_absolute, make_plain
from isaseg.models.segmenter import Segmenter, build_segmenter
from tests.models.references import relative

ISA = partial(InterlacedSparseAttention, group_size=(2, 2))


def norm(*weights: float) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(len(weights)).double()
    nn.init.normal_(module.bias)
    module.weight.data = torch.tensor(weights).double()
    make_absolute(module)
    return module


def network(name: str = "test_resnet", kind: str = "inplace_abn") -> Segmenter:
    """Return one with weights of both signs in its norms, and random statistics."""
    torch.manual_seed(0)
    made = build_segmenter(Backbone(name, output_stride=8), 5, ISA, 8, 0.1, 4, norm=kind)  # type: ignore[arg-type]
    for key, value in made.state_dict().items():
        if key.endswith("running_var"):
            for part, spread in (("weight", 1.0), ("bias", 0.3), ("running_mean", 0.2)):
                made.state_dict()[key.replace("running_var", part)].normal_(0, spread)
            value.uniform_(0.5, 2)
    return made


def picture(side: int = 48) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_multiplies_by_the_magnitude_of_its_weight(training: bool) -> None:
    """The gradient changes its sign with the weight, and at 0 it is that of a negative one, as in InPlaceABN's kernel."""
    module = norm(1.5, -0.7, 0.0, -1e-7).train(training)
    stored = dict(module.named_parameters())["weight"]
    x = torch.randn(2, 4, 3, 5).double().requires_grad_()
    factor = torch.tensor([1.5 + 1e-5, 0.7 + 1e-5, 1e-5, 1e-7 + 1e-5]).double().requires_grad_()
    mean, var = (torch.zeros(4).double(), torch.ones(4).double())
    want = F.batch_norm(x, mean, var, factor, module.bias, training, 0.1, 1e-5)
    found = module(x)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close((module.running_mean, module.running_var), (mean, var))
    upstream = torch.randn_like(want)
    by_x, by_factor = torch.autograd.grad(want, (x, factor), upstream, retain_graph=True)
    by_x_found, by_weight = torch.autograd.grad(found, (x, stored), upstream)
    torch.testing.assert_close(by_x_found, by_x)
    torch.testing.assert_close(by_weight, by_factor * torch.tensor([1, -1, -1, -1]))


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["test_resnet", "tf_efficientnet_lite0"]
)  # the latter's norms hold activations too
def test_all_norms_of_a_network_and_the_heads_activations_are_those_of_inplace_abn(name: str) -> None:
    made = network(name).eval()
    norms = [part for part in made.modules() if hasattr(part, "running_var")]
    assert all("Absolute" in type(part).__name__ for part in norms) and len(norms) > 20
    for part in (made.head, cast(nn.Module, made.aux_head)):
        slopes = {getattr(m, "negative_slope", 0.0) for m in part.modules() if "ReLU" in type(m).__name__}
        assert slopes == {0.01}
    assert not any(isinstance(m, nn.LeakyReLU) for m in made.backbone.modules())
    same = build_segmenter(Backbone(name, output_stride=8), 5, ISA, 8, 0.1, 4, negative_slope=0.01).eval()
    weights = made.state_dict()
    for key, part in made.named_modules():
        if part in norms:
            weights[f"{key}.weight"] = weights[f"{key}.weight"].abs() + part.eps
    same.load_state_dict(weights)
    image = picture()
    assert torch.equal(made(image), same(image))
    assert torch.equal(made.fuse()(image), same.fuse()(image))
    assert relative(made.fuse()(image), made(image)) <= 1e-5
    assert not any(hasattr(part, "running_var") for part in made.fuse().modules())
    assert torch.equal(copy.deepcopy(made)(image), made(image))


def test_parameters_stay_what_they_are_in_both_directions() -> None:
    made, plain = network(), network(kind="batch")
    assert made.state_dict().keys() == plain.state_dict().keys()
    parameters = [id(p) for p in made.parameters()]
    weights = {key: value.clone() for key, value in made.state_dict().items()}
    make_plain(made)
    assert not is_absolute(made)
    make_absolute(made)
    assert is_absolute(made) and [id(p) for p in made.parameters()] == parameters
    assert all(torch.equal(value, weights[key]) for key, value in made.state_dict().items())


def test_a_backbone_without_batch_norms_stays_as_it_is() -> None:
    made = build_segmenter(Backbone("convnext_atto"), 5, ISA, 8, norm="inplace_abn")
    assert not is_absolute(made.backbone) and is_absolute(made.head)
    assert str(made.backbone) == str(Backbone("convnext_atto"))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="norm to be one of batch, inplace_abn, got norm='abn'"):
        build_segmenter(Backbone("test_resnet"), 5, ISA, 8, norm="abn")  # type: ignore[arg-type]

    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(
        ValueError, match=r"norms of torch.nn.BatchNorm2d .*got Own in 1; set head.norm=batch"
    ):
        make_absolute(nn.Sequential(nn.Identity(), Own(3)))


def test_the_factor_is_in_what_is_compiled_exported_and_fused() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double().eval()
    module[1].weight.data = torch.tensor([1.0, -2.0, 0.0, -3.0]).double()
    make_absolute(module)
    assert isinstance(module[1], AbsoluteNorm)
    x = torch.randn(2, 3, 6, 6).double()
    want = module(x)
    exported = torch.export.export(module, (x,)).module()
    for way in (exported, torch.compile(module, backend="eager", fullgraph=True), fuse(module)):
        torch.testing.assert_close(way(x), want)
    torch.compile(module, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    compiled = [p.grad for p in module.parameters()]
    module.zero_grad()
    module(x).square().sum().backward()
    torch.testing.assert_close(compiled, [p.grad for p in module.parameters()])
