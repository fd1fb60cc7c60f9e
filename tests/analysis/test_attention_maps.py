"""Attention maps against the definition in float64, and against what the modules themselves do with one-hot values."""

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isaseg.analysis.attention_figures import attention_figure, pattern_figure
from isaseg.analysis.attention_maps import attention_maps, image_attention, weight_on
from isaseg.models import baselines, criss_cross, interlaced
from isaseg.models.attention_block import AttentionBlock
from isaseg.models.backbone import Backbone
from isaseg.models.segmenter import build_segmenter

ISA = interlaced.InterlacedSparseAttention
Hears = Callable[[tuple[int, int], tuple[int, int]], bool]


def lattice(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return (p[0] - q[0]) % 2 == 0 and (p[1] - q[1]) % 4 == 0


def window(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return p[0] // 2 == q[0] // 2 and p[1] // 4 == q[1] // 4


def cross(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return p[0] == q[0] or p[1] == q[1]


def everywhere(p: tuple[int, int], q: tuple[int, int]) -> bool:
    return True


def make(kind: Callable[..., nn.Module], channels: int = 6) -> Any:
    """Return a module in float64 whose norms and weights are far from neutral, in evaluation mode."""
    torch.manual_seed(3)
    module = kind(channels).double()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, -0.3, 0.3)
            child.running_mean.uniform_(-0.2, 0.2)
            child.running_var.uniform_(0.5, 1.5)
        elif isinstance(child, nn.Conv2d):
            nn.init.normal_(child.weight, std=1.5 / child.in_channels**0.5)
    return module.eval()


def all_positions(height: int, width: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(height) for j in range(width)]


def softmax_rows(block: AttentionBlock, x: Tensor, hears: Hears, real: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) over the positions that each may hear, (N, N); `real` are those that exist."""
    q, k = (project(x)[0].flatten(1).T for project in (block.query, block.key))  # (N, D)
    cells = all_positions(*x.shape[-2:])
    allowed = torch.tensor([[hears(p, r) for r in cells] for p in cells])
    if real is not None:
        allowed = allowed & real.flatten() | torch.eye(len(cells), dtype=torch.bool)
    scores = (q @ k.T) / q.shape[1] ** 0.5
    return scores.masked_fill(~allowed, -torch.inf).softmax(1)


def definition(
    module: Any, x: Tensor, stages: list[tuple[str, Hears]]
) -> tuple[list[Tensor], tuple[int, int]]:
    """Return the weights of each stage on the padded map, (N', N'), written without the project's regrouping."""
    size = [-(-n // p) * p for n, p in zip(x.shape[-2:], module.group_size, strict=True)]
    top, left = ((s - n) // 2 for s, n in zip(size, x.shape[-2:], strict=True))
    padded = torch.zeros(*x.shape[:2], *size, dtype=x.dtype)
    inside = (..., slice(top, top + x.shape[2]), slice(left, left + x.shape[3]))
    padded[inside] = x
    real = torch.zeros(size, dtype=torch.bool)
    real[inside] = True
    found = []
    for name, hears in stages:
        block = module.get_submodule(name)
        weights = softmax_rows(block, padded, hears, real if module.mask_padding else None)
        value = block.value(padded)[0].flatten(1).T
        padded = block.proj((weights @ value).T.reshape(1, -1, *size))
        found.append(weights)
    return found, (top, left)


def part(weights: Tensor, module: Any, x: Tensor, offset: tuple[int, int]) -> Tensor:
    """Return what (N', N') weights of the padded map assign to its real positions, (N, H, W)."""
    height, width = x.shape[-2:]
    size = [-(-n // p) * p for n, p in zip((height, width), module.group_size, strict=True)]
    rows, cols = slice(offset[0], offset[0] + height), slice(offset[1], offset[1] + width)
    return weights.view(*size, *size)[rows, cols, rows, cols].reshape(-1, height, width)


LONG, SHORT = ("long_range", lattice), ("short_range", window)
ORDERS = {"long_short": [LONG, SHORT], "short_long": [SHORT, LONG], "long": [LONG], "short": [SHORT]}


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 3), (9, 17)])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("order", ORDERS)
def test_isa_is_its_definition(order: str, depth: int, size: tuple[int, int], mask_padding: bool) -> None:
    module = make(
        functools.partial(ISA, group_size=(2, 4), order=order, mask_padding=mask_padding, depth=depth)
    )
    again = [(f"{name}_2", hears) for name, hears in ORDERS[order]]
    stages = ORDERS[order] + (again if depth == 2 else [])
    x = torch.randn(1, 6, *size, dtype=torch.float64)
    maps = attention_maps(module, x, all_positions(*size))
    with torch.no_grad():
        expected, offset = definition(module, x, stages)
    assert list(maps.stages) == [name for name, _ in stages]
    for found, weights in zip(maps.stages.values(), expected, strict=True):
        torch.testing.assert_close(found, part(weights, module, x, offset), rtol=0, atol=1e-12)
    product = functools.reduce(lambda before, after: after @ before, expected)
    torch.testing.assert_close(maps.product, part(product, module, x, offset), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (functools.partial(ISA, group_size=(2, 4)), (6, 8)),
        (functools.partial(ISA, group_size=(2, 4), order="short_long"), (5, 7)),
        (functools.partial(ISA, group_size=(2, 4), mask_padding=True), (5, 7)),
        (functools.partial(ISA, group_size=(2, 4), depth=2), (5, 7)),
        (functools.partial(ISA, group_size=(8, 8)), (9, 10)),
        (baselines.SelfAttention2d, (4, 5)),
        (baselines.SelfAttention2d, (9, 10)),  # more than 64 positions: the fused kernel
        (functools.partial(criss_cross.PlainCrissCross, passes=2), (4, 5)),
        (functools.partial(criss_cross.PlainCrissCross, passes=3), (4, 5)),
    ],
)
def test_the_module_itself_gives_one_hot_values_the_product(
    kind: Callable[..., nn.Module], size: tuple[int, int]
) -> None:
    """With one channel for each position, and values and outputs passed on unchanged, its output are the weights."""
    cells = size[0] * size[1]
    module = make(kind, cells)
    for block in module.modules():
        if isinstance(block, AttentionBlock):
            pass_on(block.value)
            pass_on(block.proj[0])
            norm = block.proj[1]
            norm.reset_parameters()
            norm.eps = 0.0
    x = torch.eye(cells, dtype=torch.float64).view(1, cells, *size)
    with torch.no_grad():
        heard = module(x)[0].flatten(1).T.reshape(cells, *size)  # (output position, input channel)
    product = attention_maps(module, x, all_positions(*size)).product
    torch.testing.assert_close(product, heard, rtol=0, atol=1e-12)


def pass_on(conv: nn.Conv2d) -> None:
    nn.init.dirac_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (functools.partial(ISA, group_size=(2, 4)), ["long_range", "short_range"]),
        (functools.partial(ISA, group_size=(2, 4), mask_padding=True), ["long_range", "short_range"]),
        (baselines.SelfAttention2d, ["dense"]),
        (criss_cross.PlainCrissCross, ["criss_cross", "criss_cross_2"]),
    ],
)
def test_weights_are_distributions_with_names(kind: Callable[..., nn.Module], names: list[str]) -> None:
    module = make(kind)
    for size, whole in (((6, 8), True), ((5, 7), getattr(module, "mask_padding", True))):
        maps = attention_maps(module, torch.randn(1, 6, *size, dtype=torch.float64), [(0, 0), (4, 3), (2, 6)])
        assert list(maps.stages) == names
        for weights in (*maps.stages.values(), maps.product):
            assert weights.shape == (3, *size)
            assert weights.min() >= 0
            sums = weights.sum((1, 2))
            assert torch.allclose(sums, torch.ones_like(sums)) == whole
            assert sums.max() < 1 + 1e-12


def test_a_stage_alone_is_its_product() -> None:
    maps = attention_maps(
        make(baselines.SelfAttention2d), torch.randn(1, 6, 4, 5, dtype=torch.float64), [(1, 2)]
    )
    assert torch.equal(maps.product, maps.stages["dense"])


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_dense_attention_never_holds_its_scores() -> None:
    module = baselines.SelfAttention2d(8).eval()
    with Largest() as largest:
        maps = attention_maps(module, torch.randn(1, 8, 48, 48), [(3, 4)])
    assert largest.numbers < (48 * 48) ** 2 / 20
    torch.testing.assert_close(maps.product.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("kind", [functools.partial(ISA, group_size=(4, 4)), baselines.SelfAttention2d])
def test_a_pixel_of_a_picture_is_the_position_it_lies_in(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    segmenter = build_segmenter(
        Backbone("test_resnet", out_indices=[1]), 8, kind, 16, aux_channels=None
    ).eval()
    image = torch.randint(0, 256, (3, 62, 86), dtype=torch.uint8)
    seen = []
    handle = segmenter.head.attention.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        segmenter(image[None])
    handle.remove()
    maps = image_attention(segmenter, image, [(0, 0), (61, 85), (23, 40), (27, 40)])
    expected = attention_maps(segmenter.head.attention, seen[0], [(0, 0), (15, 21), (6, 10), (7, 10)])
    assert maps.product.shape == (4, 16, 22)
    assert torch.equal(maps.product, expected.product)
    assert not torch.equal(maps.product[2], maps.product[3])


def test_the_weight_on_a_region_is_counted_by_area() -> None:
    weights = torch.tensor([[[0.5, 0.25], [0.125, 0.125]], [[0.0, 1.0], [0.0, 0.0]]])
    region = torch.zeros(4, 8, dtype=torch.bool)
    region[:2, :4] = True  # all of position (0, 0)
    region[:1, 4:] = True  # half of position (0, 1)
    assert weight_on(weights, region).tolist() == [0.625, 0.5]


def test_nothing_is_left_behind() -> None:
    module = make(functools.partial(ISA, group_size=(2, 4)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    maps = attention_maps(module, x, [(0, 0)])
    with pytest.raises(RuntimeError):
        attention_maps(module, torch.randn(1, 5, 6, 8, dtype=torch.float64), [(0, 0)])
    assert not maps.product.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(child._forward_pre_hooks for child in module.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_the_pattern_is_drawn_as_it_is() -> None:
    figure = pattern_figure((2, 4), (6, 8), (3, 5))
    drawn = [np.asarray(axes.collections[0].get_array()).reshape(6, 8) for axes in figure.axes]
    for found, hears in zip(drawn, (lattice, window, everywhere), strict=True):
        assert found.tolist() == [[float(hears((3, 5), (i, j))) for j in range(8)] for i in range(6)]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["long-range stage: 6 positions", "short-range stage: 8 positions", "both: 48 positions"]
    with pytest.raises(ValueError, match=r"map of 6 x 8, got position=\(6, 0\)"):
        pattern_figure((2, 4), (6, 8), (6, 0))


def test_weights_are_drawn_over_the_picture() -> None:
    x = torch.randn(1, 6, 5, 8, dtype=torch.float64)
    image, pixels = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8), [(6, 9), (18, 30)]
    positions = [(1, 2), (4, 7)]
    isa = attention_maps(make(functools.partial(ISA, group_size=(2, 4))), x, positions)
    dense = attention_maps(make(baselines.SelfAttention2d), x, positions)
    figure = attention_figure(image, pixels, {"ISA": isa, "dense": dense})
    assert len(figure.axes) == 2 * 5
    first = [axes.get_title().split("\n") for axes in figure.axes[:5]]
    assert [title[:2] for title in first[:4]] == [
        ["picture", "pixel (6, 9)"],
        ["ISA", "long-range stage"],
        ["ISA", "short-range stage"],
        ["ISA", "product of the stages"],
    ]
    assert first[1][2].startswith("4 positions, "), "rows 1 and 3, columns 2 and 6; row 5 is padding"
    padding = 1 - float(isa.product[0].sum())
    assert first[3][3] == f"{padding:.0%} on padding" and padding > 0.05
    assert first[4] == ["dense", f"40 positions, largest {float(dense.product[0].max()):.2g}"]
    for axes, weights in zip(
        figure.axes[6:], (*isa.stages.values(), isa.product, dense.product), strict=True
    ):
        heat = np.asarray(axes.images[1].get_array())
        assert np.array_equal(heat[..., 3] > 0, weights[1].numpy() > 0), "clear outside the pattern"
        assert heat[..., 3].argmax() == weights[1].argmax()
        assert axes.lines[0].get_xdata()[0] == 30 and axes.lines[0].get_ydata()[0] == 18
    figure.savefig(io.BytesIO())


MAP = torch.zeros(1, 8, 6, 8)


@pytest.mark.parametrize(
    ("module", "x", "positions", "message"),
    [
        (ISA(8), MAP, [(0, 0)], "call module.eval"),
        (baselines.NoContext(8).eval(), MAP, [(0, 0)], "made of attention blocks, got NoContext"),
        (criss_cross.CrissCrossAttention(8).eval(), MAP, [(0, 0)], "got CrissCrossAttention"),
        (interlaced.ParallelInterlacedSparseAttention(8).eval(), MAP, [(0, 0)], "give one of module.blocks"),
        (ISA(8).eval(), MAP, [(0, 0), (6, 0)], r"map of 6 x 8, got position=\(6, 0\)"),
        (ISA(8).eval(), MAP, [(0, -1)], r"got position=\(0, -1\)"),
        (ISA(8).eval(), MAP, [], "at least one position"),
        (ISA(8).eval(), MAP[0], [(0, 0)], r"expected a map \(1, C, H, W\), got \(8, 6, 8\)"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    module: nn.Module, x: Tensor, positions: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attention_maps(module, x, positions)


def test_a_pixel_outside_and_a_network_in_training_are_refused() -> None:
    segmenter = build_segmenter(Backbone("test_resnet", out_indices=[1]), 8, ISA, 16, aux_channels=None)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"segmenter.eval\(\)"):
        image_attention(segmenter, image, [(0, 0)])
    with pytest.raises(ValueError, match=r"picture of 32 x 32, got pixel=\(32, 0\)"):
        image_attention(segmenter.eval(), image, [(32, 0)])
