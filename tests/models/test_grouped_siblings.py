"""Grid blocks, shifted windows and axial attention against their definitions, pixel by pixel in float64."""

from collections.abc import Callable
from itertools import product
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock
from isaseg.models.attention_kernels import by_definition
from isaseg.models.axial import Axial
from isaseg.models.grid_block import GridBlock
from isaseg.models.shifted_windows import ShiftedWindows
from tests.models.references import Pattern, Size, lattice, made, offset, random_map, reference_stage

# several windows, no multiples, one row, one column, smaller than a window, one position more than a window
SIZES = [(8, 12), (7, 10), (1, 9), (9, 1), (2, 3), (5, 4), (1, 1)]


def windows(size: Size, group: Size, shift: Size = (0, 0)) -> Pattern:
    """Return windows that `shift` moves down and to the right; those of no shift are centred around the map."""
    top, left = offset(size, group)

    def number(cell: Size) -> Size:
        return (cell[0] + top - shift[0]) // group[0], (cell[1] + left - shift[1]) // group[1]

    return lambda a, b: number(a) == number(b)


def window_then_shifted(group: Size) -> Callable[[Size], list[Pattern]]:
    return lambda size: [windows(size, group), windows(size, group, (group[0] // 2, group[1] // 2))]


def window_and_grid(group: Size, grid: Size, turned: bool = False) -> Callable[[Size], list[Pattern]]:
    def stages(size: Size) -> list[Pattern]:
        stride = -(-size[0] // grid[0]), -(-size[1] // grid[1])
        both = [windows(size, group), lattice(stride)]
        return both[::-1] if turned else both

    return stages


def rows_and_columns(turned: bool = False) -> Callable[[Size], list[Pattern]]:
    def same(axis: int) -> Pattern:
        return lambda a, b: a[axis] == b[axis]

    return lambda size: [same(1), same(0)] if turned else [same(0), same(1)]


# the arguments, the patterns of the two stages, the blocks in running order
MODULES: dict[str, tuple[Callable[[], Any], Callable[[Size], list[Pattern]], str]] = {
    "grid block": (
        lambda: GridBlock(6, window_size=(4, 3), grid_size=(2, 5)),
        window_and_grid((4, 3), (2, 5)),
        "window grid",
    ),
    "grid block, turned": (
        lambda: GridBlock(6, window_size=(2, 4), grid_size=(3, 2), order="grid_window"),
        window_and_grid((2, 4), (3, 2), turned=True),
        "grid window",
    ),
    "shifted windows": (
        lambda: ShiftedWindows(6, window_size=(4, 3)),
        window_then_shifted((4, 3)),
        "window shifted",
    ),
    "shifted windows of no half": (
        lambda: ShiftedWindows(6, window_size=(1, 5)),
        window_then_shifted((1, 5)),
        "window shifted",
    ),
    "axial": (lambda: Axial(6), rows_and_columns(), "rows columns"),
    "axial, turned": (
        lambda: Axial(6, order="columns_rows"),
        rows_and_columns(turned=True),
        "columns rows",
    ),
}
every_module = pytest.mark.parametrize("name", MODULES)


def make(name: str) -> nn.Module:
    module: nn.Module = made(MODULES[name][0])
    return module


def defined(name: str, module: nn.Module, x: Tensor) -> Tensor:
    size = x.shape[2], x.shape[3]
    images = []
    for image in x:
        pixels = {(r, c): image[:, r, c] for r, c in product(range(size[0]), range(size[1]))}
        for block, pattern in zip(MODULES[name][2].split(), MODULES[name][1](size), strict=True):
            pixels = reference_stage(cast(AttentionBlock, module.get_submodule(block)), pixels, pattern)
        images.append(torch.stack(list(pixels.values()), dim=1).view(-1, *size))
    return torch.stack(images)


@torch.no_grad()
@every_module
@pytest.mark.parametrize("size", SIZES)
def test_a_module_is_its_definition(name: str, size: Size) -> None:
    module, x = make(name), random_map(2, 6, *size)
    want = defined(name, module, x)
    torch.testing.assert_close(module(x), want, rtol=0, atol=1e-12)
    with by_definition():
        torch.testing.assert_close(module(x), want, rtol=0, atol=1e-12)


def test_a_grid_has_at_most_its_positions_on_maps_of_any_size() -> None:
    """So the scores of the grid stage grow with the positions alone, here in a map sixteen times as large."""
    with torch.device("meta"):
        small, large = (GridBlock(16).cost(side, side).score_entries for side in (32, 128))
    assert large == 16 * small == 128 * 128 * (64 + 64)
