"""Growth of multiply-adds, memory and time with the side of the map, both axes logarithmic, names beside the lines."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.modules import Growth, Point
from benchmarks.modules_rows import ROWS
from isaseg.files import replace_file

# Okabe and Ito without yellow, and grey; a dash pattern says the same again
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#777777")
_DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (3, 1)),
    (0, (8, 2)),
    (0, (1, 2.5)),
    (0, (4, 1, 1, 1, 1, 1)),
)
_HELD = (0, (2, 2))
_GAP = 0.047  # between two names, as a share of the axis


def spread_out(
    wanted: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move places apart until neighbours are `gap` apart, each as near as it can be to where it was wanted.

    Order is kept. If they do not all fit between `low` and `high` they go beyond `high`.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[tuple[float, list[int]]] = []  # centre, members
    for index in order:
        centre, members = min(max(wanted[index], low), high), [index]
        while (
            clusters
            and centre - (len(members) - 1) / 2 * gap < clusters[-1][0] + (len(clusters[-1][1]) + 1) / 2 * gap
        ):
            members = clusters.pop()[1] + members
            half = (len(members) - 1) / 2 * gap
            centre = statistics.fmean(wanted[i] for i in members)
            centre = max(min(centre, high - half), low + half)
        clusters.append((centre, members))
    places = [0.0] * len(wanted)
    for centre, members in clusters:
        for position, index in enumerate(members):
            places[index] = centre + (position - (len(members) - 1) / 2) * gap
    return places


def plot_growth(curves: Sequence[Growth], limit: int, path: Path) -> None:
    """Draw the curves: computed as lines, measured as dots; `limit` in bytes is drawn across the memory."""
    figure = Figure(figsize=(15.5, 5.0), dpi=120, facecolor="white")
    panels = [figure.add_axes((0.045 + 0.333 * n, 0.12, 0.185, 0.76)) for n in range(3)]
    plain = [curve for curve in curves if not ROWS[curve.name].held or _alone(curve, curves)]
    _panel(panels[0], plain, lambda p: p.computed.mult_adds / 1e9, None)
    panels[0].set_title("multiply-adds of the block (10⁹)", fontsize=9.5, loc="left")
    panels[1].axhline(limit / 2**20, color="#999999", lw=0.8)  # before the names, which need the final axis
    panels[1].annotate(
        f"{limit / 2**30:.3g} GiB",
        (0.02, limit / 2**20),
        xycoords=("axes fraction", "data"),
        fontsize=7.5,
        va="bottom",
    )
    _panel(panels[1], curves, _computed_mib, _measured_mib)
    panels[1].set_title("weights, input and peak memory (MiB); dots: measured", fontsize=9.5, loc="left")
    timed = [curve for curve in curves if any(point.seconds for point in curve.points)]
    _panel(panels[2], timed, lambda p: p.seconds, None)
    panels[2].set_title("measured time of one run, memory taken anew (s)", fontsize=9.5, loc="left")
    with replace_file(path) as file:
        figure.savefig(file, format="png")


def _alone(curve: Growth, curves: Sequence[Growth]) -> bool:
    return not any(other.name == curve.name.removesuffix("-held") for other in curves)


def _computed_mib(point: Point) -> float:
    return (point.computed.held_bytes + point.computed.peak_bytes) / 2**20


def _measured_mib(point: Point) -> float | None:
    if point.measured_bytes is None:
        return None
    return (point.computed.held_bytes + point.measured_bytes) / 2**20


def _panel(
    axes: Axes,
    curves: Sequence[Growth],
    value: Callable[[Point], float | None],
    dots: Callable[[Point], float | None] | None,
) -> None:
    lines = [[(p.side, v) for p in curve.points if (v := value(p)) is not None and v > 0] for curve in curves]
    sides = sorted({point.side for curve in curves for point in curve.points})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("side of the map", fontsize=9)
    axes.xaxis.set_major_locator(FixedLocator([s for s in sides if math.log2(s).is_integer()] or sides))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda side, _: f"{side:g}"))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if not any(lines):
        return
    for curve, line in zip(curves, lines, strict=True):
        colour, dash = _style(curve)
        axes.plot(*zip(*line, strict=True), color=colour, linestyle=dash, lw=1.6)
        marks = [(p.side, v) for p in curve.points if dots is not None and (v := dots(p)) is not None]
        if marks:
            axes.plot(*zip(*marks, strict=True), color=colour, linestyle="", marker="o", ms=3.5)
    if len(sides) > 1:
        axes.set_xlim(sides[0], sides[-1])
    _label(axes, [(curve, line[-1]) for curve, line in zip(curves, lines, strict=True) if line])


def _style(curve: Growth) -> tuple[str, object]:
    families = [name for name, row in ROWS.items() if not row.held]
    index = families.index(curve.name.removesuffix("-held"))
    return _COLOURS[index], _HELD if ROWS[curve.name].held else _DASHES[index]


def _label(axes: Axes, ends: Sequence[tuple[Growth, tuple[int, float]]]) -> None:
    """Write each name right of the axis, near the height where its line ends."""
    low, high = (math.log10(edge) for edge in axes.get_ylim())
    left, right = (math.log10(edge) for edge in axes.get_xlim())
    heights = [(math.log10(y) - low) / (high - low) for _, (_, y) in ends]
    for (curve, (side, _)), height, place in zip(ends, heights, spread_out(heights, _GAP, 0, 1), strict=True):
        colour, _ = _style(curve)
        x = (math.log10(side) - left) / (right - left)
        axes.plot(
            (x, 1.02, 1.05),
            (height, place, place),
            color=colour,
            lw=0.6,
            clip_on=False,
            transform=axes.transAxes,
            alpha=0.8,
        )
        axes.text(1.06, place, curve.label, color=colour, fontsize=8.5, va="center", transform=axes.transAxes)
