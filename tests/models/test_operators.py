"""Known operators that ISA's partitions and stages are equal to: timm's, and papers' by their index rules."""

from typing import cast

import pytest
import torch
from timm.models import maxxvit, swin_transformer
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock
from isaseg.models.axial import Axial
from isaseg.models.baselines import SelfAttention2d
from isaseg.models.grid_block import GridBlock
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.regroup import deinterlace, interlace, merge_windows, split_windows
from isaseg.models.shifted_windows import ShiftedWindows
from tests.models.references import Size, made, random_map

P = (8, 8)
MAPS = pytest.mark.parametrize("size", [(16, 24), (8, 32), (40, 8)])


def carry(source: nn.Module, target: nn.Module, **names: str) -> None:
    """Copy the weights of each block of `target` from the block of `source` that `names` gives for it."""
    for own, other in names.items():
        target.get_submodule(own).load_state_dict(source.get_submodule(other).state_dict())


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


# ---------------------------------------------------------------- permutations


@MAPS
def test_the_lattice_is_the_grid_of_maxvit(size: Size) -> None:
    x, grid = random_map(2, 3, *size), (size[0] // P[0], size[1] // P[1])
    ours = interlace(x, P)
    theirs = maxxvit.grid_partition(last(x), list(grid))
    assert torch.equal(last(ours), theirs)
    assert torch.equal(ours, maxxvit.grid_partition_nchw(x, list(grid)))
    assert torch.equal(last(deinterlace(ours, P)), maxxvit.grid_reverse(theirs, list(grid), list(size)))
    assert torch.equal(
        deinterlace(ours, P), maxxvit.grid_reverse_nchw(ours.contiguous(), list(grid), list(size))
    )


@MAPS
def test_the_windows_are_those_of_maxvit_and_swin(size: Size) -> None:
    x = random_map(2, 3, *size)
    ours = split_windows(x, P)
    theirs = maxxvit.window_partition(last(x), list(P))
    assert torch.equal(last(ours), theirs)
    assert torch.equal(last(ours), swin_transformer.window_partition(last(x), P))
    assert torch.equal(ours, maxxvit.window_partition_nchw(x, list(P)))
    merged = merge_windows(ours, size)
    assert torch.equal(last(merged), maxxvit.window_reverse(theirs, list(P), list(size)))
    assert torch.equal(last(merged), swin_transformer.window_reverse(theirs, P, *size))
    assert torch.equal(merged, maxxvit.window_reverse_nchw(ours.contiguous(), list(P), list(size)))


@MAPS
def test_the_lattice_is_the_long_distance_group_of_crossformer(size: Size) -> None:
    """arXiv 2108.00154, section 3.2: the positions of a group lie a fixed interval I apart.

    With G = S / I of them a side, row r of the map is row r // I of its group, whose number is r mod I.
    """
    x, interval = random_map(2, 3, *size), P
    per_side = size[0] // interval[0], size[1] // interval[1]
    # (B, C, G_h, I_h, G_w, I_w)
    axes = x.reshape(2, 3, per_side[0], interval[0], per_side[1], interval[1])
    # (B, I_h, I_w, C, G_h, G_w): the interval's remainder numbers the groups
    groups = axes.permute(0, 3, 5, 1, 2, 4).reshape(-1, 3, *per_side)
    assert torch.equal(interlace(x, interval), groups)
    assert torch.equal(interlace(x, interval)[8 * 2 + 5], x[0, :, 2::8, 5::8])


@MAPS
def test_the_lattice_is_the_spatial_shuffle_of_shuffle_transformer(size: Size) -> None:
    """arXiv 2106.03650: the N positions of an axis, as a table of M rows for windows of M, are transposed.

    A window of the shuffled map then holds positions that lay N / M apart: it is the lattice of that stride. The way
    back is the transposition once more.
    """
    x, window = random_map(2, 3, *size), (size[0] // P[0], size[1] // P[1])

    def shuffled(length: int, of_window: int) -> Tensor:
        """Return which position comes to each place: place w M + m takes m N / M + w."""
        return torch.arange(length).view(of_window, length // of_window).T.flatten()

    rows, columns = shuffled(size[0], window[0]), shuffled(size[1], window[1])
    mixed = x[:, :, rows][..., columns]
    assert torch.equal(split_windows(mixed, window), interlace(x, P))
    back = torch.empty_like(x)
    back[:, :, rows[:, None], columns] = merge_windows(interlace(x, P), size)
    assert torch.equal(back, x)


# ---------------------------------------------------------------- attention


@torch.no_grad()
@MAPS
def test_a_grid_block_of_as_many_positions_is_isa(size: Size) -> None:
    isa = made(InterlacedSparseAttention, 6, group_size=P)
    block = made(GridBlock, 6, window_size=P, grid_size=(size[0] // 8, size[1] // 8), order="grid_window")
    carry(isa, block, grid="long_range", window="short_range")
    x = random_map(2, 6, *size)
    torch.testing.assert_close(block(x), isa(x), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [(5, 7), (6, 1), (1, 4)])
@pytest.mark.parametrize("orders", [("rows_columns", "short_long"), ("columns_rows", "long_short")])
def test_axial_attention_is_isa_of_one_row(size: Size, orders: tuple[str, str]) -> None:
    axial = made(Axial, 6, order=orders[0])
    isa = made(InterlacedSparseAttention, 6, group_size=(1, size[1]), order=orders[1])
    carry(isa, axial, rows="short_range", columns="long_range")
    x = random_map(2, 6, *size)
    torch.testing.assert_close(axial(x), isa(x), rtol=0, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("order, of_one", [("long", (1, 1)), ("short", (5, 7))])
def test_dense_attention_is_isa_of_one_group(order: str, of_one: Size) -> None:
    dense = made(SelfAttention2d, 6)
    isa = made(InterlacedSparseAttention, 6, group_size=of_one, order=order)
    carry(dense, isa, **{f"{order}_range": "block"})
    x = random_map(2, 6, 5, 7)
    torch.testing.assert_close(isa(x), dense(x), rtol=0, atol=1e-12)


def rolled(block: AttentionBlock, x: Tensor, window: Size) -> Tensor:
    """Compute a stage as Swin does: roll the map, cut windows, add timm's mask to the scores, put back."""
    size, shift = (x.shape[2], x.shape[3]), (window[0] // 2, window[1] // 2)
    timms = swin_transformer.SwinTransformerBlock(4, size, num_heads=1, window_size=window, shift_size=shift)
    assert timms.window_size == window and timms.shift_size == shift
    mask_WLL = cast(Tensor, timms.get_attn_mask(dtype=torch.float64))
    mask_GLL = mask_WLL.masked_fill(mask_WLL < 0, float("-inf")).repeat(x.shape[0], 1, 1)  # -100 leaves 1e-44

    def tokens(x: Tensor) -> Tensor:
        mixed = torch.roll(last(x), (-shift[0], -shift[1]), dims=(1, 2))
        return swin_transformer.window_partition(mixed, window).flatten(1, 2)

    q, k, v = (tokens(layers(x)) for layers in (block.query, block.key, block.value))
    weights = (q @ k.transpose(1, 2) * q.shape[2] ** -0.5 + mask_GLL).softmax(-1)
    context = (weights @ v).unflatten(1, window)
    mixed = swin_transformer.window_reverse(context, window, *size)
    out: Tensor = block.proj(torch.roll(mixed, shift, dims=(1, 2)).permute(0, 3, 1, 2))
    return out


@torch.no_grad()
@pytest.mark.parametrize("size, window", [((16, 24), (8, 8)), ((14, 21), (7, 7)), ((8, 15), (4, 5))])
def test_shifted_windows_are_swins_cyclic_shift_and_mask(size: Size, window: Size) -> None:
    module = cast(ShiftedWindows, made(ShiftedWindows, 6, window_size=window))
    isa = made(InterlacedSparseAttention, 6, group_size=window, order="short")
    carry(module, isa, short_range="window")
    x = random_map(2, 6, *size)
    torch.testing.assert_close(module(x), rolled(module.shifted, isa(x), window), rtol=0, atol=1e-12)
