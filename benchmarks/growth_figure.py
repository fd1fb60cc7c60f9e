"""Growth of multiply-adds, memory and time with the side of the map, on logarithmic axes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.harness import MIB, Row
from isaseg.files import replace_file

_DASHES = ("-", "--", "-.", (0, (8, 2)), (0, (3, 1)), (0, (6, 1, 1, 1)), (0, (4, 1, 1, 1, 1, 1)), (0, (1, 1)))


def plot_growth(rows: Sequence[Row], limit: int, path: Path) -> None:
    """Draw a curve for each module.

    Args:
        rows: The `growing SIDE` rows of `modules`.
        limit: Bytes of memory, drawn as a line.
        path: PNG file.
    """
    panels: dict[str, Callable[[Row], float | None]] = {
        "multiply-adds of the block (10⁹)": lambda row: row.counts["mult_adds"] / 1e9,
        "weights, input and computed peak memory (MiB); dots: measured": lambda row: (
            (row.counts["held_bytes"] + row.counts["computed_bytes"]) / MIB
        ),
        "measured time of one run, memory taken anew (s)": lambda row: row.median if row.seconds else None,
    }
    figure = Figure(figsize=(15.5, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels))
    names = list(dict.fromkeys(row.pipeline for row in rows))
    colours = color_sequences["okabe_ito"]
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        for number, name in enumerate(names):
            style = {"color": colours[number % len(colours)], "linestyle": _DASHES[number % len(_DASHES)]}
            points = [(row.side, value(row)) for row in rows if row.pipeline == name and value(row)]
            axis.plot(*zip(*points, strict=True), label=name, **style) if points else None
        axis.set_title(title, fontsize=9.5, loc="left")
        axis.set(xscale="log", yscale="log", xlabel="side of the map")
        axis.set_xticks(sorted({row.side for row in rows}))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
    for number, name in enumerate(names):
        mine = [row for row in rows if row.pipeline == name and row.peak_bytes is not None]
        measured = [(row.counts["held_bytes"] + (row.peak_bytes or 0)) / MIB for row in mine]
        axes[1].scatter([row.side for row in mine], measured, s=12, color=colours[number % len(colours)])
    axes[1].axhline(limit / MIB, color="#999999", lw=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    with replace_file(path) as file:
        figure.savefig(file, format="png")
