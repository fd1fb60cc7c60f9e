"""Attention maps against the definition in float64, and against what the modules themselves do with one-hot values."""

import functools
import io
import itertools
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
from tests.models.references import Pattern, allowed, everything, lattice, random_map, randomise, window

ISA = interlaced.InterlacedSparseAttention
GROUP = (2, 4)
GROUPED = functools.partial(ISA, group_size=GROUP)


def make(kind: Callable[..., nn.Module], channels: int = 6) -> Any:
    torch.manual_seed(3)
    return randomise(kind(channels))


def all_positions(height: int, width: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(height), range(width)))


def softmax_rows(block: AttentionBlock, x: Tensor, hears: Pattern, real: Tensor | None) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) over the positions that each may hear, (N, N); `real` are those that exist."""
    q, k = (project(x)[0].flatten(1).T for project in (block.query, block.key))  # (N, D)
    mask = allowed((x.shape[2], x.shape[3]), hears)
    if real is not None:
        mask = mask & real.flatten() | torch.eye(len(mask), dtype=torch.bool)
    scores = (q @ k.T) / q.shape[1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(1)


def definition(module: Any, x: Tensor, stages: list[tuple[str, Pattern]]) -> list[Tensor]:
    """Return the weights of each stage and their product, (N, H, W), written without the project's regrouping."""
    height, width = x.shape[-2:]
    size = [-(-n // p) * p for n, p in zip((height, width), module.group_size, strict=True)]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    rows, columns = slice(top, top + height), slice(left, left + width)
    padded = torch.zeros(*x.shape[:2], *size, dtype=x.dtype)
    padded[..., rows, columns] = x
    real = torch.zeros(size, dtype=torch.bool)
    real[rows, columns] = True
    found = []  # (N', N'), of the padded map
    for name, hears in stages:
        block = module.get_submodule(name)
        found.append(softmax_rows(block, padded, hears, real if module.mask_padding else None))
        value = block.value(padded)[0].flatten(1).T
        padded = block.proj((found[-1] @ value).T.reshape(1, -1, *size))
    found.append(functools.reduce(lambda before, after: after @ before, found))
    return [w.view(*size, *size)[rows, columns, rows, columns].reshape(-1, height, width) for w in found]


LONG, SHORT = ("long_range", lattice(GROUP)), ("short_range", window(GROUP))
ORDERS = {"long_short": [LONG, SHORT], "short_long": [SHORT, LONG], "long": [LONG], "short": [SHORT]}


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 3), (9, 17)])
@pytest.mark.parametrize(("order", "depth"), [*((order, 1) for order in ORDERS), ("long_short", 2)])
def test_isa_is_its_definition(order: str, depth: int, size: tuple[int, int], mask_padding: bool) -> None:
    module = make(functools.partial(GROUPED, order=order, mask_padding=mask_padding, depth=depth))
    again = [(f"{name}_2", hears) for name, hears in ORDERS[order]]
    stages = ORDERS[order] + (again if depth == 2 else [])
    x = random_map(1, 6, *size)
    maps = attention_maps(module, x, all_positions(*size))
    with torch.no_grad():
        expected = definition(module, x, stages)
    assert list(maps.stages) == [name for name, _ in stages]
    for found, weights in zip((*maps.stages.values(), maps.product), expected, strict=True):
        torch.testing.assert_close(found, weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (GROUPED, (6, 8)),
        (functools.partial(GROUPED, order="short_long"), (5, 7)),
        (functools.partial(GROUPED, mask_padding=True), (5, 7)),
        (functools.partial(GROUPED, depth=2), (5, 7)),
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
    [(baselines.SelfAttention2d, ["dense"]), (criss_cross.PlainCrissCross, ["criss_cross", "criss_cross_2"])],
)
def test_weights_are_distributions_with_names(kind: Callable[..., nn.Module], names: list[str]) -> None:
    maps = attention_maps(make(kind), random_map(1, 6, 5, 7), [(0, 0), (4, 3)])
    assert list(maps.stages) == names
    for weights in (*maps.stages.values(), maps.product):
        assert weights.shape == (2, 5, 7)
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(2, dtype=torch.float64))


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
    module = make(GROUPED)
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
    for found, hears in zip(drawn, (lattice(GROUP), window(GROUP), everything), strict=True):
        assert found.tolist() == [[float(hears((3, 5), (i, j))) for j in range(8)] for i in range(6)]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["long-range stage: 6 positions", "short-range stage: 8 positions", "both: 48 positions"]
    with pytest.raises(ValueError, match=r"inside 6 x 8, got \(6, 0\)"):
        pattern_figure((2, 4), (6, 8), (6, 0))


def test_weights_are_drawn_over_the_picture() -> None:
    torch.manual_seed(0)  # with some maps less than 0.05 of the weight lies on padding
    x = torch.randn(1, 6, 5, 8, dtype=torch.float64)
    image, pixels = torch.randint(0, 256, (3, 20, 32), dtype=torch.uint8), [(6, 9), (18, 30)]
    positions = [(1, 2), (4, 7)]
    isa = attention_maps(make(GROUPED), x, positions)
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
        heat = axes.images[1].get_array()
        assert np.array_equal(~np.ma.getmaskarray(heat), weights[1].numpy() > 0), "clear outside the pattern"
        assert heat.argmax() == weights[1].argmax()
        assert axes.lines[0].get_xdata()[0] == 30 and axes.lines[0].get_ydata()[0] == 18
    figure.savefig(io.BytesIO())


MAP = torch.zeros(1, 8, 6, 8)


@pytest.mark.parametrize(
    ("module", "x", "positions", "message"),
    [
        (ISA(8), MAP, [(0, 0)], "call module.eval"),
        (
            baselines.NoContext(8).eval(),
            MAP,
            [(0, 0)],
            "attention blocks, got NoContext; choose .* isa, dense or axial",
        ),
        (criss_cross.CrissCrossAttention(8).eval(), MAP, [(0, 0)], "got CrissCrossAttention"),
        (interlaced.ParallelInterlacedSparseAttention(8).eval(), MAP, [(0, 0)], "give one of module.blocks"),
        (ISA(8).eval(), MAP, [(0, 0), (6, 0)], r"inside 6 x 8, got \(6, 0\)"),
        (ISA(8).eval(), MAP, [(0, -1)], r"got \(0, -1\)"),
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
    with pytest.raises(ValueError, match=r"inside 32 x 32, got \(32, 0\)"):
        image_attention(segmenter.eval(), image, [(32, 0)])
