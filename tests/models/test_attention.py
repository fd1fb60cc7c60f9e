"""The mathematics of the context modules, against references that share no code with them."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isaseg.models import attend as kernels
from isaseg.models.attend import by_definition, holds_scores
from isaseg.models.attention import (
    InterlacedSparseAttention,
    ParallelInterlacedSparseAttention,
    SelfAttention2d,
)
from isaseg.models.block import AttentionBlock, Pointwise
from isaseg.models.context import ASPP, CGNL, DoubleAttention, NoContext, PyramidPooling
from isaseg.models.cores import dense, long_range, short_range
from isaseg.models.criss_cross import CrissCrossAttention, PlainCrissCross, criss_cross
from isaseg.models.head import ContextHead
from isaseg.models.regroup import (
    deinterlace,
    interlace,
    merge_windows,
    pad_to_multiple,
    split_windows,
)
from tests.reliability.small import STRESS

Size = tuple[int, int]
Pattern = Callable[[Size, Size], bool]

# (H, W), (P_h, P_w): divisible, prime, one row, one column, smaller than the group, P = (1, 1), P = (H, W)
CASES: list[tuple[Size, Size]] = [
    ((4, 6), (2, 3)),
    ((8, 4), (4, 4)),
    ((7, 5), (2, 3)),
    ((7, 5), (4, 4)),
    ((1, 9), (2, 4)),
    ((9, 1), (4, 2)),
    ((3, 2), (8, 8)),
    ((1, 1), (3, 3)),
    ((4, 5), (1, 1)),
    ((4, 5), (4, 5)),
]
MODULES: dict[str, Callable[[int], nn.Module]] = {
    "isa": partial(InterlacedSparseAttention, group_size=(4, 2)),
    "isa_masked": partial(InterlacedSparseAttention, group_size=(4, 2), mask_padding=True),
    "isa_short_long": partial(InterlacedSparseAttention, group_size=(2, 3), order="short_long"),
    "isa_long": partial(InterlacedSparseAttention, group_size=(3, 3), order="long", value_bias=False),
    "isa_short": partial(InterlacedSparseAttention, group_size=(3, 2), order="short"),
    "parallel": partial(ParallelInterlacedSparseAttention, group_sizes=[[4, 2], [3, 3], [2, 2]]),
    "dense": partial(SelfAttention2d, value_channels=12),
    "criss_cross": CrissCrossAttention,
    "plain_criss_cross": PlainCrissCross,
    "pyramid": PyramidPooling,
    "isa_deep": partial(InterlacedSparseAttention, group_size=(4, 2), depth=3),
    "aspp": partial(ASPP, rates=[1, 4]),
    "double_attention": partial(DoubleAttention, value_channels=6),
    "cgnl": partial(CGNL, groups=2),
    "none": NoContext,
}
ISA: Any = InterlacedSparseAttention  # to be called wrongly
every_module = pytest.mark.parametrize("name", MODULES)


def make(name: str, channels: int = 16) -> nn.Module:
    """Return a float64 module in eval mode whose batch norms and gates do something."""
    torch.manual_seed(0)
    return randomise(MODULES[name](channels))


def randomise(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, 0.2, 1.0)
            nn.init.normal_(cast(Tensor, child.running_mean), 0, 0.2)
            nn.init.uniform_(cast(Tensor, child.running_var), 0.1, 0.5)
        if isinstance(child, nn.GroupNorm):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, 0.2, 1.0)
        if isinstance(child, CrissCrossAttention):
            nn.init.constant_(child.gamma, 0.7)
    return module.double().eval()


def random_map(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def offset(size: Size, group: Size) -> Size:
    """Return what published code pads at the top and left: half of the missing rows and columns."""
    return -size[0] % group[0] // 2, -size[1] % group[1] // 2


def lattice(group: Size) -> Pattern:
    return lambda a, b: (a[0] - b[0]) % group[0] == 0 and (a[1] - b[1]) % group[1] == 0


def window(group: Size) -> Pattern:
    return lambda a, b: a[0] // group[0] == b[0] // group[0] and a[1] // group[1] == b[1] // group[1]


def cross(a: Size, b: Size) -> bool:
    return a[0] == b[0] or a[1] == b[1]


def everything(a: Size, b: Size) -> bool:
    return True


def allowed(size: Size, pattern: Pattern, shift: Size = (0, 0)) -> Tensor:
    """Return which position may attend to which, (N, N), for a map `shift` away from its frame's corner."""
    cells = [(r + shift[0], c + shift[1]) for r, c in product(range(size[0]), range(size[1]))]
    return torch.tensor([[pattern(a, b) for b in cells] for a in cells])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Dense attention under a mask (N, N), written out."""
    scores = q.flatten(2).transpose(1, 2) @ k.flatten(2) * scale
    weights = scores.exp() * mask
    weights = weights / weights.sum(-1, keepdim=True)
    return (v.flatten(2) @ weights.transpose(1, 2)).reshape(v.shape)


# ---------------------------------------------------------------- regrouping

sides = st.integers(1, 5)


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, sides, sides, sides)
def test_regrouping_is_inverted_exactly(b: int, c: int, q_h: int, q_w: int, p_h: int, p_w: int) -> None:
    x = torch.randn(b, c, q_h * p_h, q_w * p_w)
    lattices, windows = interlace(x, (p_h, p_w)), split_windows(x, (p_h, p_w))
    assert lattices.shape == (b * p_h * p_w, c, q_h, q_w)
    assert windows.shape == (b * q_h * q_w, c, p_h, p_w)
    assert torch.equal(deinterlace(lattices, (p_h, p_w)), x)
    assert torch.equal(merge_windows(windows, (q_h * p_h, q_w * p_w)), x)


def test_every_position_joins_the_group_of_its_definition() -> None:
    x = torch.arange(2 * 3 * 6 * 8).view(2, 3, 6, 8)
    lattices, windows = interlace(x, (2, 4)), split_windows(x, (2, 4))
    for b, i, j in product(range(2), range(6), range(8)):
        assert torch.equal(lattices[b * 8 + i % 2 * 4 + j % 4, :, i // 2, j // 4], x[b, :, i, j])
        assert torch.equal(windows[b * 6 + i // 2 * 2 + j // 4, :, i % 2, j % 4], x[b, :, i, j])


@pytest.mark.parametrize("regroup", [interlace, split_windows])
def test_regrouping_refuses_what_does_not_divide(regroup: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"multiples of group_size=\(4, 4\), got height=8, width=6; pad it"):
        regroup(torch.zeros(1, 1, 8, 6), (4, 4))


def test_padding_puts_the_smaller_half_at_the_top_and_left() -> None:
    padded, shift = pad_to_multiple(torch.ones(1, 1, 5, 3), (8, 4))
    assert shift == (1, 0)
    assert padded[0, 0].nonzero().tolist() == [[r, c] for r in range(1, 6) for c in range(3)]
    assert padded.shape == (1, 1, 8, 4)
    assert pad_to_multiple(torch.ones(1, 1, 8, 4), (8, 4))[0].sum() == 32


# ---------------------------------------------------------------- attention over maps


@pytest.mark.parametrize("size, group", CASES)
@pytest.mark.parametrize("core", ["long", "short", "cross", "dense"])
def test_cores_equal_dense_attention_under_a_mask(core: str, size: Size, group: Size) -> None:
    q, k, v = (random_map(2, c, *size, seed=s).requires_grad_() for s, c in enumerate((4, 4, 7)))
    if core == "long":
        out, mask, scale = long_range(q, k, v, group), allowed(size, lattice(group)), 0.5
    elif core == "short":
        out, mask, scale = short_range(q, k, v, group), allowed(size, window(group), offset(size, group)), 0.5
    elif core == "cross":
        out, mask, scale = criss_cross(q, k, v), allowed(size, cross), 1.0
    else:
        out, mask, scale = dense(q, k, v), allowed(size, everything), 0.5
    expected = attend(q, k, v, mask, scale)
    upstream = random_map(*out.shape, seed=9)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    for got, want in zip(
        *(torch.autograd.grad(o, (q, k, v), upstream) for o in (out, expected)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_values_may_be_narrower_than_keys() -> None:
    q, k, v = (random_map(1, c, 3, 4, seed=c) for c in (6, 6, 2))
    expected = attend(q, k, v, allowed((3, 4), everything), 6**-0.5)
    torch.testing.assert_close(dense(q, k, v), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", [(2, 3), (3, 4)])
def test_gradcheck(group: Size) -> None:
    maps = tuple(random_map(1, c, 4, 6, seed=c).requires_grad_() for c in (2, 2, 3))
    assert gradcheck(partial(long_range, group_size=group), maps)
    assert gradcheck(partial(short_range, group_size=group), maps)
    assert gradcheck(criss_cross, maps)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
def test_pointwise_is_the_1x1_convolution(layout: torch.memory_format, bias: bool) -> None:
    ours, theirs = Pointwise(3, 5, bias=bias).double(), nn.Conv2d(3, 5, 1, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    x = random_map(2, 3, 4, 6).contiguous(memory_format=layout).requires_grad_()
    answers = []
    for module in (ours, theirs):
        out = module(x)
        answers.append((out, *torch.autograd.grad(out.square().sum(), (x, *module.parameters()))))
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@given(batch=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_both_ways_of_dense_agree(masked: bool, batch: int, height: int, width: int, seed: int) -> None:
    """The two products for small maps against the fused kernel: outputs and gradients."""
    q, k, v = (
        random_map(batch, c, height, width, seed=seed + n).requires_grad_() for n, c in enumerate((2, 2, 5))
    )
    mask = random_map(batch, 1, height, width, seed=seed) > 0 if masked else None
    if mask is not None:
        mask[..., 0, 0] = True
    answers = []
    for held in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("isaseg.models.attend.holds_scores", lambda *_, held=held: held)
            out = dense(q, k, v, mask)
        answers.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_no_score_matrix_is_held(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "isaseg.models.attend.holds_scores", lambda *_: False
    )  # which these would, being small
    q, k, v = (torch.randn(1, c, *size, requires_grad=True) for c in (8, 8, 16))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error if it cannot serve
        (long_range(q, k, v, (4, 4)) + short_range(q, k, v, (4, 4))).sum().backward()
    assert q.grad is not None


# ---------------------------------------------------------------- interlaced sparse attention


def project(layers: nn.Module, x_NC: Tensor) -> Tensor:
    """Apply 1x1 convolutions, batch norms in eval mode and ReLUs to a list of pixels, by their formulas."""
    for layer in layers if isinstance(layers, nn.Sequential) else [layers]:
        if isinstance(layer, nn.Conv2d):
            x_NC = x_NC @ layer.weight[:, :, 0, 0].T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            mean, var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
            x_NC = (x_NC - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
        else:
            assert isinstance(layer, nn.ReLU)
            x_NC = x_NC.clamp(min=0)
    return x_NC


def reference_stage(
    block: AttentionBlock, pixels: dict[Size, Tensor], pattern: Pattern
) -> dict[Size, Tensor]:
    """Let each pixel attend to those that the pattern joins it with, one after the other."""
    x_NC = torch.stack(list(pixels.values()))
    q, k, v = (project(layers, x_NC) for layers in (block.query, block.key, block.value))
    context = []
    for n, cell in enumerate(pixels):
        group = [m for m, other in enumerate(pixels) if pattern(cell, other)]
        weights = torch.softmax(k[group] @ q[n] / q.shape[1] ** 0.5, dim=0)
        context.append(weights @ v[group])
    return dict(zip(pixels, project(block.proj, torch.stack(context)), strict=True))


def reference_isa(isa: InterlacedSparseAttention, x: Tensor) -> Tensor:
    """Compute the module pixel by pixel: zeros around the map take part unless `mask_padding`."""
    size, group = (x.shape[2], x.shape[3]), isa.group_size
    top, left = offset(size, group)
    inside = [(r + top, c + left) for r, c in product(range(size[0]), range(size[1]))]
    frame = (size[0] + -size[0] % group[0], size[1] + -size[1] % group[1])
    cells = inside if isa.mask_padding else list(product(range(frame[0]), range(frame[1])))
    images = []
    for image in x:
        zero = torch.zeros_like(image[:, 0, 0])
        pixels = {(r, c): image[:, r - top, c - left] if (r, c) in inside else zero for r, c in cells}
        for stage in isa.order.split("_"):
            block = cast(AttentionBlock, isa.get_submodule(f"{stage}_range"))
            pixels = reference_stage(block, pixels, (lattice if stage == "long" else window)(group))
        images.append(torch.stack([pixels[cell] for cell in inside], dim=1).view(-1, *size))
    return torch.stack(images)


def make_isa(**kwargs: Any) -> InterlacedSparseAttention:
    torch.manual_seed(0)
    return cast(InterlacedSparseAttention, randomise(InterlacedSparseAttention(6, **kwargs)))


@pytest.mark.parametrize("size, group", CASES)
@pytest.mark.parametrize("mask_padding", [False, True])
def test_isa_equals_its_definition(size: Size, group: Size, mask_padding: bool) -> None:
    isa = make_isa(group_size=group, mask_padding=mask_padding)
    x = random_map(2, 6, *size).requires_grad_()
    out, expected = isa(x), reference_isa(isa, x)
    upstream = random_map(*out.shape, seed=9)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    got, want = (torch.autograd.grad(o, [x, *isa.parameters()], upstream) for o in (out, expected))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", ["short_long", "long", "short"])
@pytest.mark.parametrize("mask_padding", [False, True])
def test_orders_equal_their_definition(order: Any, mask_padding: bool) -> None:
    isa = make_isa(
        group_size=(2, 3), order=order, mask_padding=mask_padding, value_bias=False, value_channels=3
    )
    x = random_map(1, 6, 5, 7)
    torch.testing.assert_close(isa(x), reference_isa(isa, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", ["long_short", "short"])
def test_depth_repeats_the_stages_with_weights_of_their_own(order: Any) -> None:
    """Compare with as many modules of depth 1, one after the other; the map fits, so that none pads."""
    deep = make_isa(group_size=(2, 3), order=order, depth=3)
    x, count = random_map(2, 6, 4, 9), 0
    expected = x
    for suffix in ("", "_2", "_3"):
        one = make_isa(group_size=(2, 3), order=order)
        for stage in order.split("_"):
            own = deep.get_submodule(f"{stage}_range{suffix}").state_dict()
            one.get_submodule(f"{stage}_range").load_state_dict(own)
            count += len(own)
        expected = one(expected)
    assert count == len(deep.state_dict())
    torch.testing.assert_close(deep(x), expected, rtol=0, atol=1e-12)
    assert not torch.equal(*(deep.get_parameter(f"short_range{n}.value.weight") for n in ("", "_2")))


@pytest.mark.parametrize("group, order", [((1, 1), "long"), ((5, 7), "short")])
def test_degenerate_groups_are_dense_attention(group: Size, order: Any) -> None:
    full = cast(SelfAttention2d, make("dense", 6))
    isa = make_isa(group_size=group, order=order, value_channels=12)
    isa.get_submodule(f"{order}_range").load_state_dict(full.block.state_dict())
    x = random_map(2, 6, 5, 7)
    torch.testing.assert_close(isa(x), full(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size, group", [((6, 9), (2, 3)), ((7, 5), (3, 2))])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("order", ["long", "short", "long_short", "short_long"])
def test_a_pixel_hears_exactly_its_groups(size: Size, group: Size, mask_padding: bool, order: Any) -> None:
    isa = make_isa(group_size=group, order=order, mask_padding=mask_padding)
    one_hop = {
        "long": allowed(size, lattice(group)),
        "short": allowed(size, window(group), offset(size, group)),
    }
    if order in one_hop:
        mask = one_hop[order]
    elif mask_padding:  # the pixels of a window cut by the border need not lie on every lattice
        first, second = order.split("_")
        mask = one_hop[second].double() @ one_hop[first].double() > 0
    else:
        mask = allowed(size, everything)
    for pixel in ((0, 0), (3, 2), (size[0] - 1, size[1] - 1)):
        assert torch.equal(heard(isa, size, pixel), mask[pixel[0] * size[1] + pixel[1]].view(size))


@pytest.mark.parametrize("passes, pattern", [(1, cross), (2, everything)])
def test_criss_cross_hears_its_cross_and_then_everything(passes: int, pattern: Pattern) -> None:
    torch.manual_seed(0)
    module = randomise(PlainCrissCross(6, passes=passes))
    for pixel in ((0, 0), (2, 3), (4, 1)):
        assert torch.equal(
            heard(module, (5, 6), pixel), allowed((5, 6), pattern)[pixel[0] * 6 + pixel[1]].view(5, 6)
        )


def heard(module: nn.Module, size: Size, pixel: Size) -> Tensor:
    """Return which input pixels have an influence on the output at `pixel`, bool (H, W)."""
    x = random_map(1, 6, *size).requires_grad_()
    module(x)[0, :, pixel[0], pixel[1]].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(0) > 0


# ---------------------------------------------------------------- padding


@pytest.mark.parametrize("size", [(7, 5), (3, 2), (1, 9)])
def test_what_the_padding_holds_matters_only_without_the_mask(
    size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real_pad = random_map(2, 6, *size), F.pad

    def pad(t: Tensor, widths: tuple[int, ...]) -> Tensor:
        return real_pad(t, widths, value=1e3 if len(widths) == 4 else 0.0)  # four: around a map

    masked, open_ = (make_isa(group_size=(4, 4), mask_padding=m) for m in (True, False))
    zeros = masked(x), open_(x)
    monkeypatch.setattr(F, "pad", pad)
    assert torch.equal(masked(x), zeros[0])
    assert masked(x).isfinite().all()
    assert not torch.allclose(open_(x), zeros[1])


def test_no_group_is_masked_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.scaled_dot_product_attention
    masks: list[Tensor] = []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(kwargs["attn_mask"])
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr("isaseg.models.attend.holds_scores", lambda *_: False)
    make_isa(group_size=(8, 8), mask_padding=True)(random_map(1, 6, 3, 2))  # most lattices are padding alone
    assert len(masks) == 2
    assert all(
        mask.any(-1).all() for mask in masks
    )  # what a kernel answers to an empty row is its own affair


def test_mask_changes_nothing_where_nothing_is_padded() -> None:
    x = random_map(2, 6, 8, 4)
    masked, open_ = (make_isa(group_size=(4, 2), mask_padding=m) for m in (True, False))
    assert torch.equal(masked(x), open_(x))
    x = random_map(2, 6, 8, 5)
    assert not torch.allclose(masked(x), open_(x))


# ---------------------------------------------------------------- the other modules


def test_criss_cross_starts_as_the_identity() -> None:
    x = torch.randn(1, 16, 4, 5)
    assert torch.equal(CrissCrossAttention(16)(x), x)


def test_criss_cross_shares_its_weights_over_the_passes() -> None:
    once, thrice = CrissCrossAttention(16, recurrence=1), CrissCrossAttention(16, recurrence=3)
    thrice.load_state_dict(once.state_dict())
    once, thrice = cast(CrissCrossAttention, randomise(once)), cast(CrissCrossAttention, randomise(thrice))
    x = random_map(1, 16, 4, 5)
    torch.testing.assert_close(thrice(x), once(once(once(x))), rtol=0, atol=1e-12)


def test_criss_cross_equals_its_definition() -> None:
    module = cast(CrissCrossAttention, make("criss_cross"))
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
    module = cast(PlainCrissCross, make("plain_criss_cross"))
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
    module = cast(PyramidPooling, make("pyramid"))
    x = random_map(2, 16, *size)
    parts = []
    for count, branch in zip((1, 2, 3, 6), module.branches, strict=True):
        pooled = pool(count, size[0]) @ x @ pool(count, size[1]).T
        pixels = project(branch, pooled.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        parts.append(stretch(count, size[0]) @ pixels @ stretch(count, size[1]).T)
    torch.testing.assert_close(module(x), torch.cat(parts, 1), rtol=0, atol=1e-10)


def test_parallel_isa_is_its_blocks_side_by_side() -> None:
    module = cast(ParallelInterlacedSparseAttention, make("parallel", 6))
    x = random_map(1, 6, 5, 7)
    parts = []
    for i, group in enumerate([(4, 2), (3, 3), (2, 2)]):
        isa = make_isa(group_size=group)
        isa.load_state_dict(
            {k[9:]: v for k, v in module.state_dict().items() if k.startswith(f"blocks.{i}.")}
        )
        parts.append(isa(x))
    assert torch.equal(module(x), torch.cat(parts, 1))


# ---------------------------------------------------------------- the contract of all modules


@every_module
@pytest.mark.parametrize("size", [(7, 5), (1, 9), (8, 1)])
def test_any_size_in_same_size_out_and_images_do_not_mix(name: str, size: Size) -> None:
    module = make(name)
    x = random_map(3, 16, *size)
    out = module(x)
    assert out.shape == (3, module.out_channels, *size)
    torch.testing.assert_close(module(x[1:2]), out[1:2], rtol=0, atol=1e-12)


@every_module
def test_bfloat16_autocast_is_finite(name: str) -> None:
    module = make(name).float().train()
    x = 100 * torch.randn(2, 16, 7, 5)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    out.float().sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every_module
def test_compiles_without_a_break(name: str) -> None:
    module = make(name)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=False)
    x = random_map(1, 16, 7, 5)
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-12)


@every_module
@pytest.mark.parametrize("size", [(7, 5), (1, 9), (8, 6), (24, 12)])
def test_what_an_onnx_graph_records_is_the_same(
    name: str, size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = make(name), random_map(2, 16, *size)
    want = module(x)
    for file in ("attend", "attention", "block", "context", "cores", "regroup"):  # that branches on no size
        monkeypatch.setattr(f"isaseg.models.{file}.for_any_size", lambda: True)
    torch.testing.assert_close(module(x), want, rtol=0, atol=1e-12)


def test_state_dict_keys_of_isa_are_frozen() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    part = {f"{p}.{i}.weight" for p in ("query", "key") for i in (0, 3)} | {"value.weight", "value.bias"}
    part |= {f"{p}.{i}.{n}" for p in ("query", "key") for i in (1, 4) for n in norm}
    part |= {"proj.0.weight"} | {f"proj.1.{n}" for n in norm}
    stages = {f"{stage}.{key}" for stage in ("long_range", "short_range") for key in part}
    assert set(InterlacedSparseAttention(8).state_dict()) == stages
    openseg = {key for key in stages if not key.endswith("value.bias")}
    assert set(InterlacedSparseAttention(8, value_bias=False).state_dict()) == openseg


def test_published_widths_are_the_defaults() -> None:
    with torch.device("meta"):
        isa = InterlacedSparseAttention(512)
    shapes = {k: tuple(v.shape[:2]) for k, v in isa.state_dict().items() if v.ndim == 4 and "long" in k}
    assert shapes["long_range.query.0.weight"] == (256, 512)
    assert shapes["long_range.key.3.weight"] == (256, 256)
    assert shapes["long_range.value.weight"] == shapes["long_range.proj.0.weight"] == (512, 512)
    assert (isa.group_size, isa.order, isa.mask_padding) == ((8, 8), "long_short", False)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            partial(ISA, group_size=8),
            r"group_size as two positive integers.*group_size=8",
        ),
        (partial(ISA, group_size=(8,)), r"two positive integers"),
        (partial(ISA, group_size=(0, 8)), r"group_size=\(0, 8\)"),
        (partial(ISA, group_size=(2.5, 8)), r"group_size=\(2.5, 8\)"),
        (
            partial(ISA, order="both"),
            r"one of long_short, short_long, long, short, got.*'both'",
        ),
        (partial(ISA, depth=0), r"depth as an integer of at least 1, got depth=0"),
        (partial(ISA, depth=1.5), r"depth as an integer of at least 1, got depth=1.5"),
        (partial(ASPP, rates=(12, 0)), r"rates as integers of at least 1, got rates=\(12, 0\)"),
        (partial(CGNL, groups=3), r"groups to divide channels=16 and key_channels=8, got groups=3"),
        (partial(CGNL, key_channels=6, groups=4), r"channels=16 and key_channels=6, got groups=4"),
        (partial(CrissCrossAttention, recurrence=0), r"at least 1, got recurrence=0"),
        (partial(PlainCrissCross, passes=0), r"at least one pass, got passes=0"),
        (partial(PyramidPooling, bins=(1, 2, 3)), r"multiple of the number of bins, got channels=16"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[int], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(16)


# ---------------------------------------------------------------- cost


@every_module
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (7, 5), (2, 9), (3, 2)])
def test_cost_is_what_is_done(name: str, size: Size, held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition, and so with the fused kernel, were it not for what is multiplied beforehand."""
    monkeypatch.setattr("isaseg.models.attend.holds_scores", lambda *_: False)
    monkeypatch.setattr(AttentionBlock, "_merges", lambda *_: False)
    module = make(name)
    scores: list[int] = []
    widths: list[int] = []
    real_softmax = Tensor.softmax

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, scale: float) -> Tensor:
        keys = round(scale**-2)  # without the zero channels that only the kernels need
        assert not q[..., keys:].any()
        weights = torch.softmax(q[..., :keys] @ k[..., :keys].mT, -1)
        scores.append(weights.numel())
        widths.append(keys + v.shape[-1])
        return weights @ v

    def softmax(x: Tensor, dim: int) -> Tensor:
        scores.append(x.numel())
        return real_softmax(x, dim)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(Tensor, "softmax", softmax)
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        by_definition() if held else nullcontext(),
    ):
        module(random_map(1, 16, *size))
    cost = module.cost(*size)  # type: ignore[operator]
    assert cost.mult_adds == counter.get_total_flops() / 2
    assert cost.score_entries == sum(scores)
    if widths:
        assert cost.attention_mult_adds == sum(s * w for s, w in zip(scores, widths, strict=True))
    counts = {str(op).split(".")[-1]: f for op, f in counter.get_flop_counts()["Global"].items()}
    projections = sum(f for op, f in counts.items() if op in ("mm", "addmm", "convolution")) / 2
    assert cost.attention_mult_adds == cost.mult_adds - projections


