"""Checkpoints of mmsegmentation and openseg: equal to the published definition, or refused in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from isaseg.checkpoints.loading import load_model, load_segmenter
from isaseg.checkpoints.published import recognise
from isaseg.errors import CheckpointError
from tests import openseg_reference as reference
from tests.openseg_reference import ABN, MMSEG, TORCH, Reference, Style, Weights

Rename = Callable[[Weights], Weights]

OPENSEG_CONFIG: dict[str, Any] = {
    "dataset": "cityscapes",
    "data": {"input_mode": "BGR", "num_classes": 19},
    "normalize": {"div_value": 1.0, "mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0]},
    "network": {
        "backbone": "deepbase_resnet101_dilated8",
        "multi_grid": [1, 1, 1],
        "factors": [[8, 8]],
        "bn_type": "inplace_abn",
    },
}
# as mmcv wrote it into the published files, and as mmengine does
MMCV_TEXT = """norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='ISAHead',
        in_channels=2048,
        down_factor=(8, 8),
        num_classes=19,
        align_corners=False,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    auxiliary_head=dict(type='FCNHead', align_corners=True))
dataset_type = 'CityscapesDataset'
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""
MMENGINE_TEXT = """data_preprocessor = dict(
    bgr_to_rgb=True,
    mean=[
        123.675,
        116.28,
        103.53,
    ],
    std=[
        58.395,
        57.12,
        57.375,
    ])
dataset_type = 'ADE20KDataset'
model = dict(
    auxiliary_head=dict(align_corners=False),
    backbone=dict(
        contract_dilation=True,
        dilations=(
            1,
            1,
            2,
            4,
        ),
        style='pytorch'),
    decode_head=dict(
        align_corners=True,
        down_factor=(
            4,
            16,
        )))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Style, Weights, Path]]:
    """One file of each form, with the weights as the reference takes them."""
    folder = tmp_path_factory.mktemp("published")
    network = {**OPENSEG_CONFIG["network"], "backbone": "deepbase_resnet50_dilated8"}
    of_50_layers = {**OPENSEG_CONFIG, "network": network}
    forms: list[tuple[str, Style, int, Rename, dict[str, Any]]] = [
        ("inplace_abn", ABN, 50, in_parallel, {"config_dict": of_50_layers}),
        ("torchbn", TORCH, 50, reference.with_torch_norms, {}),
        ("mmseg", MMSEG, 50, reference.as_mmseg, {"meta": {"config": MMCV_TEXT}}),
    ]
    made = {}
    for name, style, depth, rename, rest in forms:
        weights = reference.random_weights(style, depth)
        legacy = name == "inplace_abn"  # PyTorch 0.4.1 wrote them
        path = folder / f"{name}.pth"
        torch.save({"state_dict": rename(weights), **rest}, path, _use_new_zipfile_serialization=not legacy)
        made[name] = (style, weights, path)
    return made


def in_parallel(weights: Weights) -> Weights:
    return {f"module.{name}": value for name, value in weights.items()}


@torch.no_grad()
@pytest.mark.parametrize("form", ["inplace_abn", "torchbn", "mmseg"])
def test_logits_are_those_of_the_definition(form: str, files: dict[str, tuple[Style, Weights, Path]]) -> None:
    style, weights, path = files[form]
    segmenter = load_segmenter(path)
    assert not segmenter.training
    assert {p.dtype for p in segmenter.parameters()} == {torch.float32}
    segmenter.double()
    image = torch.randint(0, 256, (1, 3, 97, 131), dtype=torch.uint8)
    ours, aux = segmenter(image), segmenter.coarse_with_aux(image)[1]
    assert aux is not None
    aux = F.interpolate(aux, size=(97, 131), mode="bilinear", align_corners=segmenter.align_corners)
    for got, want in zip((ours, aux), Reference(weights, style).logits(image), strict=True):
        assert (got - want).abs().max() <= 1e-9 * want.abs().max()
        assert torch.equal(got.argmax(1), want.argmax(1))
    assert ours.argmax(1).unique().numel() > 1


@torch.no_grad()
def test_the_caller_may_overrule_the_file(files: dict[str, tuple[Style, Weights, Path]]) -> None:
    style, weights, path = files["mmseg"]
    segmenter = load_segmenter(path, group_size=(4, 3), align_corners=True).double()
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    want, _ = Reference(weights, style._replace(group_size=(4, 3), align_corners=True)).logits(image)
    assert (segmenter(image) - want).abs().max() <= 1e-9 * want.abs().max()
    with pytest.raises(CheckpointError, match=r"cannot load '.*mmseg\.pth'.*group_size"):
        load_segmenter(path, group_size=(4, 0))


def test_every_difference_is_listed_under_the_names_of_the_file(
    files: dict[str, tuple[Style, Weights, Path]], tmp_path: Path
) -> None:
    for form, dropped, reshaped, added in (
        (
            "mmseg",
            "decode_head.local_relation.query_project.1.bn.bias",
            "backbone.stem.7.weight",
            "neck.weight",
        ),
        (
            "torchbn",
            "isa_head.2.stages.0.short_range_sa.W.1.0.running_var",
            "dsn_head.3.weight",
            "isa_head.9",
        ),
    ):
        content = torch.load(files[form][2], weights_only=True)
        weights = content["state_dict"]
        del weights[dropped]
        shape = tuple(weights[reshaped].shape)
        weights[reshaped] = torch.zeros(3, *shape[1:])
        weights[added] = torch.zeros(1)
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError) as caught:
            load_model(tmp_path / "other.pth")
        message = str(caught.value)
        assert "missing: " + dropped + ";" in message
        assert "unexpected: " + added + ";" in message
        assert (
            f"(file -> model): {reshaped} (3{str(shape[1:])[1:-1] and ', ' + str(shape[1:])[1:-1]}" in message
        )
        assert f" -> {shape}. " in message


# ---------------------------------------------------------------- what a file says


@pytest.fixture(scope="module")
def shapes() -> dict[str, Weights]:
    """Return weights of each kind without values."""
    with torch.device("meta"):
        made = {"inplace_abn": empty(ABN, 101), "mmseg": reference.as_mmseg(empty(MMSEG, 50))}
    return made


def empty(style: Style, depth: int) -> Weights:
    return reference.raw_weights(style, depth, classes=19)


def test_openseg_tells_input_and_group_size(shapes: dict[str, Weights]) -> None:
    found = recognise({"config_dict": OPENSEG_CONFIG}, shapes["inplace_abn"])
    description = found.description
    assert found.kind == "openseg"
    assert description["backbone"]["name"] == "resnet101s"
    assert description["attention"] == {
        "name": "InterlacedSparseAttention",
        "key_channels": 16,
        "group_size": [8, 8],
        "value_bias": False,
    }
    head = {"channels": 32, "dropout": 0.05, "aux_channels": 24, "align_corners": True, "norm": "inplace_abn"}
    assert description["head"] == head
    assert (description["data"], description["protocol"]) == ("cityscapes", "openseg")
    bare = recognise({}, shapes["inplace_abn"]).description
    assert bare == {**description, "data": None}
    other = {
        **OPENSEG_CONFIG,
        "dataset": "lip",  # which has 20 classes, not 19
        "data": {"input_mode": "RGB"},
        "normalize": {"div_value": 255.0, "mean": [0.5, 0.4, 0.2], "std": [0.25, 0.5, 1]},
        "network": {"factors": [[8, 16]]},
    }
    description = recognise({"config_dict": other}, shapes["inplace_abn"]).description
    assert description["attention"]["group_size"] == [8, 16]
    assert description["data"] is None
    assert not description["backbone"]["bgr"]
    assert description["backbone"]["mean"] == [127.5, 102.0, 51.0]
    assert description["backbone"]["std"] == [63.75, 127.5, 255.0]


@pytest.mark.parametrize(
    "part, change, match",
    [
        (
            "network",
            {"factors": [[8, 8], [4, 4]]},
            r"one ISA block with network.factors .* got \[\[8, 8\], \[4, 4\]\]",
        ),
        ("network", {"factors": [8, 8]}, r"network.factors as \[\[P_h, P_w\]\], got \[8, 8\]"),
        ("network", {"factors": [[8, "8"]]}, r"network.factors as \[\[P_h, P_w\]\], got \[\[8, '8'\]\]"),
        ("network", {"multi_grid": [1, 2, 4]}, r"network.multi_grid of \[1, 1, 1\] or none, got \[1, 2, 4\]"),
        ("network", {"multi_grid": torch.ones(3)}, "network.multi_grid"),
        ("network", {"backbone": "deepbase_resnet101_dilated16"}, "got 'deepbase_resnet101_dilated16'"),
        ("data", {"input_mode": "GRB"}, "data.input_mode of BGR or RGB, got 'GRB'"),
        ("normalize", {"mean": [1, 2]}, "three numbers each for mean and std"),
        ("normalize", {"std": [1.0, float("nan"), 1.0]}, "three numbers each for mean and std"),
        ("normalize", {"div_value": 10**400}, "expected normalize with div_value"),
    ],
)
def test_openseg_of_another_network_is_refused(
    part: str, change: dict[str, Any], match: str, shapes: dict[str, Weights]
) -> None:
    config = {**OPENSEG_CONFIG, part: {**OPENSEG_CONFIG[part], **change}}
    with pytest.raises(CheckpointError, match=match):
        recognise({"config_dict": config}, shapes["inplace_abn"])


def test_several_blocks_are_refused_by_their_tensors_too(shapes: dict[str, Weights]) -> None:
    extra = {"isa_head.2.stages.1.long_range_sa.f_value.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"expected one ISA block, got 'isa_head\.2\.stages\.1'"):
        recognise({}, shapes["inplace_abn"] | extra)


def test_mmseg_tells_corners_group_size_and_names(shapes: dict[str, Weights]) -> None:
    names, palette = [f"class {i}" for i in range(19)], [[i, 0, 255] for i in range(19)]
    meta = {"config": MMCV_TEXT, "CLASSES": tuple(names), "PALETTE": palette}
    found = recognise({"meta": meta}, shapes["mmseg"])
    assert found.kind == "mmseg"
    description = found.description
    assert description["backbone"]["name"] == "resnet50c"
    assert description["head"] == {
        "channels": 32,
        "dropout": 0.1,
        "aux_channels": 24,
        "align_corners": False,  # of the decode_head, not of the auxiliary head
    }
    assert description["attention"]["value_bias"]
    assert (description["data"], description["protocol"]) == ("cityscapes", "mmseg")
    assert (description["classes"], description["palette"]) == (names, palette)
    bare = recognise({}, shapes["mmseg"]).description
    assert bare == {**description, "data": None, "classes": None, "palette": None}
    meta = {"cfg": MMENGINE_TEXT, "dataset_meta": {"classes": names, "palette": palette[1:]}}
    description = recognise({"meta": meta}, shapes["mmseg"]).description
    assert description["attention"]["group_size"] == [4, 16]
    assert description["head"]["align_corners"]
    assert description["data"] is None, "ADE20K has not 19 classes"
    assert description["backbone"] == bare["backbone"]
    assert (description["classes"], description["palette"]) == (names, None)


@pytest.mark.parametrize(
    "old, new, match",
    [
        ("(1, 1, 2, 4)", "(1, 1, 1, 2)", "with dilations=1,1,2,4, got dilations=1,1,1,2"),
        ("style='pytorch'", "style='caffe'", "with style=pytorch, got style=caffe"),
        ("contract_dilation=True", "contract_dilation=False", "got contract_dilation=False"),
        ("116.28, 103.53", "1.2.3, 103.53", "expected mean as three numbers, got '123.675,1.2.3,103.53'"),
    ],
)
def test_mmseg_of_another_network_with_the_same_shapes_is_refused(
    old: str, new: str, match: str, shapes: dict[str, Weights]
) -> None:
    assert old in MMCV_TEXT
    with pytest.raises(CheckpointError, match=match):
        recognise({"meta": {"config": MMCV_TEXT.replace(old, new)}}, shapes["mmseg"])


def test_mmseg_may_have_been_trained_on_other_input(shapes: dict[str, Weights]) -> None:
    text = MMCV_TEXT.replace("to_rgb=True", "to_rgb=False").replace(
        "[58.395, 57.12, 57.375]", "[1.0, 1.0, 1.0]"
    )
    backbone = recognise({"meta": {"config": text}}, shapes["mmseg"]).description["backbone"]
    assert (backbone["bgr"], backbone["std"]) == (True, [1.0, 1.0, 1.0])


def test_an_auxiliary_head_may_be_absent(shapes: dict[str, Weights]) -> None:
    for kind, part in (("mmseg", "auxiliary_head."), ("inplace_abn", "dsn_head.")):
        weights = {k: v for k, v in shapes[kind].items() if not k.startswith(part)}
        assert recognise({}, weights).description["head"]["aux_channels"] is None


@pytest.mark.parametrize(
    "names, match",
    [
        (["decode_head.psp_modules.0.1.conv.weight", "backbone.stem.0.weight"], "decode_head of psp_modules"),
        (["backbone.stem.0.weight", "head.fc.weight"], "got backbone, head; no other network"),
        (["backbone.resinit.conv2.weight", "oc_module_pre.0.weight"], "got backbone, oc_module_pre"),
        (
            ["isa_head.0.weight", "backbone.conv1.weight"],
            "expected a deepbase_resnet.*backbone of conv1.weight",
        ),
        (["isa_head.0.weight", "backbone.resinit.conv1.weight"], "expected a deepbase_resnet of 50 or 101"),
        ([], "got nothing; no other network"),
    ],
)
def test_other_networks_are_named(names: list[str], match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        recognise({}, {name: torch.zeros(1) for name in names})


def test_a_group_size_of_endless_digits_is_none(shapes: dict[str, Weights]) -> None:
    text = f"decode_head=dict(down_factor=({'9' * 5000}, 8))"
    found = recognise({"meta": {"config": text}}, shapes["mmseg"])
    assert found.description == recognise({}, shapes["mmseg"]).description


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda name: name.replace("stem.", "conv."), "expected a ResNetV1c.*backbone of conv.0, conv.1"),
        (lambda name: name.replace("downsample.1", "downsample.2"), "expected a ResNetV1c of 50 or 101"),
        (lambda name: name.replace("layer3.5", "layer3.4"), "with 6 or 23 blocks in layer3, got 5 blocks"),
    ],
)
def test_other_backbones_of_mmseg_are_named(
    change: Callable[[str], str], match: str, shapes: dict[str, Weights]
) -> None:
    with pytest.raises(CheckpointError, match=match):
        recognise({}, {change(name): value for name, value in shapes["mmseg"].items()})


@pytest.mark.parametrize(
    "weights, match",
    [
        (
            {"isa_head.0.weight": torch.zeros(1).expand(10**12)},
            "expected whole tensors, got isa_head.0.weight",
        ),
        (
            {"isa_head.0.weight": torch.empty(2, device="meta")},
            "expected whole tensors, got isa_head.0.weight",
        ),
        ({"isa_head.0.weight": torch.eye(2).to_sparse()}, "nothing but tensors.*isa_head.0.weight"),
        ({"isa_head.0.weight": [1.0]}, "nothing but tensors.*got isa_head.0.weight of type list"),
        ({1: torch.zeros(1)}, "state_dict of named tensors"),
        ([torch.zeros(1)], "state_dict of named tensors"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*sparse.*:UserWarning")  # what torch says of any sparse file
def test_tensors_that_are_none_are_refused(weights: Any, match: str, tmp_path: Path) -> None:
    torch.save({"state_dict": weights}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=match):
        load_model(tmp_path / "odd.pth")
