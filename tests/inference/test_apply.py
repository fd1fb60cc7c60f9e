"""Protocols of evaluation against plain full-size implementations of them."""

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isaseg.inference.apply import Inference, predict_labels
from isaseg.models.backbone import Backbone
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import Segmenter, build_segmenter
from tests.inference.tiny import predict_logits


@pytest.fixture(scope="module", params=[False, True], ids=["edges", "align_corners"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(0)
    made = build_segmenter(
        Backbone("test_resnet", output_stride=8),
        5,
        partial(InterlacedSparseAttention, group_size=(2, 2)),
        channels=16,
        aux_channels=None,
        align_corners=request.param,
    ).eval()
    for module in made.modules():  # else the logits are nearly constant
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    made.head.classifier.weight.data.normal_(0, 2)
    return made


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 3, height // 8 + 1, width // 8 + 1, generator=generator)
    return (F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def up(x: Tensor, size: Sequence[int], align: bool) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align)


def resized(image: Tensor, size: tuple[int, int], flag: int = cv2.INTER_LINEAR) -> Tensor:
    pixels = cv2.resize(image[0].permute(1, 2, 0).numpy(), size[::-1], interpolation=flag)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def windows(net: Segmenter, x: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """mmsegmentation's slide_inference, from its definition."""
    height, width = x.shape[-2:]
    total, count = torch.zeros(1, 5, height, width), torch.zeros(height, width)
    for i in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for j in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            bottom, right = min(i * stride[0] + crop[0], height), min(j * stride[1] + crop[1], width)
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            total[..., top:bottom, left:right] += net(x[..., top:bottom, left:right])
            count[top:bottom, left:right] += 1
    return total / count


def check(net: Segmenter, image: Tensor, how: Inference, expected: Tensor) -> None:
    got = predict_logits(net, image, how)
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    labels = predict_labels(net, image, how)
    assert labels.dtype == torch.uint8
    best = expected.topk(2, dim=1).values
    sure = best[:, 0] - best[:, 1] > 1e-4 * expected.abs().max()
    assert sure.float().mean() > 0.95
    assert len(labels.unique()) > 1
    assert torch.equal(labels[sure].long(), expected.argmax(1)[sure])


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (40, 61)])
@torch.no_grad()
def test_whole_picture(segmenter: Segmenter, size: tuple[int, int]) -> None:
    image = picture(*size)
    check(segmenter, image, Inference(), segmenter(image))


@torch.no_grad()
def test_several_pictures_at_once(segmenter: Segmenter) -> None:
    image = torch.cat([picture(48, 72, 1), picture(48, 72, 2)])
    check(segmenter, image, Inference(), segmenter(image))


@torch.no_grad()
def test_resized_picture_is_resized_back_from_the_networks_input(segmenter: Segmenter) -> None:
    image = picture(90, 120)
    small = segmenter(resized(image, (60, 80)))
    expected = up(small, (90, 120), segmenter.align_corners)
    check(segmenter, image, Inference(resize={"short_side": 60}), expected)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [((97, 131), (64, 64), (43, 43)), ((64, 200), (64, 64), (64, 50)), ((50, 90), (64, 64), (40, 40))],
)
@torch.no_grad()
def test_sliding_windows(
    segmenter: Segmenter, size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int], batch: int
) -> None:
    image = picture(*size)
    how = Inference(crop_size=crop, stride=stride, batch=batch)
    check(segmenter, image, how, windows(segmenter, image, crop, stride))


@torch.no_grad()
def test_sliding_windows_on_a_resized_picture(segmenter: Segmenter) -> None:
    image = picture(70, 100)
    inner = windows(segmenter, resized(image, (105, 150)), (64, 64), (40, 40))
    how = Inference(resize={"short_side": 105}, crop_size=(64, 64), stride=(40, 40))
    check(segmenter, image, how, up(inner, (70, 100), segmenter.align_corners))


@pytest.mark.parametrize("crop", [None, (64, 64)])
@torch.no_grad()
def test_mmsegmentations_scales_and_mirror(segmenter: Segmenter, crop: tuple[int, int] | None) -> None:
    image, total = picture(72, 101), torch.zeros(1, 5, 72, 101)
    for scale in (0.5, 1.0, 1.75):
        x = resized(image, (int(72 * scale + 0.5), int(101 * scale + 0.5))) if scale != 1 else image
        for flip in (False, True):
            y = x.flip(3) if flip else x
            logits = segmenter(y) if crop is None else windows(segmenter, y, crop, (40, 40))
            logits = logits.flip(3) if flip else logits
            total += up(logits, (72, 101), segmenter.align_corners).softmax(1)
    how = Inference(crop_size=crop, stride=(40, 40), scales=(0.5, 1.0, 1.75), flip=True)
    check(segmenter, image, how, total / 6)


@torch.no_grad()
def test_scales_multiply_what_the_picture_is_resized_to(segmenter: Segmenter) -> None:
    """MultiScaleFlipAug of mmsegmentation 0.x: (long, short) times each ratio, rounded down, then what fits both."""
    image = picture(50, 101)
    total = torch.zeros(1, 5, 50, 101)
    for size in ((26, 53), (35, 71), (62, 125)):  # the last would be 62x126 as 1.77 times 35x71
        total += up(segmenter(resized(image, size)), (50, 101), segmenter.align_corners).softmax(1)
    how = Inference(resize={"short_side": 36, "long_side": 71}, scales=(0.75, 1.0, 1.77))
    check(segmenter, image, how, total / 3)


