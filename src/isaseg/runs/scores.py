"""The scores of a run: metrics.json, confusion.json, the table of classes, the confusion matrix and the curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from isaseg.console import is_share, percent
from isaseg.files import save_figure
from isaseg.runs.guarded_loggers import GuardedLogger
from isaseg.runs.history import read_history
from isaseg.runs.loggers import NeverFatalWandbLogger
from isaseg.runs.pictures import figure_pixels

_OF_CLASSES = ("iou", "acc", "boundary_iou")


def finite_number(value: Any) -> int | float | None:
    """Return a number as JSON can hold it: None for NaN and infinity."""
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def run_metrics(
    values: Mapping[str, Any], classes: Sequence[str], scores: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Return the contents of metrics.json: `values` and the IoU of every class, None for what is not finite.

    `scores` has what `SplitScores.compute` returns, by split: its IoU is val/IoU, test/IoU.
    """
    shares = {
        f"{split}/IoU": {name: finite_number(x) for name, x in zip(classes, held["iou"], strict=True)}
        for split, held in scores.items()
    }
    return {**{key: finite_number(value) for key, value in values.items()}, **shares}


def class_table(classes: Sequence[str], scores: Mapping[str, Tensor], title: str = "validation") -> Table:
    """Return IoU, accuracy and Boundary IoU per class in per cent, with the means below.

    Args:
        classes: Names, K.
        scores: What `SplitScores.compute` returns.
        title: Shown above the table.
    """
    table = Table(title=escape(title), show_footer=True)
    table.add_column("class", footer="mean")
    table.add_column("IoU %", footer=percent(scores["mIoU"]), justify="right")
    table.add_column("acc %", footer=percent(scores["mAcc"]), justify="right")
    table.add_column("boundary IoU %", footer=percent(scores["boundary_mIoU"]), justify="right")
    for name, *shares in zip(classes, *(scores[key] for key in _OF_CLASSES), strict=True):
        table.add_row(escape(name), *map(percent, shares), style="dim" if torch.isnan(shares[0]) else None)
    pixels, images = percent(scores["aAcc"]), percent(scores["image_mIoU"])
    table.caption = f"pixel accuracy (aAcc) {pixels} %\nmean mIoU of an image {images} %"
    return table


def log_classes(loggers: Sequence[Logger], classes: Sequence[str], scores: Mapping[str, Tensor]) -> None:
    """Send the table of classes and the picture of the confusion matrix to the loggers that take such."""
    takers = [item for item in loggers if isinstance(item, NeverFatalWandbLogger | GuardedLogger)]
    if not takers:  # drawing 150 classes takes a second
        return
    columns = ["class", "IoU", "acc", "boundary IoU"]
    values = zip(classes, *(scores[key] for key in _OF_CLASSES), strict=True)
    rows = [[name, *map(finite_number, shares)] for name, *shares in values]
    # a picture, because W&B's own chart ends at 10000 cells and no terminal viewer shows it
    pixels = figure_pixels(confusion_figure(scores["matrix"], classes))
    for logger in takers:
        logger.log_table("val/classes", columns, rows)
        logger.log_images("val/confusion", {"matrix": pixels})


def confusion_figure(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Draw which share of the pixels of each class is predicted as which class, with the numbers if they fit.

    Args:
        matrix: Counts (K, K), rows are targets.
        classes: Names.
    """
    share = (100 * matrix.double() / matrix.sum(1, keepdim=True)).numpy()
    few = len(classes) <= 30
    side = min(max(5.0, 0.42 * len(classes) + 2.5), 24.0)
    size = 9 if few else max(2.5, 330 / len(classes))
    figure = Figure(figsize=(side, side), dpi=110, facecolor="white", layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axis.set_yticks(range(len(classes)), classes, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("labelled")
    axis.set_title("pixels of each class, % of its row", fontsize=10)
    for row, column in np.argwhere(share >= 0.5) if few else ():
        value = share[row, column]
        colour = "white" if value > 60 else "0.2"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return figure


def plot_curves(folder: Path) -> None:
    """Draw train/loss, val/loss and val/mIoU of a run against its steps, into curves.png of its folder."""
    curves = read_history(folder).curves
    figure = Figure(figsize=(9.0, 3.2), dpi=110, facecolor="white")
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.15, top=0.93, wspace=0.16)
    for axis, keys in zip(figure.subplots(1, 2), (("train/loss", "val/loss"), ("val/mIoU",)), strict=True):
        for key in keys:
            scale, label = (100, f"{key} %") if is_share(key) else (1, key)
            if points := sorted((step, scale * value) for step, value in curves.get(key, {}).items()):
                marker = "o" if len(points) < 40 else None
                axis.plot(*zip(*points, strict=True), marker=marker, ms=3, lw=1.4, label=label)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            axis.legend(frameon=False, fontsize=9)
    save_figure(figure, folder / "curves.png")
