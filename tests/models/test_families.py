"""Twelve families of timm: trained, evaluated at another size, fused and exported, at sizes that none was made for."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isaseg.checkpoints.loading import Model
from isaseg.errors import ConfigError
from isaseg.inference.export import TOLERANCE, export_onnx
from isaseg.models.backbone import Backbone
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import Segmenter, build_segmenter
from tests.models.references import relative

_TWO_BLOCKS = {"depth": 2, "embed_dim": 48, "num_heads": 2}
_SMALL_SWIN = {"depths": [2, 2, 2, 2], "embed_dim": 24, "num_heads": [1, 2, 4, 8]}

# name, further arguments of the smallest model, and the multiple to which its images are padded
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "ResNet": ("test_resnet", {}, 1),
    "ConvNeXt": ("test_convnext", {}, 1),
    "EfficientNet": ("test_efficientnet", {}, 1),
    "MobileNetV4": ("mobilenetv4_conv_small_035", {}, 1),
    "HRNet": ("hrnet_w18_small", {}, 32),
    "RegNet": ("regnetx_002", {}, 1),
    "Swin": ("swin_tiny_patch4_window7_224", _SMALL_SWIN, 4),
    "ViT": ("test_vit", {}, 16),
    "DINOv2": ("vit_small_patch14_dinov2", _TWO_BLOCKS, 14),
    "DINOv3": ("vit_small_patch16_dinov3", _TWO_BLOCKS, 16),
    "EVA-02": ("eva02_tiny_patch14_224", _TWO_BLOCKS, 14),
    "MaxViT": ("test_maxvit", {}, 160),
}
DILATED = ("ResNet", "ConvNeXt", "EfficientNet", "MobileNetV4", "RegNet")


def make(family: str, **kwargs: Any) -> Segmenter:
    name, model_args, _ = FAMILIES[family]
    torch.manual_seed(0)
    backbone = Backbone(name, model_args=model_args, **kwargs)
    return build_segmenter(
        backbone, 5, partial(InterlacedSparseAttention, group_size=(4, 4)), 16, aux_channels=8
    )


def images(height: int, width: int) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=noise, dtype=torch.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_a_step_at_each_of_two_sizes_and_scores_a_third(family: str) -> None:
    segmenter = make(family)
    backbone = segmenter.backbone
    assert backbone.input_multiple == FAMILIES[family][2]
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.01)
    before = [parameter.clone() for parameter in segmenter.parameters()]
    for size in ((96, 128), (128, 128)):
        optimizer.zero_grad()
        for logits in segmenter.coarse_with_aux(images(*size)):
            assert logits is not None
            logits.logsumexp(1).mean().backward(retain_graph=True)
        optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, segmenter.parameters(), strict=True)]
    assert sum(changed) > 0.7 * len(changed)  # HRNet's last fusion at the finest scales is not read
    segmenter.eval()
    fused = segmenter.fuse()
    if family != "MaxViT":  # whose blocks begin with a norm
        assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    with torch.no_grad():
        for size in ((33, 161), (96, 128)):
            maps = backbone(images(*size))
            assert [m.shape[1] for m in maps] == backbone.channels
            for m, stride in zip(maps, backbone.strides, strict=True):
                floor = tuple(n // stride for n in size)
                assert all(f <= n <= f + 1 for f, n in zip(floor, m.shape[2:], strict=True))
            wanted = segmenter(images(*size))
            assert wanted.shape == (2, 5, *size) and wanted.isfinite().all()
            assert relative(fused(images(*size)), wanted) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stride_is_kept_or_refused(family: str) -> None:
    if family in DILATED:
        assert max(make(family, output_stride=8).backbone.strides) == 8
        return
    name = FAMILIES[family][0]
    with pytest.raises(
        ConfigError, match=f"that timm has for .*'{name}' .*null.* got backbone.output_stride=8"
    ):
        make(family, output_stride=8)


@pytest.mark.parametrize(
    ("name", "why"),
    [("test_vit_relpos", "needs exactly 160x160"), ("test_coatnet", "needs exactly 160x160")]
    + [("crossvit_9_240", r"gives maps that are not those of .*, 17\)")],  # 14x14 of any image
)
def test_a_model_of_one_size_is_refused(name: str, why: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"images of any size, got .*'{name}', which {why}"),
        torch.device("meta"),
    ):
        Backbone(name)


@torch.no_grad()
def test_a_map_is_never_reshaped_to_other_channels() -> None:
    """ViTamin does so without a word where a side is not a multiple of its patch."""
    assert Backbone("inception_v3").channels == [768, 2048]  # whose unpadded convolutions lose some rows
    backbone = Backbone("vitamin_small_224").eval()
    assert [m.shape[1:] for m in backbone(images(75, 50))] == [(384, 5, 4)] * 2


@torch.no_grad()
def test_a_window_follows_the_size_that_is_asked_for() -> None:
    """MaxViT pads to its windows times its stride: a smaller window wastes less."""
    backbone = Backbone("test_maxvit", model_args={"img_size": 64}).eval()
    assert backbone.input_multiple == 64
    assert [m.shape[2:] for m in backbone(images(70, 94))] == [(5, 6), (3, 3)]


@torch.no_grad()
def test_padding_changes_nothing_of_an_image_that_needs_none() -> None:
    """At the size of its weights, a ViT gives what timm gives, its embedding of places included."""
    backbone = Backbone("test_vit").eval()
    image = images(160, 160)
    # in the memory format that the backbone chooses, by which some CPUs round otherwise
    normalised = backbone.normalise(image).contiguous(memory_format=torch.channels_last)
    for got, want in zip(backbone(image), backbone.model(normalised), strict=True):
        assert torch.equal(got, want)


def test_swin_is_not_exported_as_onnx(tmp_path: Path) -> None:
    """It would take longer than anybody waits."""
    with pytest.raises(ConfigError, match=r"got one of timm's Swin .*set formats=\[safetensors\]"):
        export_onnx(Model(make("Swin").eval(), "isaseg", {}), tmp_path / "net.onnx")


@pytest.mark.skipif(not os.environ.get("ISASEG_STRESS"), reason="minutes: make test-stress")
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "Swin"])
def test_a_family_is_exported_for_any_size(family: str, tmp_path: Path) -> None:
    description = {"backbone": {"name": FAMILIES[family][0]}}
    assert (
        export_onnx(Model(make(family).eval(), "isaseg", description), tmp_path / "net.onnx")
        <= 10 * TOLERANCE
    )
