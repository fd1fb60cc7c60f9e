"""`operators`: the generated parts of docs/operators.md: the picture of what a pixel hears from, and costs."""

from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.modules import context_module
from isaseg import config
from isaseg.errors import IsasegError
from isaseg.files import save_figure
from isaseg.models.attention_block import AttentionBlock
from isaseg.models.attention_kernels import by_definition
from isaseg.models.layers import Cost
from isaseg.report.reach import positive_copy

PICTURE = "operators_patterns.png"
SIZE, PIXEL = (32, 32), (13, 18)  # the pixel lies in the middle of no window and of no shifted one
SIDES = (64, 128, 256)
CHANNELS = 512
_FEW = 16  # channels of the pictures: CGNL's 8 groups of keys divide half of it
_GROUP = 8  # the windows and strides of conf/attention, where the pictures have lines
# inches of the picture, of a map, between two, of a line of them
_WIDTH, _SIDE, _GAP, _LINE = 10.0, 1.5, 0.1, 2.1

# How many scores each operator takes, in the order of the page: N positions of an H × W map, P of a window, Q of a
# lattice, G of a grid, k the kernel, M descriptors
SCORES: dict[str, str] = {
    "isa": "N (P + Q)",
    "isa_long": "N Q",
    "isa_short": "N P",
    "isa_parallel": "N (P + Q), of each size",
    "grid_block": "N (P + R)",
    "shifted_windows": "about 2 N P",
    "axial": "N (H + W)",
    "criss_cross_plain": "2 N (H + W)",
    "criss_cross": "2 N (H + W)",
    "neighbourhood": "2 N k²",
    "neighbourhood_dilated": "2 N k²",
    "pooled_keys": "N (P + Q)",
    "linear": "none",
    "double_attention": "2 N M",
    "cgnl": "none",
    "dense": "N²",
}


class Heard(NamedTuple):
    """Which cells a pixel hears from, bool (H, W): after each attention block in turn, and in the output."""

    stages: list[Tensor]
    output: Tensor


def benchmark(options: Namespace) -> None:
    """Draw the picture, and write the table between its markers in operators.md of the same folder."""
    page = options.output / "operators.md"
    page.write_text(current(page.read_text()))
    draw({name: heard(context_module(name, _FEW)) for name in names()}, options.output / PICTURE)
    print(f"written: {page}, {options.output / PICTURE}")


@cache
def names() -> tuple[str, ...]:
    """Return the attention of `conf/attention` that has products of attention, in the order of the page."""
    found = sorted(path.stem for path in (config.conf_dir() / "attention").glob("*.yaml"))
    found = [name for name in found if cost(name, *SIZE).attention_mult_adds]
    order = list(SCORES)
    return tuple(sorted(found, key=lambda name: order.index(name) if name in order else len(order)))


def current(text: str) -> str:
    """Return the page with its table of costs as it is now.

    Raises:
        IsasegError: If a marker of the table is missing.
    """
    begin, end = "<!-- costs, generated -->\n", "<!-- end of costs -->"
    head, begins, rest = text.partition(begin)
    _, ends, tail = rest.partition(end)
    if not (begins and ends):
        raise IsasegError(f"expected the lines {begin.strip()} and {end} in operators.md, one is missing")
    return f"{head}{begin}\n{cost_table()}\n{end}{tail}"


