"""What every context module keeps: any size, compilation, ONNX, its cost. New ones are found by themselves."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isaseg.models import context_modules
from isaseg.models.attention_kernels import by_definition
from isaseg.models.axial import Axial
from isaseg.models.baselines import ASPP, CGNL, DoubleAttention, PyramidPooling, SelfAttention2d
from isaseg.models.criss_cross import CrissCrossAttention, PlainCrissCross
from isaseg.models.grid_block import GridBlock
from isaseg.models.head import ContextHead
from isaseg.models.interlaced import InterlacedSparseAttention, ParallelInterlacedSparseAttention
from isaseg.models.neighbourhood import Neighbourhood
from isaseg.models.pooled_keys import PooledKeys
from isaseg.models.shifted_windows import ShiftedWindows
from tests.models.references import Size, made, random_map
from tests.reliability.small import STRESS

ISA: Any = InterlacedSparseAttention  # to be called wrongly, too
MODULES: dict[str, Callable[[int], nn.Module]] = {
    **context_modules(),
    "isa": partial(InterlacedSparseAttention, group_size=(4, 2)),
    "isa, masked": partial(InterlacedSparseAttention, group_size=(4, 2), mask_padding=True),
    "isa, short_long": partial(InterlacedSparseAttention, group_size=(2, 3), order="short_long"),
    "isa, long": partial(InterlacedSparseAttention, group_size=(3, 3), order="long", value_bias=False),
    "isa, short": partial(InterlacedSparseAttention, group_size=(3, 2), order="short"),
    "isa, deep": partial(InterlacedSparseAttention, group_size=(4, 2), depth=3),
    "isa, all options": partial(ISA, group_size=(4, 2), heads=2, position_bias=1, residual=True),
    "isa, all options, masked": partial(
        ISA, group_size=(2, 4), heads=4, position_bias=9, residual=True, mask_padding=True, depth=2
    ),
    "three isa": partial(ParallelInterlacedSparseAttention, group_sizes=[[4, 2], [3, 3], [2, 2]]),
    "dense, narrow values": partial(SelfAttention2d, value_channels=12),
    "aspp, small rates": partial(ASPP, rates=[1, 4]),
    "double attention, few values": partial(DoubleAttention, value_channels=6),
    "cgnl, two groups": partial(CGNL, groups=2),
    "neighbourhood, dilated": partial(Neighbourhood, kernel_size=3, dilations=(1, 3)),
    "pooled keys": partial(PooledKeys, window_size=(4, 2)),
    "grid block, small": partial(GridBlock, window_size=(2, 3), grid_size=(3, 2), order="grid_window"),
    "shifted windows, small": partial(ShiftedWindows, window_size=(3, 4)),
    "axial, turned": partial(Axial, order="columns_rows"),
}
AXIAL: Any = Axial
GRID: Any = GridBlock
every_module = pytest.mark.parametrize("name", MODULES)


def make(name: str, channels: int = 16) -> nn.Module:
    """Return a float64 module in eval mode whose batch norms and gates do something."""
    module: nn.Module = made(MODULES[name], channels)
    return module


@every_module
def test_any_size_in_same_size_out_and_images_do_not_mix(name: str) -> None:
    module = make(name)
    for size in ((7, 5), (1, 9), (8, 1)):
        x = random_map(3, 16, *size)
        out = module(x)
        assert out.shape == (3, module.out_channels, *size)
        torch.testing.assert_close(module(x[1:2]), out[1:2], rtol=0, atol=1e-12)


# To trace one takes seconds. The others are made of the same parts.
TRACED = ["isa, all options, masked", "SelfAttention2d", "Neighbourhood", "CrissCrossAttention"]
TRACED += ["DoubleAttention", "PooledKeys"]


@pytest.mark.parametrize("name", MODULES if STRESS else TRACED)
def test_compiles_without_a_break(name: str) -> None:
    module = make(name)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=False)
    x = random_map(1, 16, 7, 5)
    torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=1e-12)


@every_module
def test_what_an_onnx_graph_records_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, maps = make(name), [random_map(2, 16, *size) for size in ((7, 5), (24, 12))]
    wanted = [module(x) for x in maps]
    for file in list(sys.modules):  # then no branch depends on a size
        if file.startswith("isaseg.models."):
            monkeypatch.setattr(f"{file}.for_any_size", lambda: True, raising=False)
    for x, want in zip(maps, wanted, strict=True):
        torch.testing.assert_close(module(x), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "build, message",
    [
        (partial(ISA, group_size=8), r"group_size as two positive integers.*group_size=8"),
        (partial(ISA, group_size=(8,)), r"two positive integers"),
        (partial(ISA, group_size=(0, 8)), r"group_size=\(0, 8\)"),
        (partial(ISA, group_size=(2.5, 8)), r"group_size=\(2.5, 8\)"),
        (partial(ISA, order="both"), r"one of long_short, short_long, long, short, got.*'both'"),
        (partial(ISA, depth=0), r"depth as an integer of at least 1, got depth=0"),
        (partial(ISA, depth=1.5), r"depth as an integer of at least 1, got depth=1.5"),
        (partial(ISA, heads=3), r"divide key_channels=8 and value_channels=16, got heads=3"),
        (partial(ISA, heads=8, value_channels=12), r"and value_channels=12, got heads=8"),
        (partial(ISA, heads=0), r"heads of at least 1.*got heads=0"),
        (
            partial(ISA, position_bias=0),
            r"position_bias as an integer of at least 1, or None, got position_bias=0",
        ),
        (partial(ASPP, rates=(12, 0)), r"rates as integers of at least 1, got rates=\(12, 0\)"),
        (partial(CGNL, groups=3), r"groups to divide channels=16 and key_channels=8, got groups=3"),
        (partial(CGNL, key_channels=6, groups=4), r"channels=16 and key_channels=6, got groups=4"),
        (partial(CrissCrossAttention, recurrence=0), r"at least 1, got recurrence=0"),
        (partial(PlainCrissCross, passes=0), r"at least one pass, got passes=0"),
        (partial(PyramidPooling, bins=(1, 2, 3)), r"number divides channels=16"),
        (partial(Neighbourhood, kernel_size=4), r"odd positive integer, got kernel_size=4"),
        (partial(Neighbourhood, kernel_size=-1), r"odd positive integer, got kernel_size=-1"),
        (partial(Neighbourhood, dilations=(1, 0)), r"at least 1, got dilations=\(1, 0\)"),
        (partial(Neighbourhood, dilations=()), r"at least 1, got dilations=\(\)"),
        (partial(PooledKeys, window_size=(8,)), r"two positive integers.*window_size=\(8,\)"),
        (partial(PooledKeys, window_size=(0, 8)), r"window_size=\(0, 8\)"),
        (partial(GRID, window_size=(0, 8)), r"window_size as two positive integers.*got.*\(0, 8\)"),
        (partial(GRID, grid_size=8), r"grid_size as two positive integers.*got grid_size=8"),
        (partial(GRID, order="both"), r"one of window_grid, grid_window, got order='both'"),
        (partial(ShiftedWindows, window_size=(7,)), r"window_size as two.*window_size=\(7,\)"),
        (partial(ShiftedWindows, window_size=(2.5, 8)), r"window_size=\(2.5, 8\)"),
        (partial(AXIAL, order="rows"), r"one of rows_columns, columns_rows, got order='rows'"),
    ],
)
def test_wrong_arguments_are_refused(build: Callable[[int], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(16)


@every_module
@pytest.mark.parametrize("size", [(8, 12), (7, 5), (3, 2), (65, 97)])
def test_cost_is_what_the_definition_computes(name: str, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's counter counts it, on meta tensors, so that sizes of the field cost nothing."""
    with torch.device("meta"):
        module, x = MODULES[name](16).eval(), torch.empty(1, 16, *size)
    scores: list[int] = []
    real_softmax = Tensor.softmax

    def softmax(x: Tensor, dim: int) -> Tensor:
        scores.append(x.numel())
        return real_softmax(x, dim)

    monkeypatch.setattr(Tensor, "softmax", softmax)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), by_definition():
        module(x)
    cost = module.cost(*size)  # type: ignore[operator]
    assert 2 * cost.mult_adds == counter.get_total_flops()
    assert cost.score_entries == sum(scores)
    counts = {str(op).split(".")[-1]: f for op, f in counter.get_flop_counts()["Global"].items()}
    projections = sum(f for op, f in counts.items() if op in ("mm", "addmm", "convolution")) / 2
    assert cost.attention_mult_adds == cost.mult_adds - projections


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