@every_module
@pytest.mark.parametrize("size", [(128, 128), (65, 97), (8, 72), (7, 5)])
def test_cost_equals_the_flop_counter(name: str, size: Size) -> None:
    """Exactly what runs with the scores held is what is counted; meta tensors, so at the sizes of the field too."""
    with torch.device("meta"):
        module, x = MODULES[name](16).eval(), torch.empty(1, 16, *size)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), by_definition():
        module(x)
    assert 2 * module.cost(*size).mult_adds == counter.get_total_flops()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["isa", "isa_masked", "isa_deep", "dense"])
@pytest.mark.parametrize("size", [(16, 24), (11, 13)])
def test_scores_held_or_not_the_answer_is_the_same(name: str, size: Size) -> None:
    module, x = make(name), random_map(2, 16, *size)
    with by_definition():
        held = module(x)
    torch.testing.assert_close(held, module(x), rtol=0, atol=1e-12)


def test_isa_makes_n_times_p_plus_q_scores() -> None:
    with torch.device("meta"):
        isa = InterlacedSparseAttention(512)
    n, p, q = 128 * 128, 64, 256
    assert isa.cost(128, 128).score_entries == n * (p + q)
    assert isa.cost(64, 128).score_entries == (n // 2) * (p + q // 2)


# attention at 128x128; the whole head at 128x128, 64x128, 97x97: 2 FLOPs a multiply-add, 2048 channels in
GFLOPS = [
    (partial(InterlacedSparseAttention, group_size=(4, 4)), 26.2, (412.7, 199.9, 231.8)),
    (partial(InterlacedSparseAttention, group_size=(8, 4)), 13.7, (400.2, 196.9, 227.7)),
    (partial(InterlacedSparseAttention, group_size=(8, 8)), 8.1, (394.6, 195.7, 225.9)),
    (partial(InterlacedSparseAttention, group_size=(8, 16)), 6.4, (393.0, 195.7, 225.9)),
    (partial(InterlacedSparseAttention, group_size=(16, 16)), 8.1, (394.6, 196.9, 227.9)),
    (partial(SelfAttention2d, value_channels=256), 274.9, (622.8, 242.7, 290.4)),
    (CrissCrossAttention, 9.7, (357.6, 177.6, 204.0)),
]


@pytest.mark.parametrize("build, attention, totals", GFLOPS)
def test_cost_equals_the_published_architectures(
    build: Callable[..., nn.Module], attention: float, totals: tuple[float, ...]
) -> None:
    # 97 is no multiple: the table counts its convolutions on 97x97, as mask_padding=True computes them
    isa = isinstance(build, partial) and build.func is InterlacedSparseAttention
    with torch.device("meta"):
        head = ContextHead(2048, 512, 19, partial(build, mask_padding=True) if isa else build)
    per_pixel = cast(Tensor, head.reduce[0].weight).numel() + cast(Tensor, head.fuse[0].weight).numel()
    cost: Any = head.attention.cost
    assert round(2e-9 * cost(128, 128).attention_mult_adds, 1) == attention
    for size, total in zip(((128, 128), (64, 128), (97, 97)), totals, strict=True):
        assert 2e-9 * (per_pixel * size[0] * size[1] + cost(*size).mult_adds) == pytest.approx(
            total, abs=0.051
        )


# ---------------------------------------------------------------- what runs, and the definition


def published_like(dtype: torch.dtype, **kwargs: Any) -> InterlacedSparseAttention:
    """Return a module whose values are as wide as its maps, so that every short cut is taken."""
    torch.manual_seed(0)
    isa = InterlacedSparseAttention(24, **kwargs)
    return cast(InterlacedSparseAttention, randomise(isa).to(dtype))


@torch.no_grad()
def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def replace_relu(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, make())


SHORT_CUTS: list[dict[str, Any]] = [
    {},
    {"order": "short_long"},
    {"order": "long"},
    {"order": "short"},
    {"value_channels": 8},
    {"value_channels": 40, "value_bias": False},
    {"key_channels": 5, "depth": 2},
    {"mask_padding": True},
    {"recompute": True},
]


@pytest.mark.parametrize("kwargs", SHORT_CUTS)
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@settings(deadline=None, max_examples=8)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    group=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    training=st.booleans(),
)
def test_what_runs_is_the_definition(
    kwargs: dict[str, Any],
    dtype: torch.dtype,
    bound: float,
    batch: int,
    height: int,
    width: int,
    group: Size,
    training: bool,
) -> None:
    """Outputs, gradients and running statistics, in training and in evaluation, with and without gradients.

    In float32, a norm over few positions makes much of a rounding: then the error may be that of the definition; and
    where a ReLU's input is next to 0, a rounding decides on its gradient, so that a smooth function stands in its place.
    """
    isa = published_like(dtype, group_size=group, **kwargs)
    if dtype is torch.float32:
        replace_relu(isa, nn.Softplus)
    isa.train(training and batch * height * width > 1)
    x, upstream = (random_map(batch, 24, height, width, seed=seed) for seed in (1, 5))
    state = {k: v.clone() for k, v in isa.state_dict().items()}

    def answer(as_defined: bool, dtype: torch.dtype = dtype) -> list[Tensor]:
        isa.to(dtype).load_state_dict(state)
        x_ = x.to(dtype).requires_grad_()
        with by_definition() if as_defined else nullcontext():
            out = isa(x_)
            gradients = torch.autograd.grad(out, (x_, *isa.parameters()), upstream.to(dtype))
        largest = max(
            float(g.abs().max()) for g in gradients
        )  # some are nothing but rounding: of a bias before a norm
        statistics = [v / v.abs().max() for k, v in isa.state_dict().items() if "running" in k]
        parts = [out.detach() / out.detach().abs().max(), *(g / largest for g in gradients), *statistics]
        return [part.double() for part in parts]

    def error(one: list[Tensor], other: list[Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    ours, want = answer(False), answer(True)
    if error(ours, want) > bound:
        assert dtype is torch.float32 and isa.training
        exact = answer(True, torch.float64)
        assert error(ours, exact) <= 3 * error(want, exact)
    if not isa.training:
        isa = published_like(dtype, group_size=group, **kwargs)
        want = answer(True)
        with torch.no_grad():
            for layout in (torch.contiguous_format, torch.channels_last):
                out = isa(x.to(dtype).contiguous(memory_format=layout))
                assert error([out / out.abs().max()], want[:1]) <= bound


@pytest.mark.parametrize("size", [(8, 8), (32, 24), (33, 40)])
def test_dense_attention_runs_as_its_definition(size: Size) -> None:
    """Fewer and more positions than a CPU holds the scores of."""
    torch.manual_seed(0)
    module = cast(SelfAttention2d, randomise(SelfAttention2d(24)))
    x = random_map(2, 24, *size)
    with by_definition():
        want = module(x)
    assert relative(module(x), want) <= 1e-12
    with torch.no_grad():
        assert relative(module(x), want) <= 1e-12


@pytest.mark.parametrize("name", ["isa", "dense", "isa_deep"])
def test_half_precision_in_evaluation_is_as_exact_as_the_definition(name: str) -> None:
    module = make(name).float()
    x = random_map(2, 16, 24, 20)
    want = make(name)(x)
    errors = []
    for context in (nullcontext(), by_definition()):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), context:
            out = module(x.float())
        assert out.dtype is torch.bfloat16
        errors.append(float((out.double() - want.detach()).norm() / want.detach().norm()))
    assert errors[0] <= 1.25 * errors[1] + 1e-3


def test_scores_are_never_rounded_to_half_precision() -> None:
    """Keys that differ in a score of 100 by less than bfloat16 can tell."""
    q = torch.full((1, 2, 4), 5.0, dtype=torch.bfloat16)
    k = torch.full((1, 2, 4), 10.0, dtype=torch.bfloat16)
    k[0, 1, 0] += 0.0625
    v = torch.eye(2, dtype=torch.bfloat16)[None]
    want = (q.double() @ k.double().mT * 0.5).softmax(-1)
    for held in (True, False):
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            patch.setattr("isaseg.models.attend.holds_scores", lambda *_, held=held: held)
            got = kernels.attend(q, k, v, 0.5)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=4e-3)


