"""Neighbourhood attention, pooled keys and linear attention against their definitions, written out slowly in float64."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isaseg.models import neighbourhood as patterns
from isaseg.models.attention_block import AttentionBlock
from isaseg.models.attention_kernels import by_definition
from isaseg.models.baselines import SelfAttention2d
from isaseg.models.linear_attention import LinearAttention, linear
from isaseg.models.neighbourhood import Neighbourhood, fits_natten, neighbourhood
from isaseg.models.pooled_keys import PooledKeys
from tests.models.references import (
    Pattern,
    Size,
    everything,
    made,
    offset,
    pixels_of,
    project,
    random_map,
    reference_stage,
    replace_relu,
    window,
)
from tests.models.test_grouped_siblings import MODULES


def as_map(pixels: dict[Size, Tensor], size: Size) -> Tensor:
    return torch.stack(list(pixels.values()), dim=1).reshape(-1, *size)


# ---------------------------------------------------------------- neighbourhood attention


def nearest(at: int, length: int, kernel: int, dilation: int) -> range:
    """Return the `kernel` members of the class of `at` around it, or those next to the border, or all."""
    members = range(at % dilation, length, dilation)
    first = max(min(members.index(at) - kernel // 2, len(members) - kernel), 0)
    return members[first : first + kernel]


def near(size: Size, kernel: int, dilation: int) -> Pattern:
    return lambda a, b: all(
        other in nearest(at, length, kernel, dilation) for at, other, length in zip(a, b, size, strict=True)
    )


# sizes that hold all windows, have classes of different lengths, lack neighbours in one direction or in both
NEIGHBOURS = [
    ((9, 8), 3, (1, 2)),
    ((7, 5), 3, (3, 1)),
    ((6, 11), 5, (2, 2)),
    ((1, 9), 3, (1, 2)),
    ((9, 2), 5, (1, 1)),
    ((3, 4), 7, (1, 8)),
    ((4, 3), 1, (1,)),
]


@pytest.mark.parametrize("way", ["gradient", "no gradient", "definition"])
@pytest.mark.parametrize("size, kernel, dilations", NEIGHBOURS)
def test_neighbourhood_equals_its_definition(
    size: Size, kernel: int, dilations: tuple[int, ...], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "_SIDE", 2)  # of tiles, of which there are then several
    monkeypatch.setattr(patterns, "_TILES", 1)
    module = made(Neighbourhood, 6, kernel_size=kernel, dilations=dilations)
    x = random_map(2, 6, *size)
    images = []
    for image in x:
        pixels = pixels_of(image)
        for block, dilation in zip(module.blocks, dilations, strict=True):
            pixels = reference_stage(cast(AttentionBlock, block), pixels, near(size, kernel, dilation))
        images.append(as_map(pixels, size))
    with torch.set_grad_enabled(way == "gradient"), by_definition() if way == "definition" else nullcontext():
        out = module(x)
    torch.testing.assert_close(out, torch.stack(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size, kernel, dilation", [((20, 33), 7, 1), ((17, 26), 5, 3), ((9, 40), 3, 2)])
def test_tiles_have_the_gradients_of_the_definition(size: Size, kernel: int, dilation: int) -> None:
    given = [random_map(2, channels, *size).requires_grad_() for channels in (4, 4, 6)]
    upstream = random_map(2, 6, *size)
    found = []
    for context in (nullcontext(), by_definition()):
        with context:
            out = neighbourhood(*given, kernel, dilation)
        found.append(torch.autograd.grad(out, given, upstream))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(5, 4), (1, 6), (7, 7)])
def test_a_large_neighbourhood_is_dense_attention(size: Size) -> None:
    dense = made(SelfAttention2d, 6)
    for kernel in (7, 13):
        module = Neighbourhood(6, kernel_size=kernel, dilations=[1]).double().eval()
        module.blocks[0].load_state_dict(dense.block.state_dict())
        torch.testing.assert_close(
            module(random_map(2, 6, *size)), dense(random_map(2, 6, *size)), rtol=0, atol=1e-12
        )


def test_few_tiles_at_a_time_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is gathered: of one row of two tiles, with 8 + 2 keys a side."""
    monkeypatch.setattr(patterns, "_TILES", 2)
    gathered = []
    real = Tensor.index_select
    monkeypatch.setattr(Tensor, "index_select", lambda *call: gathered.append(len(call[2])) or real(*call))
    q = torch.randn(1, 8, 24, 16)
    with torch.no_grad():
        neighbourhood(q, q, q, 3, 1)
    assert max(gathered) == 2 * 10 * 10


# ---------------------------------------------------------------- NATTEN


