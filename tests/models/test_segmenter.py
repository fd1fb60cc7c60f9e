"""The whole network: sizes, which map feeds which head, resizing, keys."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.checkpoints.description import build_described
from isaseg.errors import CheckpointError
from isaseg.models.attention import InterlacedSparseAttention
from isaseg.models.backbone import Backbone
from isaseg.models.head import AuxHead, ContextHead
from isaseg.models.segmenter import Segmenter, build_segmenter

ISA = partial(InterlacedSparseAttention, group_size=(2, 2))


def make(aux_channels: int | None = 4, align_corners: bool = False) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(
        Backbone("test_resnet", output_stride=8), 5, ISA, 8, 0.1, aux_channels, align_corners=align_corners
    )


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
    logits = Segmenter(backbone, head, align_corners=align_corners)(image(9, 10))
    want = F.interpolate(grid, size=(9, 10), mode="bilinear", align_corners=align_corners)
    assert torch.equal(logits, want)


def test_corners_are_not_aligned_unless_asked() -> None:
    assert not make().align_corners
    assert make(align_corners=True).align_corners


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


def test_keys_begin_with_the_names_of_the_parts() -> None:
    assert {key.split(".")[0] for key in make().state_dict()} == {"backbone", "head", "aux_head"}


def test_widths_follow_from_the_backbone() -> None:
    segmenter = make()
    assert segmenter.aux_head is not None
    assert cast(Tensor, segmenter.head.reduce[0].weight).shape == (8, 96, 3, 3)
    assert cast(Tensor, segmenter.aux_head.reduce[0].weight).shape == (4, 192, 3, 3)


def test_an_auxiliary_head_needs_a_second_map() -> None:
    backbone = Backbone("test_resnet", out_indices=[1])
    assert build_segmenter(backbone, 3, ISA, 8, aux_channels=None).aux_head is None
    with pytest.raises(ValueError, match=r"two maps.*got backbone.channels=\[32\].*head.aux_channels=null"):
        build_segmenter(backbone, 3, ISA, 8)


@torch.no_grad()
def test_coarse_logits_are_those_before_resizing() -> None:
    segmenter, x = make(align_corners=True).eval(), image()
    coarse = segmenter.coarse(x)
    assert coarse.shape == (2, 5, 6, 7)
    want = F.interpolate(coarse, size=(41, 50), mode="bilinear", align_corners=True)
    assert torch.equal(segmenter(x), want)


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


# ---------------------------------------------------------------- from a description

DESCRIPTION: dict[str, Any] = {
    "backbone": {"name": "test_resnet", "output_stride": 8, "out_indices": [-2, -1]},
    "attention": {"name": "InterlacedSparseAttention", "group_size": [2, 2], "key_channels": None},
    "head": {"channels": 8, "dropout": 0.1, "aux_channels": 4, "align_corners": False},
    "num_classes": 5,
    "negative_slope": 0.0,
    "data": "camvid",
    "protocol": "none",
    "classes": ["a", "b", "c", "d", "e"],
    "palette": [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3], [255, 255, 255]],
}


def test_a_described_network_is_the_one_that_was_described() -> None:
    built = build_described(DESCRIPTION)
    assert str(built) == str(make())
    assert built.state_dict().keys() == make().state_dict().keys()
    least = {key: DESCRIPTION[key] for key in ("backbone", "attention", "head", "num_classes")}
    assert str(build_described(least)) == str(built)


@pytest.mark.parametrize(
    "attention",
    [
        {"name": "ParallelInterlacedSparseAttention", "group_sizes": [[2, 2], [1, 4]]},
        {"name": "SelfAttention2d"},
        {"name": "CrissCrossAttention", "recurrence": 2},
        {"name": "PlainCrissCross", "passes": 2},
        {"name": "PyramidPooling", "bins": [1, 2]},
        {"name": "NoContext"},
    ],
)
def test_every_context_module_can_be_described(attention: dict[str, Any]) -> None:
    built = build_described({**DESCRIPTION, "attention": attention})
    assert type(built.head.attention).__name__ == attention["name"]


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        node = description
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = to

    return change


NESTED: list[Any] = []
NESTED.append(NESTED)


@pytest.mark.parametrize(
    "change, match",
    [
        (_set("backbone", "pretrained", to=True), r"got backbone.pretrained=True"),
        (_set("backbone", "weights", to="/etc/passwd"), r"got backbone.weights='/etc/passwd'"),
        (_set("backbone", "_target_", to="os.system"), r"got backbone._target_='os.system'"),
        (_set("backbone", "name", to="hf-hub:someone/model"), "the name of a timm model, got backbone.name"),
        (_set("backbone", "name", to="../resnet18"), "the name of a timm model, got backbone.name"),
        (_set("backbone", "name", to="resnet18x"), "cannot: expected the name of a timm model"),
        (_set("backbone", "model_args", to={"pretrained_cfg": {}}), "got backbone.model_args.pretrained_cfg"),
        (_set("backbone", "model_args", to={"img_size": {"a": 1}}), "got backbone.model_args.img_size"),
        (_set("backbone", "input_multiple", to=0), "input_multiple of at least 1"),
        (_set("backbone", to=None), "a mapping of names to values, got backbone=None"),
        (
            _set("attention", "name", to="os.system"),
            "InterlacedSparseAttention.*got attention.name='os.system'",
        ),
        (_set("attention", "name", to="AttentionBlock"), "expected one of.*got attention.name"),
        (_set("attention", "name", to=["NoContext"]), "expected one of.*got attention.name"),
        (_set("attention", "channels", to=8), "got attention.channels=8"),
        (_set("attention", "group_size", to=[10**9, 1]), "at most 4096.*got attention.group_size"),
        (_set("attention", "group_size", to=[0, 1]), "cannot: expected group_size"),
        (_set("attention", "group_size", to=NESTED), "got attention.group_size"),
        (_set("attention", "key_channels", to=10**400), "got attention.key_channels"),
        (_set("attention", "key_channels", to="eval"), "description of a network that can be built"),
        (_set("attention", "order", to="x" * 1000), "got attention.order"),
        (_set("head", "channels", to=10**9), "got head.channels=1000000000"),
        (_set("head", "channels", to=float("nan")), "got head.channels=nan"),
        (_set("head", "channels", to=-1), "description of a network that can be built"),
        (_set("head", "loss", to=1), "got head.loss=1"),
        (lambda d: d["head"].pop("dropout"), "expected a value, got head.dropout=None"),
        (lambda d: d.pop("head"), "expected a value, got the description.head=None"),
        (_set("num_classes", to=10**7), "integer from 1 to 4096, got num_classes=10000000"),
        (_set("num_classes", to=True), "got num_classes=True"),
        (_set("negative_slope", to=2), "got negative_slope=2"),
        (_set("data", to="../../etc"), "the name of a data set, got data='../../etc'"),
        (_set("protocol", to=torch.ones(2)), "the name of a protocol, got protocol"),
        (_set("protocol", to="../mine"), "the name of a protocol, got protocol='../mine'"),
        (_set("classes", to=["a"]), r"5 names, got classes=\['a'\]"),
        (_set("palette", to=[[0, 0, 256]] * 5), "5 colours of three integers"),
        (_set("hook", to="x"), "got the description.hook='x'"),
    ],
)
def test_what_else_a_description_may_say_is_refused(
    change: Callable[[dict[str, Any]], None], match: str
) -> None:
    description = copy.deepcopy(DESCRIPTION)
    change(description)
    with pytest.raises(CheckpointError, match=match):
        build_described(description)


@pytest.mark.parametrize("description", [None, [], "x", {}, {1: 2}])
def test_no_description_is_refused(description: Any) -> None:
    with pytest.raises(CheckpointError, match="got the description"):
        build_described(description)