def heard(module: nn.Module, size: tuple[int, int] = SIZE, pixel: tuple[int, int] = PIXEL) -> Heard:
    """Return what one pixel of a context module hears from: where the gradient of its sum is not zero.

    The weights are positive and random, so that nothing cancels, and each block gets the whole map.

    Args:
        module: A context module; a copy of it is run, in float64.
        size: (H, W) of the map.
        pixel: Row and column.

    Raises:
        ValueError: If a block does not return the whole map.
    """
    module = positive_copy(module, torch.float64)
    maps: list[Tensor] = []
    for part in module.modules():
        if isinstance(part, AttentionBlock):
            part.register_forward_hook(lambda _part, _inputs, out: maps.append(out))
    generator = torch.Generator().manual_seed(1)
    x = 0.5 + torch.rand(1, _FEW, *size, generator=generator, dtype=torch.float64)
    with by_definition():
        out = module(x.requires_grad_())
    cells = []
    for values in (*maps, out):
        if values.shape[-2:] != size:
            raise ValueError(f"expected a block that returns a map of {size}, got {tuple(values.shape)}")
        (gradient,) = torch.autograd.grad(values[0, :, *pixel].sum(), x, retain_graph=True)
        cells.append((gradient[0] != 0).any(0))
    return Heard(cells[:-1], cells[-1])


def draw(operators: dict[str, Heard], path: Path) -> None:
    """Draw small maps of each operator, after the first stage and after all, into a PNG file."""
    panels: list[tuple[float, int, str, str, Tensor]] = []  # place in a line, line, name, title, cells
    x, line = 0.0, 0
    for name, found in operators.items():
        maps = {"one stage" if found.stages else "whole module": found.output}
        if len(found.stages) > 1:
            maps = {"stage 1": found.stages[0], "all stages": found.output}
        if x + len(maps) * (_SIDE + _GAP) > _WIDTH:
            x, line = 0.0, line + 1
        for number, (title, cells) in enumerate(maps.items()):
            panels.append((x, line, "" if number else name, title, cells))
            x += _SIDE + _GAP
        x += 2 * _GAP
    height = (line + 1) * _LINE
    figure = Figure(figsize=(_WIDTH, height), dpi=150)
    for x, line, name, title, cells in panels:
        bottom = height - (line + 1) * _LINE + _GAP
        place = ((x + _GAP / 2) / _WIDTH, bottom / height, _SIDE / _WIDTH, _SIDE / height)
        _show(figure.add_axes(place), name, title, cells)
    save_figure(figure, path)


def _show(axis: Axes, name: str, title: str, cells: Tensor) -> None:
    colours = ListedColormap(["#ececec", "#4a90c4"])
    axis.axis("off")
    axis.imshow(cells.int().numpy(), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    for edge in range(_GROUP, max(cells.shape), _GROUP):
        axis.axhline(edge - 0.5, color="white", linewidth=0.9)
        axis.axvline(edge - 0.5, color="white", linewidth=0.9)
    axis.plot(PIXEL[1], PIXEL[0], "s", color="#d62728", markersize=4.5, markeredgecolor="white")
    axis.set_title(f"{title}: {_short(100 * cells.double().mean().item())} %", fontsize=9, pad=3, loc="left")
    axis.text(0, 1.16, name, transform=axis.transAxes, fontsize=11, fontweight="bold")


def cost_table() -> str:
    """Return what each operator takes at the three sizes, as Markdown."""
    rows = []
    for name in names():
        costs = [cost(name, side, side) for side in SIDES]
        columns = (
            [one.attention_mult_adds / 1e9 for one in costs],
            [4 * one.score_entries / 2**20 for one in costs],
            [one.mult_adds / 1e9 for one in costs],
        )
        rows.append(
            [f"`{name}`", SCORES.get(name, ""), *(" / ".join(map(_short, column)) for column in columns)]
        )
    head = ["`attention=`", "scores", "attention, G", "scores in fp32, MiB", "whole module, G"]
    marks = ["---", "---", "--:", "--:", "--:"]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, marks, *rows))


@cache
def cost(name: str, height: int, width: int) -> Cost:
    """Return the cost of an attention of `conf/attention`, with 512 channels."""
    found: Cost = _module(name).cost(height, width)
    return found


@cache
def _module(name: str) -> Any:
    with torch.device("meta"):
        return context_module(name, CHANNELS)


def _short(value: float) -> str:
    """Return three figures, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
