"""Networks from a description, which may come from a stranger."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from isaseg.errors import CheckpointError
from isaseg.models import context_modules
from isaseg.models.norms import is_absolute
from isaseg.models.segmenter import build_described
from tests.models.test_segmenter import make

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


def test_norms_of_inplace_abn_are_described_and_older_descriptions_have_none() -> None:
    described = {**DESCRIPTION, "head": {**DESCRIPTION["head"], "norm": "inplace_abn"}}
    built = build_described(described)
    assert is_absolute(built.backbone) and is_absolute(built.head)
    assert not is_absolute(build_described(DESCRIPTION))
    assert str(build_described({**DESCRIPTION, "head": {**DESCRIPTION["head"], "norm": "batch"}})) == str(
        make()
    )


@pytest.mark.parametrize(
    "attention",
    [
        *({"name": name} for name in context_modules()),
        {"name": "ParallelInterlacedSparseAttention", "group_sizes": [[2, 2], [1, 4]]},
        {"name": "ASPP", "rates": [1, 2], "branch_channels": None},
        {"name": "CGNL", "groups": 4, "key_channels": None},
        {"name": "InterlacedSparseAttention", "group_size": [2, 2], "depth": 2},
    ],
)
def test_every_context_module_can_be_described(attention: dict[str, Any]) -> None:
    head = {**DESCRIPTION["head"], "channels": 16}
    built = build_described({**DESCRIPTION, "attention": attention, "head": head}).eval()
    assert type(built.head.attention).__name__ == attention["name"]
    assert built(torch.zeros(1, 3, 40, 56, dtype=torch.uint8)).shape == (1, 5, 40, 56)


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
        (_set("backbone", "_target_", to="os.system"), r"backbone._target_: .*trust, got os;"),
        (_set("backbone", "name", to="hf-hub:someone/model"), "the name of a timm model, got backbone.name"),
        (_set("backbone", "name", to="../resnet18"), "the name of a timm model, got backbone.name"),
        (_set("backbone", "name", to="resnet18x"), "cannot: expected the name of a timm model"),
        (_set("backbone", "model_args", to={"pretrained_cfg": {}}), "got backbone.model_args.pretrained_cfg"),
        (_set("backbone", "model_args", to={"img_size": {"a": 1}}), "got backbone.model_args.img_size"),
        (
            _set("backbone", "model_args", to={"checkpoint_path": "a"}),
            "got backbone.model_args.checkpoint_path",
        ),
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
        (_set("head", "norm", to="layer"), "norm to be one of batch, inplace_abn, got norm='layer'"),
        (_set("head", "init", to="mmseg"), "got head.init='mmseg'"),
        (_set("data", to="../../etc"), "for the data set, got data='../../etc'"),
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