def test_the_kernel_is_chosen_by_tokens_device_and_gradient() -> None:
    assert [holds_scores(n, "cpu", False) for n in (1, 64, 256, 1024, 1025, 16384)] == [True] * 4 + [
        False
    ] * 2
    assert [holds_scores(n, "cpu", True) for n in (64, 512, 513, 4096)] == [True] * 2 + [False] * 2
    assert not holds_scores(64, "cuda", False)


@pytest.mark.parametrize("name", ["isa", "dense"])
def test_recomputing_keeps_less_and_changes_nothing(name: str) -> None:
    module = make(name).train()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    x = random_map(2, 16, 24, 20).requires_grad_()
    answers, kept = [], []
    for recompute in (False, True):
        module.load_state_dict(state)
        module.recompute = recompute  # type: ignore[assignment]
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = module(x)
        kept.append(sum(saved.values()))
        gradients = torch.autograd.grad(out.square().sum(), (x, *module.parameters()))
        answers.append((out, *gradients, *(v.clone() for v in module.state_dict().values())))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert kept[1] < 0.4 * kept[0]


# with the backward pass, a minute and a half each
@pytest.mark.parametrize("kwargs", [{}, {"recompute": True}, {"mask_padding": True}] if STRESS else [{}])
@pytest.mark.parametrize("training", [False, True] if STRESS else [True])
def test_compiles_as_one_graph_for_any_size(kwargs: dict[str, Any], training: bool) -> None:
    isa = make_isa(group_size=(4, 2), **kwargs).train(training)
    torch.compiler.reset()
    compiled = torch.compile(isa, fullgraph=True, backend="aot_eager" if STRESS else "eager", dynamic=True)
    state = {k: v.clone() for k, v in isa.state_dict().items()}
    for size in ((8, 8), (16, 12), (7, 5), (13, 18)):
        answers = []
        for module in (isa, compiled):
            isa.load_state_dict(state)
            x = random_map(2, 6, *size).requires_grad_()
            out = module(x)
            gradients = torch.autograd.grad(out.square().sum(), (x, *isa.parameters()))
            answers.append([out, *gradients, *(v.clone() for v in isa.state_dict().values())])
        for a, b in zip(*answers, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