@torch.no_grad()
def test_openseg_adds_logits_at_the_padded_size_and_ends_cubic(segmenter: Segmenter) -> None:
    """ss_test and ms_test of its tester: everything but the last step happens to the normalised, padded input."""
    image = picture(90, 133)
    x = segmenter.backbone.normalise(resized(image, (60, 89), cv2.INTER_CUBIC))
    x = F.pad(x, (0, 7, 0, 4))  # to 64 x 96
    total = torch.zeros(1, 5, 64, 96)
    for scale in (0.75, 1.0, 1.5):
        scaled = up(x, (int(64 * scale), int(96 * scale)), True)
        for flip in (False, True):
            logits = of_normalised(segmenter, scaled.flip(3) if flip else scaled)
            logits = up(logits, (64, 96), segmenter.align_corners)
            total += logits.flip(3) if flip else logits
    expected = cv2.resize(
        total[0, :, :60, :89].permute(1, 2, 0).numpy(), (133, 90), interpolation=cv2.INTER_CUBIC
    )
    how = Inference(
        resize={"short_side": 60},
        interpolation="cubic",
        scales=(0.75, 1.0, 1.5),
        flip=True,
        average="logits",
        scaling="network",
        pad_multiple=8,
        final="cubic",
    )
    check(segmenter, image, how, torch.from_numpy(expected).permute(2, 0, 1)[None])


@torch.no_grad()
def test_padding_is_cut_off_again(segmenter: Segmenter) -> None:
    image = picture(61, 90)
    x = F.pad(segmenter.backbone.normalise(image), (0, 6, 0, 3))
    how = Inference(scaling="network", pad_multiple=8)
    check(segmenter, image, how, of_normalised(segmenter, x)[..., :61, :90])


@torch.no_grad()
def test_paddleseg_pads_to_a_size_and_adds_logits_without_aligned_corners(segmenter: Segmenter) -> None:
    """aug_inference of its core/infer.py after Padding and Normalize; the model itself aligns corners."""
    image = picture(58, 91)
    x = F.pad(segmenter.backbone.normalise(image), (0, 6, 0, 3))  # to 61 x 97
    total = torch.zeros(1, 5, 61, 97)
    for scale in (0.75, 1.0, 1.25):
        scaled = up(x, (int(61 * scale + 0.5), int(97 * scale + 0.5)), False)
        for flip in (False, True):
            logits = of_normalised(segmenter, scaled.flip(3) if flip else scaled)
            total += up(logits.flip(3) if flip else logits, (61, 97), False)
    how = Inference(
        scales=(0.75, 1.0, 1.25), flip=True, average="logits", scaling="paddleseg", pad_size=(61, 97)
    )
    check(segmenter, image, how, total[..., :58, :91])
    large = Inference(scaling="paddleseg", pad_size=(40, 97))  # a side that is larger stays as it is
    expected = of_normalised(segmenter, x[..., :58, :])[..., :91]
    check(segmenter, image, large, expected)


def of_normalised(segmenter: Segmenter, x: Tensor) -> Tensor:
    """Return logits of the size of the normalised input."""
    return up(segmenter.coarse(x, normalised=True), (x.shape[2], x.shape[3]), segmenter.align_corners)


@torch.no_grad()
def test_classes_change_places_in_the_mirror(segmenter: Segmenter) -> None:
    image = picture(64, 80)
    mirrored = segmenter(image.flip(3)).flip(3)[:, [0, 3, 2, 1, 4]]
    how = Inference(flip=True, flip_pairs=((1, 3),), average="logits")
    check(segmenter, image, how, segmenter(image) + mirrored)


@torch.no_grad()
def test_windows_that_have_passed_are_forgotten(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of a picture without end is that of the rows of windows which a strip touches."""
    from isaseg.inference import apply as inference

    held: list[int] = []

    class Watched(inference._View):
        def rows(self, top: int, bottom: int) -> Tensor:
            rows = super().rows(top, bottom)
            held.append(len(self.coarse))
            return rows

    monkeypatch.setattr(inference, "_View", Watched)
    monkeypatch.setattr(inference, "_STRIP", 5 * 64 * 16)
    image = picture(1000, 64)
    how = Inference(crop_size=(64, 64), stride=(32, 64))
    labels = predict_labels(segmenter, image, how)
    assert max(held) <= 4
    assert len(held) > 50
    monkeypatch.undo()
    assert torch.equal(labels, predict_labels(segmenter, image, how))


def test_random_protocols_give_as_many_labels_as_pixels(segmenter: Segmenter) -> None:
    rng = np.random.default_rng(0)
    for _ in range(12):
        height, width = (int(n) for n in rng.integers(1, 90, 2))
        crop = (int(rng.integers(8, 64)), int(rng.integers(8, 64)))
        how = Inference(
            resize=[None, {"size": [33, 47]}, {"short_side": 40, "long_side": 60}][rng.integers(3)],
            crop_size=crop if rng.random() < 0.5 else None,
            scales=(float(rng.uniform(0.6, 1.6)),),
            flip=bool(rng.integers(2)),
            scaling=("file", "network", "paddleseg")[rng.integers(3)],
            pad_multiple=int(rng.integers(1, 9)),
            final=("linear", "cubic")[rng.integers(2)],
        )
        labels = predict_labels(segmenter, picture(height, width), how)
        assert labels.shape == (1, height, width)
        assert labels.max() < 5
