"""How heads begin: torch's own draws, mmsegmentation's and PaddleSeg's."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import nn

from isaseg.models.backbone import Backbone
from isaseg.models.head import AuxHead, ContextHead
from isaseg.models.initialisation import initialise
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import Segmenter, build_segmenter

ISA = partial(InterlacedSparseAttention, group_size=(2, 2))
WIDTH, KEYS, CLASSES, AUX = 64, 32, 40, 48
# outputs and taps of each convolution that a norm follows in a network of `made`
FOLLOWED = {"head.reduce.0": (WIDTH, 9), "head.fuse.0": (WIDTH, 1), "aux_head.reduce.0": (AUX, 9)} | {
    f"head.attention.{stage}_range.{name}": (WIDTH if name == "proj.0" else KEYS, 1)
    for stage in ("long", "short")
    for name in ("query.0", "query.3", "key.0", "key.3", "proj.0")
}
CLASSIFIERS = ("head.classifier", "aux_head.classifier")
VALUES = tuple(f"head.attention.{stage}_range.value" for stage in ("long", "short"))


def made(**kwargs: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(Backbone("test_resnet"), CLASSES, ISA, WIDTH, aux_channels=AUX, **kwargs)


def convolutions(segmenter: Segmenter) -> dict[str, nn.Conv2d]:
    return {
        name: part
        for name, part in segmenter.named_modules()
        if isinstance(part, nn.Conv2d) and not name.startswith("backbone.")
    }


def check_normal(conv: nn.Conv2d, std: float) -> None:
    """Check the draws by their standard deviation, within five of its own, and by their tails, which no uniform has."""
    values = conv.weight.detach().flatten()
    assert abs(float(values.std()) / std - 1) < 5 / (2 * len(values)) ** 0.5
    assert float(values.abs().max()) > 2.5 * std


def test_torch_draws_what_it_always_drew() -> None:
    segmenter = made()
    torch.manual_seed(0)
    backbone = Backbone("test_resnet")
    head = ContextHead(backbone.channels[-1], WIDTH, CLASSES, ISA)
    parts = nn.ModuleDict({"head": head, "aux_head": AuxHead(backbone.channels[-2], CLASSES, AUX)})
    for name, value in parts.state_dict().items():
        assert torch.equal(segmenter.state_dict()[name], value), name
    drawn = float(torch.rand(()))
    made()
    assert float(torch.rand(())) == drawn


def test_mmseg_begins_with_conv_modules_by_fan_out_and_small_classifiers() -> None:
    """mmcv's ConvModule; the values' projection is a bare convolution there, which torch initialises."""
    segmenter, plain = made(init="mmseg"), convolutions(made())
    found = convolutions(segmenter)
    assert found.keys() == {*FOLLOWED, *CLASSIFIERS, *VALUES}
    for name, (outputs, taps) in FOLLOWED.items():
        check_normal(found[name], (2 / (outputs * taps)) ** 0.5)
    for name in CLASSIFIERS:
        check_normal(found[name], 0.01)
        assert not cast(nn.Parameter, found[name].bias).any()
    for name in VALUES:
        assert all(
            torch.equal(a, b) for a, b in zip(found[name].parameters(), plain[name].parameters(), strict=True)
        )
    for key, value in made().backbone.state_dict().items():
        assert torch.equal(segmenter.backbone.state_dict()[key], value)


def test_paddleseg_begins_with_every_convolution_by_fan_in() -> None:
    for conv in convolutions(made(init="paddleseg")).values():
        check_normal(conv, (2 / conv.weight[0].numel()) ** 0.5)
        assert conv.bias is None or not conv.bias.any()


def test_a_module_of_the_user_s_own_begins_by_the_same_rule() -> None:
    """Bias and all, where a norm follows in an nn.Sequential; where none does, it is left alone."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(
                nn.Conv2d(8, 256, 1), nn.BatchNorm2d(256), nn.Conv2d(256, 8, 1), nn.ReLU()
            )
            self.classifier = nn.Conv2d(8, 5, 1)

    own = Own()
    before = own.inner[2].weight.clone()
    initialise(own, "mmseg")
    check_normal(own.inner[0], (2 / 256) ** 0.5)
    assert not own.inner[0].bias.any() and torch.equal(own.inner[2].weight, before)


def test_norms_begin_at_one_whichever_they_are() -> None:
    for norm in ("batch", "inplace_abn"):
        for init in ("torch", "mmseg", "paddleseg"):
            weights = made(init=init, norm=norm).head.state_dict()
            names = [name.removesuffix("running_var") for name in weights if name.endswith("running_var")]
            assert all((weights[f"{n}weight"] == 1).all() and not weights[f"{n}bias"].any() for n in names)


def test_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="init to be one of torch, mmseg, paddleseg, got init='xavier'"):
        made(init="xavier")
