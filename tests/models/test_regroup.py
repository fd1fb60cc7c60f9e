"""Groups of a map, attention inside them, and the kernels that compute it."""

from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isaseg.models import attention_kernels
from isaseg.models.attention_cores import dense, grouped
from isaseg.models.criss_cross import criss_cross
from isaseg.models.layers import Pointwise
from isaseg.models.regroup import Kind, deinterlace, interlace, merge_windows, pad_to_multiple, split_windows
from tests.models.references import (
    CASES,
    Size,
    allowed,
    attend,
    cross,
    everything,
    lattice,
    offset,
    random_map,
    window,
)

sides = st.integers(1, 5)
KINDS: tuple[Kind, ...] = ("long_range", "short_range")


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


@pytest.mark.parametrize("size, group", CASES)
@pytest.mark.parametrize("core", ["long", "short", "cross", "dense"])
def test_cores_equal_dense_attention_under_a_mask(core: str, size: Size, group: Size) -> None:
    q, k, v = (random_map(2, c, *size, seed=s).requires_grad_() for s, c in enumerate((4, 4, 7)))
    if core == "long":
        out, mask, scale = grouped(q, k, v, group, "long_range"), allowed(size, lattice(group)), 0.5
    elif core == "short":
        out, scale = grouped(q, k, v, group, "short_range"), 0.5
        mask = allowed(size, window(group), offset(size, group))
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
@pytest.mark.parametrize("values", [1, 5])
@given(batch=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_both_ways_of_dense_agree(
    masked: bool, values: int, batch: int, height: int, width: int, seed: int
) -> None:
    """The two products for small maps against the fused kernel: outputs and gradients."""
    channels = (2, 2, values)
    q, k, v = (
        random_map(batch, c, height, width, seed=seed + n).requires_grad_() for n, c in enumerate(channels)
    )
    mask = random_map(batch, 1, height, width, seed=seed) > 0 if masked else None
    if mask is not None:
        mask[..., 0, 0] = True
    answers = []
    for held in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("isaseg.models.attention_kernels.holds_scores", lambda *_, held=held: held)
            out = dense(q, k, v, mask)
        answers.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
def test_no_score_matrix_is_held(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    # or the scores of these small maps would be held
    monkeypatch.setattr("isaseg.models.attention_kernels.holds_scores", lambda *_: False)
    q, k, v = (torch.randn(1, c, *size, requires_grad=True) for c in (8, 8, 16))
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error if it cannot serve
        for kind in KINDS:
            grouped(q, k, v, (4, 4), kind).sum().backward()
    assert q.grad is not None


def test_scores_are_never_rounded_to_half_precision() -> None:
    """Keys that differ in a score of 100 by less than bfloat16 can tell."""
    q = torch.full((1, 2, 4), 5.0, dtype=torch.bfloat16)
    k = torch.full((1, 2, 4), 10.0, dtype=torch.bfloat16)
    k[0, 1, 0] += 0.0625
    v = torch.eye(2, dtype=torch.bfloat16)[None]
    want = (q.double() @ k.double().mT * 0.5).softmax(-1)
    for held in (True, False):
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            patch.setattr("isaseg.models.attention_kernels.holds_scores", lambda *_, held=held: held)
            got = attention_kernels.attend(q, k, v, 0.5)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=4e-3)
