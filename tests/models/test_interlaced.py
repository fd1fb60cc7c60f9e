"""Interlaced sparse self-attention against its definition, pixel by pixel."""

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isaseg.models.interlaced import InterlacedSparseAttention, ParallelInterlacedSparseAttention
from tests.models.references import (
    CASES,
    Size,
    make_isa,
    random_map,
    randomise,
    reference_isa,
)


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


def test_no_group_is_masked_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.scaled_dot_product_attention
    masks: list[Tensor] = []

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        masks.append(kwargs["attn_mask"])
        return real(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr("isaseg.models.attention_kernels.holds_scores", lambda *_: False)
    make_isa(group_size=(8, 8), mask_padding=True)(random_map(1, 6, 3, 2))  # most lattices are padding alone
    assert len(masks) == 2
    # what a kernel answers to an empty row is its own affair
    assert all(mask.any(-1).all() for mask in masks)


def test_parallel_isa_is_its_blocks_side_by_side() -> None:
    module = cast(
        ParallelInterlacedSparseAttention,
        randomise(ParallelInterlacedSparseAttention(6, [[4, 2], [3, 3], [2, 2]])),
    )
    x = random_map(1, 6, 5, 7)
    parts = []
    for i, group in enumerate([(4, 2), (3, 3), (2, 2)]):
        isa = make_isa(group_size=group)
        isa.load_state_dict(
            {k[9:]: v for k, v in module.state_dict().items() if k.startswith(f"blocks.{i}.")}
        )
        parts.append(isa(x))
    assert torch.equal(module(x), torch.cat(parts, 1))


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
