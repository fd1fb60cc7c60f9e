"""timm models as lists of feature maps: values, shapes, normalisation, weights, errors. No network."""

import copy
import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.models import timm_models
from isaseg.models.backbone import Backbone
from tests.conftest import compose_overrides

IMAGENET = (torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375]))


def random_image(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def make(name: str = "test_resnet", **kwargs: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, **kwargs).eval()


def normalise(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (image.float() - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, stats",
    [("test_resnet", (torch.full((3,), 127.5), torch.full((3,), 127.5))), ("resnet18", IMAGENET)],
)
def test_uint8_is_normalised_as_the_weights_want(name: str, stats: tuple[Tensor, Tensor]) -> None:
    backbone, image = make(name, output_stride=8), random_image(40, 33)
    for got, want in zip(backbone(image), backbone.model(normalise(image, *stats)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_normalisation_and_the_order_of_channels_may_be_given() -> None:
    mean, std = torch.tensor([103.0, 116.0, 123.0]), torch.tensor([50.0, 60.0, 70.0])
    backbone, image = make(bgr=True, mean=mean.tolist(), std=std.tolist()), random_image(40, 33)
    blue_first = torch.stack([image[:, 2], image[:, 1], image[:, 0]], dim=1)
    for got, want in zip(backbone(image), backbone.model(normalise(blue_first, mean, std)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(backbone.normalise(image), normalise(blue_first, mean, std))
    for got, want in zip(backbone.features(backbone.normalise(image)), backbone(image), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("size", [(40, 33), (7, 1)])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalising_rounds_as_its_definition_and_gives_channels_last(
    size: tuple[int, int], bgr: bool, layout: torch.memory_format
) -> None:
    backbone = make("resnet18", bgr=bgr)
    image = random_image(*size, batch=2).contiguous(memory_format=layout)
    got = backbone.normalise(image)
    assert torch.equal(got, normalise(image.flip(1) if bgr else image, backbone.mean, backbone.std))
    assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "image",
    [torch.rand(1, 3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.int64)]
    + [torch.zeros(*shape, dtype=torch.uint8) for shape in ((3, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3))],
)
def test_w3_images_are_uint8_alone(image: Tensor) -> None:
    """A normalised image would be normalised again without a word. Floats go to `features`, which takes nothing else."""
    backbone = make()
    got = re.escape(f"got {image.dtype} {tuple(image.shape)}; do not scale or normalise them")
    for take in (backbone, backbone.normalise):
        with pytest.raises(ValueError, match=rf"expected RGB images as uint8 \(B, 3, H, W\) .*{got}"):
            take(image)
    with pytest.raises(
        ValueError, match=r"expected what `normalise` returns, .*got torch.uint8 \(1, 3, 8, 8\)"
    ):
        backbone.features(random_image(8, 8))


@torch.no_grad()
@pytest.mark.parametrize("size, plain, rounded", [((64, 96), (8, 12), (9, 13)), ((41, 33), (6, 5), (6, 5))])
def test_pooling_may_round_up(
    size: tuple[int, int], plain: tuple[int, int], rounded: tuple[int, int]
) -> None:
    for ceil_pool, want in ((False, plain), (True, rounded)):
        maps = make("resnet18", output_stride=8, ceil_pool=ceil_pool)(random_image(*size))
        assert [m.shape[-2:] for m in maps] == [want, want]


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (
            {"ceil_pool": True, "name": "convnext_atto"},
            r"backbone.ceil_pool, got backbone.name='convnext_atto'",
        ),
        ({"mean": [1.0, 2.0]}, r"expected backbone.mean as three numbers .* got \[1.0, 2.0\]"),
        ({"std": [1.0, 0.0, 1.0]}, r"expected backbone.std as three numbers .* above 0"),
        ({"input_multiple": 0}, "expected backbone.input_multiple of at least 1, got 0"),
        ({"output_stride": 7}, r"that timm has for .* \(8, 16 or 32 .*got backbone.output_stride=7"),
        ({"out_indices": [9]}, r"could not build backbone.name='test_resnet' with out_indices=\(9,\)"),
        ({"weights": "nowhere.pth"}, r"got backbone.weights='nowhere.pth', which does not exist"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make(**kwargs)


@torch.no_grad()
@pytest.mark.parametrize(
    "name, kwargs, channels, strides",
    [
        ("resnet18", {"output_stride": 8}, [256, 512], [8, 8]),
        ("resnet50c", {"output_stride": 8}, [1024, 2048], [8, 8]),
        ("resnet18", {"out_indices": [1, 2, 3]}, [64, 128, 256], [4, 8, 16]),
        ("convnext_atto", {"output_stride": 8}, [160, 320], [8, 8]),
        ("test_resnet", {"out_indices": [1]}, [32], [4]),
        ("test_resnet", {"output_stride": 8}, [192, 96], [8, 8]),
        ("test_vit", {}, [64, 64], [16, 16]),
    ],
)
def test_channels_and_strides_are_those_of_the_maps(
    name: str, kwargs: dict[str, Any], channels: list[int], strides: list[int]
) -> None:
    backbone = make(name, **kwargs)
    size = 160 if name == "test_vit" else 64
    assert (backbone.channels, backbone.strides) == (channels, strides)
    assert [m.shape[1] for m in backbone(random_image(size, size))] == channels
    assert [size // m.shape[2] for m in backbone(random_image(size, size))] == strides


@torch.no_grad()
def test_hrnet_takes_any_size_and_gives_its_branches_in_one_map() -> None:
    branches = {"out_indices": [-4, -3, -2, -1], "model_args": {"feature_location": ""}}
    backbone = make("hrnet_w18", fuse=True, **branches)
    image = random_image(45, 70)
    (fused,) = backbone(image)
    assert (backbone.channels, backbone.strides) == ([18 + 36 + 72 + 144], [4])
    assert fused.shape == (1, 270, 12, 18)  # ceil(45 / 4), ceil(70 / 4)
    maps = backbone.model(F.pad(normalise(image, *IMAGENET), (0, 26, 0, 19)))
    cut = [m[..., : -(-45 // s), : -(-70 // s)] for m, s in zip(maps, (4, 8, 16, 32), strict=True)]
    want = torch.cat([F.interpolate(m, size=(12, 18), mode="bilinear") for m in cut], 1)
    torch.testing.assert_close(fused, want, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_branches_of_hrnet_are_resized_as_the_head_resizes() -> None:
    """openseg with align_corners; also in the description, from which a checkpoint is built again."""
    for word, corners in (("head.align_corners=true", True), ("head.align_corners=false", False)):
        cfg = compose_overrides("backbone=hrnet_w18", "head.aux_channels=null", word)
        backbone = config.build(cfg.backbone, "backbone").eval()
        assert config.describe_network(cfg)["backbone"]["align_corners"] is corners
        image = random_image(64, 96)
        maps = backbone.model(backbone.normalise(image))
        rest = [F.interpolate(m, size=(16, 24), mode="bilinear", align_corners=corners) for m in maps[1:]]
        torch.testing.assert_close(backbone(image)[0], torch.cat([maps[0], *rest], 1), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_model_with_channels_last_gives_channels_first() -> None:
    backbone = make("swin_tiny_patch4_window7_224")
    image = random_image(64, 64)
    maps = backbone(image)
    assert [tuple(m.shape) for m in maps] == [(1, 384, 4, 4), (1, 768, 2, 2)]
    for got, want in zip(maps, backbone.model(normalise(image, *IMAGENET)), strict=True):
        assert got.is_contiguous(memory_format=torch.channels_last), "no copy undoes the layout of the model"
        torch.testing.assert_close(got, want.permute(0, 3, 1, 2), rtol=1e-3, atol=1e-4)


def test_normalisation_is_no_part_of_a_checkpoint() -> None:
    assert all(key.startswith("model.") for key in make().state_dict())


# ---------------------------------------------------------------- what is not trained


def trained(backbone: Backbone, steps: int = 2) -> set[str]:
    """Train for some steps; return the first parts of the names of the tensors that changed."""
    backbone.train()
    optimizer = torch.optim.Adam(
        [p for p in backbone.parameters() if p.requires_grad], lr=0.1
    )  # however small gradients
    before = copy.deepcopy(backbone.model.state_dict())
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([m.square().mean() for m in backbone(random_image(64, 64, batch=2))]).sum().backward()
        optimizer.step()
    return {
        name for name, value in backbone.model.state_dict().items() if not torch.equal(value, before[name])
    }


@pytest.mark.parametrize(
    ("name", "freeze", "still"),
    [
        ("test_resnet", ["stem", 1, 2], {"conv1", "bn1", "layer1", "layer2"}),
        ("test_resnet", ["layer1"], {"layer1"}),
        ("test_convnext", ["stem", "stages.2"], {"stem_0", "stem_1", "stages_2"}),
        ("test_efficientnet", [], set()),
    ],
)
def test_frozen_parts_do_not_change_and_all_others_do(
    name: str, freeze: list[int | str], still: set[str]
) -> None:
    backbone = make(name, freeze=freeze)
    changed = trained(backbone)
    everything = set(backbone.model.state_dict())
    assert changed == {key for key in everything if key.split(".")[0] not in still}
    frozen = {key for key, part in backbone.model.named_modules() if key and not part.training}
    assert {key.split(".")[0] for key in frozen} == still


def test_the_stem_of_a_vit_is_its_embedding_and_blocks_are_its_stages() -> None:
    backbone = make("test_vit", freeze=["stem", 1])
    frozen = {
        name.removeprefix("model.") for name, p in backbone.model.named_parameters() if not p.requires_grad
    }
    assert {name.split(".")[0] for name in frozen} == {"cls_token", "pos_embed", "patch_embed", "blocks"}
    assert {name[:8] for name in frozen if name.startswith("blocks")} == {"blocks.0"}


def test_norms_keep_their_statistics_and_train_their_weights() -> None:
    backbone = make(norm_eval=True)
    changed = trained(backbone)
    assert {"bn1.weight", "bn1.bias", "layer1.0.bn1.weight"} <= changed
    assert not any(key.endswith(("_mean", "_var", "_tracked")) for key in changed)
    assert backbone.training and backbone.model.layer1.training
    assert not backbone.eval().model.layer1.training


@pytest.mark.parametrize(
    ("part", "match"),
    [
        (
            "layer5",
            r"stem, numbers of stages from 1 to 4 or .*layer4\), got 'layer5'; did you mean 'layer4'\?",
        ),
        (5, "from 1 to 4 .* got 5"),
        (0, "from 1 to 4 .* got 0"),
        ("layer", "got 'layer'; did you mean"),
    ],
)
def test_an_unknown_part_to_freeze_is_refused(part: int | str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make(freeze=["stem", part])


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("suffix, save", [(".pth", torch.save), (".safetensors", save_file)])
def test_local_weights_arrive(suffix: str, save: Any, tmp_path: Path) -> None:
    """Of a whole timm model, classifier included, as the hub has it."""
    state = timm.create_model("test_resnet").state_dict()
    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / f"weights{suffix}"
    save(state, path)
    loaded = make(weights=str(path), output_stride=8).model.state_dict()
    assert "conv1.0.weight" in loaded
    for key, value in loaded.items():
        assert torch.equal(value, state[key]), key


def csail() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return random weights of a ResNet-50 under timm's names, and under those of MIT CSAIL, which counts no batches."""
    stem = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3"}
    stem["bn1"] = "bn3"
    state = timm.create_model("resnet50s").state_dict()
    state = {k: torch.rand_like(v) for k, v in state.items() if not k.endswith("num_batches_tracked")}
    parts = {key: key.rpartition(".") for key in state}
    return state, {f"{stem.get(p, p)}.{last}": state[key] for key, (p, _, last) in parts.items()}


def test_csail_s_weights_arrive_where_the_image_is_what_they_were_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose_overrides("backbone=resnet101_csail", "backbone.name=resnet50s")
    of_file = "got backbone.weights='resnet101-imagenet.pth'"
    with pytest.raises(ConfigError, match=f"{of_file}, which does not exist; openseg's .* links it"):
        config.build(cfg.backbone, "backbone")
    state, renamed = csail()
    assert {"conv1.weight", "conv2.weight", "conv3.weight", "bn3.bias", "fc.weight"} <= renamed.keys()
    torch.save(renamed, "resnet101-imagenet.pth")
    backbone = config.build(cfg.backbone, "backbone")
    for key, value in backbone.model.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, state[key]), key
    assert (backbone.bgr, backbone.model.maxpool.ceil_mode) == (True, True)
    with pytest.raises(ConfigError, match=f"{of_file} .*use backbone=resnet101_csail"):
        make("resnet50s", weights="resnet101-imagenet.pth")


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    "content, match",
    [
        (
            timm.create_model("test_convnext").state_dict(),
            "expected the weights of test_resnet, got backbone.weights",
        ),
        (b"not a checkpoint", "could not load the weights of backbone.name='test_resnet'"),
        ({"conv1.weight": _Runs()}, "more than tensors and plain values"),
        ({"epoch": 3}, "it holds more than named tensors"),
        ({}, "it holds no tensor"),  # timm would ask the network
        ({"state_dict": {}}, "it holds no tensor"),
    ],
)
def test_a_file_of_other_content_is_refused(
    content: Any, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=match) as caught:
        make(weights=str(path))
    assert str(path) in str(caught.value) and "weights_only" not in str(caught.value)
    assert not Path("ran").exists()


def test_without_network_the_advice_is_a_local_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("name resolution failed")

    monkeypatch.setattr(timm_models, "_check_hub", lambda *_: None)  # which would see it before
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ConfigError, match=r"OSError: name resolution failed; .*set backbone.weights=FILE.*pretrained=false"
    ):
        make(pretrained=True)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name, near", [("resnet18x", "resnet18"), ("resent50c", "resnet50c"), ("HRNet_w48", "hrnet_w48")]
)
def test_an_unknown_model_is_answered_with_near_names(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"got backbone.name='{name}'; similar: .*\b{near}\b"):
        make(name)


def test_d11_weights_are_those_that_were_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    make(weights=str(path), weights_sha256=right.upper())
    monkeypatch.setenv("HOME", str(tmp_path))
    make(weights="~/weights.safetensors", weights_sha256=right)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ConfigError, match=rf"weights\.safetensors' with the SHA-256 {right}, got \w+; fetch the file again"
    ):
        make(weights=str(path), weights_sha256=right)


WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "weights" / "tf_efficientnet_lite0.safetensors"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="needs shared/data/weights beside the repository")
def test_published_weights_fit_the_shipped_option() -> None:
    cfg = compose_overrides("backbone=efficientnet_lite0", f"backbone.weights={WEIGHTS}")
    loaded = config.build(cfg.backbone, "backbone").model.state_dict()
    published = load_file(WEIGHTS)
    assert len(loaded) > 250 and all(torch.equal(value, published[key]) for key, value in loaded.items())


def test_an_hrnet_exchanges_bilinearly_with_aligned_corners() -> None:
    """openseg's lib/models/backbones/hrnet/hrnet_backbone.py:277-281."""
    seen: list[bool] = []

    def look(part: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        size = out.shape[-2:]
        seen.append(torch.equal(out, F.interpolate(args[0], size, mode="bilinear", align_corners=True)))

    backbone = Backbone("hrnet_w18_small", bilinear_exchange=True, out_indices=[-2, -1]).eval()
    for part in backbone.model.modules():
        if isinstance(part, nn.Upsample):
            part.register_forward_hook(look)
    with torch.no_grad():
        backbone(torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8))
    assert len(seen) > 5 and all(seen)


def test_a_resnet_d_is_dilated_as_in_paddleseg() -> None:
    """paddleseg/models/backbones/resnet_vd.py:251, 296-315 and 119: one dilation a stage, no pooling at stride 1."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    full = Backbone("resnet26d", output_stride=8, full_dilation=True).eval()
    timms = Backbone("resnet26d", output_stride=8).eval()
    timms.load_state_dict(full.state_dict())
    found = {
        stage: [block.conv2.dilation[0] for block in getattr(full.model, stage)]
        for stage in ("layer2", "layer3", "layer4")
    }
    assert found == {"layer2": [1, 1], "layer3": [2, 2], "layer4": [4, 4]}
    block = full.model.layer3[0]
    x = torch.randn(1, 512, 8, 12)
    assert torch.equal(block.downsample(x), block.downsample[2](block.downsample[1](x)))
    with torch.no_grad():
        ours, theirs = full(image), timms(image)
    assert [m.shape for m in ours] == [m.shape for m in theirs]
    assert not torch.allclose(ours[0], theirs[0])


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("test_resnet", {"bilinear_exchange": True}, "expected an HRNet for backbone.bilinear_exchange"),
        ("resnet26d", {"full_dilation": True}, "expected a dilated ResNet-D for backbone.full_dilation"),
        ("resnet26", {"full_dilation": True, "output_stride": 8}, "expected a dilated ResNet-D"),
        ("test_vit", {"full_dilation": True}, "expected a dilated ResNet-D"),
    ],
)
def test_what_another_model_cannot_do_is_refused(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Backbone(name, **args)


@torch.no_grad()
def test_stages_above_the_last_map_are_left_out_without_changing_the_maps() -> None:
    cfg = compose_overrides("backbone=efficientnet_lite0_s8").backbone
    cut = config.build(cfg, "backbone").eval()
    whole = make(cfg.name, output_stride=8, out_indices=[2, 3])
    state = {f"model.{key}": value for key, value in whole.model.state_dict().items()}
    cut.model.load_state_dict({key: state[key] for key in cut.model.state_dict()})
    assert {key.split(".")[2] for key in state if ".blocks." in key} == set("0123456")
    assert {key.split(".")[2] for key in cut.model.state_dict() if ".blocks." in key} == set("01234")
    assert (cut.channels, cut.strides) == ([40, 112], [8, 8])
    image = random_image(41, 67)
    for got, want in zip(cut(image), whole(image), strict=True):
        assert torch.equal(got, want)
