"""ASPP, double attention and CGNL against their papers' definitions, written out slowly in float64."""

from itertools import product
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock
from isaseg.models.baselines import ASPP, CGNL, DoubleAttention, PyramidPooling
from isaseg.models.criss_cross import CrissCrossAttention, PlainCrissCross
from tests.models.references import (
    Size,
    cross,
    made,
    pixels_of,
    project,
    random_map,
    randomise,
    reference_stage,
)

SIZES = pytest.mark.parametrize("size", [(5, 4), (1, 6), (7, 3)])


def test_criss_cross_starts_as_the_identity() -> None:
    x = torch.randn(1, 16, 4, 5)
    assert torch.equal(CrissCrossAttention(16)(x), x)


def test_criss_cross_equals_its_definition() -> None:
    module = made(CrissCrossAttention, 16)
    x = random_map(1, 16, 3, 4)
    expected = x[0].flatten(1).T
    cells = list(product(range(3), range(4)))
    for _ in range(2):
        q, k, v = (project(layer, expected) for layer in (module.query, module.key, module.value))
        assert q.shape == (12, 2)
        rows = []
        for n, cell in enumerate(cells):
            group = [m for m, other in enumerate(cells) if cross(cell, other)]
            assert len(group) == 3 + 4 - 1
            rows.append(module.gamma * (torch.softmax(k[group] @ q[n], 0) @ v[group]) + expected[n])
        expected = torch.stack(rows)
    torch.testing.assert_close(module(x)[0].flatten(1).T, expected, rtol=0, atol=1e-12)


def test_plain_criss_cross_equals_its_definition() -> None:
    module = made(PlainCrissCross, 16)
    x = random_map(1, 16, 3, 4)
    pixels = {(r, c): x[0, :, r, c] for r, c in product(range(3), range(4))}
    for block in module.blocks:
        pixels = reference_stage(cast(AttentionBlock, block), pixels, cross)
    torch.testing.assert_close(
        module(x)[0].flatten(1).T, torch.stack(list(pixels.values())), rtol=0, atol=1e-12
    )


def stretch(count: int, length: int) -> Tensor:
    """Return bilinear resizing of `count` cells to `length` as a matrix, cell centres aligned."""
    at = ((torch.arange(length, dtype=torch.float64) + 0.5) * count / length - 0.5).clamp(0, count - 1)
    return (1 - (at[:, None] - torch.arange(count)).abs()).clamp(min=0)


def pool(count: int, length: int) -> Tensor:
    """Return averaging of L cells to n bins as a matrix, bin i from floor(i L / n) to ceil((i + 1) L / n)."""
    bins = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
    return torch.tensor(
        [[float(a <= j < b) / (b - a) for j in range(length)] for a, b in bins], dtype=torch.float64
    )


@pytest.mark.parametrize("size", [(12, 6), (7, 5), (1, 9)])
def test_pyramid_pooling_equals_its_definition(size: Size) -> None:
    module = made(PyramidPooling, 16)
    x = random_map(2, 16, *size)
    parts = []
    for count, branch in zip((1, 2, 3, 6), module.branches, strict=True):
        pooled = pool(count, size[0]) @ x @ pool(count, size[1]).T
        pixels = project(branch, pooled.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        parts.append(stretch(count, size[0]) @ pixels @ stretch(count, size[1]).T)
    torch.testing.assert_close(module(x), torch.cat(parts, 1), rtol=0, atol=1e-10)


@SIZES
def test_double_attention_equals_its_definition(size: Size) -> None:
    """One position after the other: its shares of descriptors that are means over all positions."""
    module = made(DoubleAttention, 6, value_channels=4, descriptors=3)
    x = random_map(2, 6, *size)
    images = []
    for image in x:
        x_NC = torch.stack(list(pixels_of(image).values()))
        a, b, d = (project(conv, x_NC) for conv in (module.value, module.gather, module.distribute))
        descriptors = []
        for m in range(3):
            weights = b[:, m].exp() / b[:, m].exp().sum()
            descriptors.append(sum(w * row for w, row in zip(weights, a, strict=True)))
        context = [
            sum(d[n, m].exp() / d[n].exp().sum() * descriptors[m] for m in range(3)) for n in range(len(x_NC))
        ]
        images.append(project(module.proj, torch.stack(cast(list[Tensor], context))).T.reshape(6, *size))
    torch.testing.assert_close(module(x), torch.stack(images), rtol=0, atol=1e-10)


@SIZES
@pytest.mark.parametrize("groups", [1, 2])
def test_cgnl_equals_dense_attention_over_channels_and_positions(size: Size, groups: int) -> None:
    """The matrix of every channel and position with every other is formed, which CGNL is there to avoid."""
    module = made(CGNL, 6, key_channels=4, groups=groups)
    x = random_map(2, 6, *size)
    wide = 4 // groups
    images = []
    for image in x:
        x_NC = image.flatten(1).T
        theta, phi, g = (project(conv, x_NC).T for conv in (module.theta, module.phi, module.g))  # (D, N)
        parts = []
        for group in range(groups):
            t, p, v = (y[group * wide : (group + 1) * wide].flatten() for y in (theta, phi, g))
            matrix = t[:, None] * p[None, :] / len(t) ** 0.5  # (D / G * N, D / G * N)
            context = (matrix @ v).view(wide, -1)
            out = 6 // groups
            y = module.proj.weight[group * out : (group + 1) * out, :, 0, 0] @ context
            y = (y - y.mean()) / (y.var(correction=0) + module.norm.eps).sqrt()
            parts.append(y)
        y = torch.cat(parts) * module.norm.weight[:, None] + module.norm.bias[:, None]
        images.append(y.view(6, *size))
    torch.testing.assert_close(module(x), torch.stack(images), rtol=0, atol=1e-10)


def test_cgnl_of_a_large_map_fits_into_float16() -> None:
    """A plain sum of half a million products would not."""
    module = CGNL(16, groups=1).half()
    nn.init.constant_(module.phi.weight, 0.25)
    nn.init.constant_(module.g.weight, 0.25)
    assert module(torch.ones(1, 16, 128, 128, dtype=torch.float16)).isfinite().all()


def test_published_widths_are_the_defaults() -> None:
    with torch.device("meta"):
        aspp, double, cgnl = ASPP(512), DoubleAttention(512), CGNL(512)
    shapes = [tuple(branch[0].weight.shape) for branch in aspp.atrous]  # type: ignore[index]
    assert shapes == [(256, 512, 3, 3)] * 3
    assert [branch[0].dilation[0] for branch in aspp.atrous] == [12, 24, 36]  # type: ignore[index]
    assert aspp.fuse[0].weight.shape == (512, 5 * 256, 1, 1)
    assert double.gather.weight.shape == (128, 512, 1, 1)
    assert cgnl.proj.weight.shape == (512, 256 // 8, 1, 1)


def test_aspp_is_torchvisions_without_its_dropout() -> None:
    from torchvision.models.segmentation.deeplabv3 import ASPP as Theirs

    torch.manual_seed(0)
    theirs = randomise(Theirs(6, [2, 4, 5], 6))
    ours = ASPP(6, (2, 4, 5), branch_channels=6).double().eval()
    pairs = zip(
        [ours.point, *ours.atrous, ours.pool, ours.fuse], [*theirs.convs, theirs.project], strict=True
    )
    for own, other in pairs:
        own.load_state_dict(dict(zip(own.state_dict(), other.state_dict().values(), strict=True)))
    x = random_map(2, 6, 9, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
