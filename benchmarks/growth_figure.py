"""Growth of multiply-adds, memory and time with the side of the map, on logarithmic axes."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import color_sequences
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.harness import MIB, Measurement
from isaseg.files import save_figure

_PANELS: dict[str, Callable[[Measurement], float]] = {
    "multiply-adds (10⁹)": lambda row: row.counts["mult_adds"] / 1e9,
    "peak memory beyond weights and input (MiB)": lambda row: (row.peak_bytes or 0) / MIB,
    "time (s)": lambda row: row.median if row.seconds else 0,
}


def plot_growth(rows: Sequence[Measurement], path: Path) -> None:
    """Draw the `growing SIDE` rows of `modules`, a curve for each module, into a PNG file."""
    figure = Figure(figsize=(15.5, 5.0), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(_PANELS))
    colours = color_sequences["okabe_ito"]
    for axis, (title, value) in zip(axes, _PANELS.items(), strict=True):
        for number, name in enumerate(dict.fromkeys(row.pipeline for row in rows)):
            points = [(row.side, value(row)) for row in rows if row.pipeline == name and value(row) > 0]
            sides, values = zip(*points, strict=True) if points else ((), ())
            style = "-" if number < len(colours) else "--"
            axis.plot(sides, values, style, color=colours[number % len(colours)], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel="side of the map", title=title)
        axis.set_xticks(sorted({row.side for row in rows}))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.25)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save_figure(figure, path)