def slow_na2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, dilation: int, scale: float
) -> Tensor:
    """Neighbourhood attention of one image and one head, (1, H, W, 1, D)."""
    size = (query.shape[1], query.shape[2])
    out = torch.empty_like(value)
    for r, c in product(range(size[0]), range(size[1])):
        rows, columns = (
            nearest(at, length, kernel_size, dilation) for at, length in zip((r, c), size, strict=True)
        )
        cells = list(product(rows, columns))
        keys, values = (torch.stack([t[0, i, j, 0] for i, j in cells]).double() for t in (key, value))
        out[0, r, c, 0] = (scale * keys @ query[0, r, c, 0].double()).softmax(0) @ values
    return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A stand-in for NATTEN, called as on a GPU; the arguments of its calls."""
    calls: list[dict[str, Any]] = []

    def na2d(*tensors: Tensor, **kwargs: Any) -> Tensor:
        calls.append({"shapes": [tuple(t.shape) for t in tensors], **kwargs})
        return slow_na2d(*tensors, **kwargs)

    monkeypatch.setitem(sys.modules, "natten", cast(Any, SimpleNamespace(na2d=na2d, HAS_LIBNATTEN=True)))
    monkeypatch.setattr(patterns, "fits_natten", lambda device, *rest: fits_natten("cuda", *rest))
    patterns._natten.cache_clear()
    monkeypatch.setattr(patterns, "_natten", patterns._natten.__wrapped__)
    return calls


def halves(*size: int) -> list[Tensor]:
    return [random_map(1, width, *size, seed=width).bfloat16() for width in (8, 8, 16)]


def test_natten_gives_the_same(calls: list[dict[str, Any]]) -> None:
    q, k, v = halves(7, 9)
    out = neighbourhood(q, k, v, 3, 2)
    shapes = [(1, 7, 9, 1, 8), (1, 7, 9, 1, 8), (1, 7, 9, 1, 16)]
    assert calls == [{"shapes": shapes, "kernel_size": 3, "dilation": 2, "scale": 8**-0.5}]
    with by_definition():
        want = neighbourhood(q, k, v, 3, 2)
    assert len(calls) == 1
    torch.testing.assert_close(out, want, rtol=0, atol=0.02)
    torch.testing.assert_close(
        out.double(), neighbourhood(q.double(), k.double(), v.double(), 3, 2), rtol=0, atol=0.02
    )


def test_natten_is_left_out_where_it_does_not_fit(
    calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = halves(7, 9)
    neighbourhood(q, k, v, 3, 3)  # 9 positions, but 7 rows
    neighbourhood(q, k, v, 1, 1)
    neighbourhood(q, k, v.float(), 3, 1)
    neighbourhood(q.float(), k.float(), v.float(), 3, 1)
    neighbourhood(q, k, v[:, :15], 3, 1)
    neighbourhood(q[:, :7], k[:, :7], v, 3, 1)
    monkeypatch.setattr(sys.modules["natten"], "HAS_LIBNATTEN", False)
    neighbourhood(q, k, v, 3, 1)
    monkeypatch.setitem(sys.modules, "natten", None)  # importing it fails
    neighbourhood(q, k, v, 3, 1)
    assert not calls
    assert not fits_natten("cpu", {torch.bfloat16}, (7, 9), 3)


# ---------------------------------------------------------------- pooled keys


def shifted(group: Size, shift: Size) -> Pattern:
    inside = window(group)
    return lambda a, b: inside((a[0] + shift[0], a[1] + shift[1]), (b[0] + shift[0], b[1] + shift[1]))


def pooled_stage(
    block: AttentionBlock, pixels: dict[Size, Tensor], group: Size, shift: Size
) -> dict[Size, Tensor]:
    """Let each pixel attend to the mean key and value of each window of the frame `shift` around the map."""
    x_NC = torch.stack(list(pixels.values()))
    q, k, v = (project(layers, x_NC) for layers in (block.query, block.key, block.value))
    windows: dict[Size, list[int]] = {}
    for n, (r, c) in enumerate(pixels):
        windows.setdefault(((r + shift[0]) // group[0], (c + shift[1]) // group[1]), []).append(n)
    keys, values = (torch.stack([t[own].mean(0) for own in windows.values()]) for t in (k, v))
    context = [torch.softmax(keys @ each / q.shape[1] ** 0.5, 0) @ values for each in q]
    return dict(zip(pixels, project(block.proj, torch.stack(context)), strict=True))


@pytest.mark.parametrize(
    "size, group",
    [
        ((4, 6), (2, 3)),
        ((7, 5), (2, 3)),
        ((7, 5), (4, 4)),
        ((1, 9), (2, 4)),
        ((3, 2), (8, 8)),
        ((4, 5), (1, 1)),
    ],
)
def test_pooled_keys_equal_their_definition(size: Size, group: Size) -> None:
    module = made(PooledKeys, 6, window_size=group)
    x, shift = random_map(2, 6, *size), offset(size, group)
    images = []
    for image in x:
        pixels = reference_stage(module.windows, pixels_of(image), shifted(group, shift))
        images.append(as_map(pooled_stage(module.pooled, pixels, group, shift), size))
    torch.testing.assert_close(module(x), torch.stack(images), rtol=0, atol=1e-12)


def test_pooled_keys_of_single_positions_are_dense_attention() -> None:
    module, dense = made(PooledKeys, 6, window_size=(1, 1)), made(SelfAttention2d, 6)
    dense.block.load_state_dict(module.pooled.state_dict())
    x = random_map(2, 6, 5, 4)
    alone = module.windows(x, lambda q, k, v: v)  # of a single position the context is its value
    torch.testing.assert_close(module(x), dense(alone), rtol=0, atol=1e-12)


def test_the_pooled_stage_has_a_score_for_every_position_and_window() -> None:
    first, second = (PooledKeys(6, window_size=size).cost(7, 10) for size in ((4, 4), (7, 10)))
    assert first.score_entries == 6 * 16**2 + 70 * 6
    assert second.score_entries == 70**2 + 70


# ---------------------------------------------------------------- linear attention


@pytest.mark.parametrize("size", [(5, 4), (1, 6), (7, 3)])
def test_linear_attention_equals_its_definition(size: Size) -> None:
    """The matrix of all weights is formed, which linear attention is there to avoid."""
    module = made(LinearAttention, 6)
    block, x = module.block, random_map(2, 6, *size)
    images = []
    for image in x:
        x_NC = image.flatten(1).T
        q, k, v = (project(layers, x_NC) for layers in (block.query, block.key, block.value))
        weights_NN = q @ k.T + 1e-6
        context = weights_NN / weights_NN.sum(1, keepdim=True) @ v
        images.append(project(block.proj, context).T.reshape(6, *size))
    torch.testing.assert_close(module(x), torch.stack(images), rtol=0, atol=1e-10)


def test_a_query_that_meets_no_key_gets_the_mean_value() -> None:
    q, k, v = (random_map(1, 4, 3, 5, seed=seed).abs() for seed in range(3))
    q[:, :2], k[:, 2:] = 0, 0
    out = linear(q, k, v)
    torch.testing.assert_close(out, v.mean((2, 3), keepdim=True).expand_as(v), rtol=0, atol=1e-12)


def test_linear_attention_of_halves_sums_in_float32() -> None:
    """4096 equal products: in bfloat16 the sum would stop at 256, in float16 it would overflow."""
    for dtype in (torch.bfloat16, torch.float16):
        one = torch.ones(1, 8, 64, 64, dtype=dtype)
        with torch.autocast("cpu", torch.bfloat16):
            out = linear(32 * one, one, 3 * one)
        assert out.dtype == dtype
        assert (out == 3).all()


def test_linear_attention_has_a_cost_that_grows_with_the_map() -> None:
    with FlopCounterMode(display=False) as counter, by_definition():
        LinearAttention(6)(torch.randn(1, 6, 4, 5))
    assert counter.get_total_flops() == 2 * LinearAttention(6).cost(4, 5).mult_adds
    assert LinearAttention(6).cost(8, 5).mult_adds == 2 * LinearAttention(6).cost(4, 5).mult_adds


# ---------------------------------------------------------------- what reaches a position

PLACES = (7, 10)
SUPPORTS: dict[str, tuple[Callable[[], nn.Module], list[Pattern]]] = {
    "neighbourhood, dilated": (
        lambda: Neighbourhood(6, kernel_size=3, dilations=(3, 1)),
        [near(PLACES, 3, 3), near(PLACES, 3, 1)],
    ),
    "pooled keys": (lambda: PooledKeys(6, window_size=(2, 3)), [everything]),
    "linear": (lambda: LinearAttention(6), [everything]),
    **{name: (build, stages(PLACES)) for name, (build, stages, _) in MODULES.items()},
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_position_depends_on_what_the_stages_join_and_nothing_else(name: str) -> None:
    build, stages = SUPPORTS[name]
    module = made(build)
    replace_relu(module, nn.Softplus)  # a ReLU may hide a path
    x = random_map(1, 6, *PLACES).requires_grad_()
    gradients = [torch.autograd.grad(y, x, retain_graph=True)[0][0] for y in module(x)[0].sum(0).flatten()]
    cells = list(product(range(PLACES[0]), range(PLACES[1])))
    want = torch.eye(len(cells))
    for joins in stages:
        want = torch.tensor([[float(joins(a, b)) for b in cells] for a in cells]) @ want
    assert torch.equal(torch.stack(gradients).abs().sum(1).flatten(1) > 0, want > 0)
