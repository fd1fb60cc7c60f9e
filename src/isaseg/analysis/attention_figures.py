"""Pictures of attention: the pattern of a group size, and the weights of chosen pixels over a picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from isaseg.analysis.attention_maps import AttentionMaps, Position, check_inside
from isaseg.models.interlaced import InterlacedSparseAttention, Order
from isaseg.report.reach import attention_support

_ORDERS: dict[str, Order] = {"long-range stage": "long", "short-range stage": "short", "both": "long_short"}


def pattern_figure(
    group_size: tuple[int, int] = (4, 4), size: tuple[int, int] = (16, 16), position: Position = (6, 9)
) -> Figure:
    """Draw which positions of a map one position attends to in each stage of ISA, as measured on the module.

    Args:
        group_size: (P_h, P_w).
        size: (H, W) of the map.
        position: The position (row, column) that attends.

    Raises:
        ValueError: If `position` lies outside the map.
    """
    check_inside(position, size)
    figure = _figure(3.0 * len(_ORDERS), 3.0 * size[0] / size[1] + 0.5)
    for axes, (title, order) in zip(figure.subplots(1, len(_ORDERS)), _ORDERS.items(), strict=True):
        module = InterlacedSparseAttention(2, group_size=group_size, order=order)
        heard = attention_support(module, 2, *size)[position[0] * size[1] + position[1]].view(size)
        axes.pcolormesh(
            heard.float().numpy(), cmap="Blues", vmin=0, vmax=1.6, edgecolors="white", linewidth=1
        )
        axes.plot(position[1] + 0.5, position[0] + 0.5, "o", color="#D55E00", ms=6)
        axes.set_title(f"{title}: {int(heard.sum())} positions", fontsize=10)
        _bare(axes)
        axes.set_xlim(0, size[1])
        axes.set_ylim(size[0], 0)
    return figure


def attention_figure(
    image: Tensor, pixels: Sequence[Position], networks: Mapping[str, AttentionMaps]
) -> Figure:
    """Draw a row of panels for each pixel: the picture, then the weights of every stage and of all stages together.

    The colours of a panel range from 0 to its largest weight, which its title states. They follow the square root of the
    weight, so that small weights are visible. Where the weight is 0, the picture shows through.

    Args:
        image: uint8 RGB, (3, H, W).
        pixels: M pixels (row, column).
        networks: What `image_attention` returned for these pixels, by the title of the panels.
    """
    columns = [
        (f"{name}\n{stage}" if stage else name, weights)
        for name, maps in networks.items()
        for stage, weights in _panels(maps)
    ]
    height, width = image.shape[-2:]
    lines, panel = len(pixels), 2.1
    figure = _figure(panel * (1 + len(columns)), (panel * height / width + 0.35) * lines + 0.3)
    grid = figure.subplots(lines, 1 + len(columns), squeeze=False)
    for line, (pixel, row) in enumerate(zip(pixels, grid, strict=True)):
        row[0].imshow(image.permute(1, 2, 0).numpy())
        row[0].set_title(("picture\n" if line == 0 else "") + f"pixel {pixel}", fontsize=8.5)
        for axes, (title, weights) in zip(row[1:], columns, strict=True):
            axes.imshow(image.float().mean(0).numpy(), cmap="gray", vmin=-128, vmax=383)  # faded
            strength = (weights[line] / weights[line].max()).sqrt().cpu().numpy()
            axes.imshow(
                np.ma.masked_equal(strength, 0),
                cmap="magma",
                vmin=-1 / 3,  # the darkest colours are hard to see
                vmax=1,
                alpha=0.25 + 0.75 * strength,
                interpolation="nearest",
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            axes.set_title((title + "\n" if line == 0 else "") + _summary(weights[line]), fontsize=8.5)
        for axes in row:
            axes.plot(pixel[1], pixel[0], "o", ms=7, mfc="none", mec="white", mew=3.2)
            axes.plot(pixel[1], pixel[0], "o", ms=7, mfc="none", mec="#D55E00", mew=1.4)
            _bare(axes)
    return figure


def _panels(maps: AttentionMaps) -> list[tuple[str, Tensor]]:
    if len(maps.stages) == 1:
        return [("", maps.product)]
    stages = [(f"{name.replace('_', '-')} stage", weights) for name, weights in maps.stages.items()]
    return [*stages, ("product of the stages", maps.product)]


def _summary(weights: Tensor) -> str:
    """Return how many positions have weight, the largest weight, and the share that lies on padding."""
    padding = 1 - float(weights.sum())
    text = f"{int((weights > 0).sum())} positions, largest {float(weights.max()):.2g}"
    return text + (f"\n{padding:.0%} on padding" if padding > 0.005 else "")


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=100, facecolor="white", layout="constrained")


def _bare(axes: Axes) -> None:
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("0.6")
