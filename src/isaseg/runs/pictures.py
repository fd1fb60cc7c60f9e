"""What a run leaves for people: pictures, the table of classes, metrics.json, curves."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from torch import Tensor, nn

from isaseg.files import replace_file
from isaseg.runs.loggers import NeverFatalWandbLogger

Palette = Sequence[Sequence[int]]

_LONGEST_SIDE = 768  # of a picture for people; larger images are thinned out
_IGNORED = (255, 255, 255)


class Sample(NamedTuple):
    """One validation image: `image` uint8 RGB (3, h, w) as the network gets it, `mask` (H, W), `id` its name."""

    image: Tensor
    mask: Tensor
    id: str


class Data(Protocol):
    """What is asked of a data module."""

    ignore_index: int

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    @property
    def palette(self) -> Palette:
        """One RGB triple, 0 to 255, per class."""

    def dataset(self, split: str) -> Any:
        """Return a split as a sequence of dicts of `image`, `mask` and `id`."""


# ---------------------------------------------------------------- pictures


def samples(datamodule: Data, count: int) -> list[Sample]:
    """Return `count` validation images, or all if there are fewer, spread evenly and always the same."""
    dataset = datamodule.dataset("val")
    count = min(count, len(dataset))
    found = (dataset[number * len(dataset) // count] for number in range(count))
    return [Sample(s["image"], s["mask"], s["id"]) for s in found]


def predict(segmenter: nn.Module, sample: Sample) -> Tensor:
    """Return the labels (H, W) of one image, on the CPU; the mode of the network is left as it was."""
    was_training = segmenter.training
    device = next(segmenter.parameters()).device
    segmenter.eval()
    with torch.no_grad():
        labels: Tensor = segmenter(sample.image[None].to(device), sample.mask.shape).argmax(1)[0].cpu()
    segmenter.train(was_training)
    return labels


def save_pictures(segmenter: nn.Module, datamodule: Data, folder: Path, count: int = 6) -> None:
    """Write `count` validation images, each beside truth and prediction, as PNGs named by their ids."""
    for place, sample in enumerate(samples(datamodule, count)):
        save_picture(
            folder / f"{place:02d}_{stem(sample.id)}.png",
            *sample[:2],
            predict(segmenter, sample),
            datamodule.palette,
            datamodule.ignore_index,
            datamodule.classes,
        )


def stem(sample_id: str) -> str:
    """Return the name of a sample as that of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(sample_id).stem)


def save_picture(
    path: Path,
    image: Tensor,
    mask: Tensor,
    prediction: Tensor,
    palette: Palette,
    ignore_index: int,
    classes: Sequence[str],
    titles: tuple[str, str, str] = ("image", "ground truth", "prediction"),
) -> None:
    """Write image, ground truth and prediction side by side, with a legend of the classes that occur.

    Args:
        path: PNG file.
        image: uint8 RGB, (3, h, w); shown at the size of the mask.
        mask: (H, W).
        prediction: (H, W).
        palette: One RGB triple, 0 to 255, per class.
        ignore_index: Shown white.
        classes: Names.
        titles: Of the three panels.
    """
    step = math.ceil(max(mask.shape) / _LONGEST_SIDE)
    labels = [x[::step, ::step].numpy() for x in (mask, prediction)]
    panels = [
        _at_size(image, mask)[::step, ::step],
        *(_colour(x, palette, ignore_index) for x in labels),
    ]
    seen = sorted(set(np.unique(labels[0])) | set(np.unique(labels[1])), key=int)
    handles = [_patch(classes[c], palette[c]) for c in seen if c != ignore_index]
    if ignore_index in seen:
        handles.append(_patch("ignored", _IGNORED))
    width, panel_width = 11.0, 3.6
    columns = min(len(handles), 7)
    legend_height = 0.22 * math.ceil(len(handles) / max(columns, 1)) + 0.15
    height = panel_width * mask.shape[0] / mask.shape[1] + 0.4 + legend_height
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    axes = figure.subplots(1, 3, squeeze=False)[0]
    for axis, panel, title in zip(axes, panels, titles, strict=True):
        axis.imshow(panel, interpolation="nearest" if max(mask.shape) < _LONGEST_SIDE // 2 else "antialiased")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("0.6")
    figure.subplots_adjust(0.01, legend_height / height, 0.99, 1 - 0.3 / height, wspace=0.03)
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, fontsize=8, frameon=False, handlelength=1.2
    )
    _save_figure(figure, path)


def wandb_image(sample: Sample, prediction: Tensor, classes: Sequence[str], ignore_index: int) -> wandb.Image:
    """Return the image with truth and prediction as overlays that W&B can switch on and off."""
    step = math.ceil(max(sample.mask.shape) / _LONGEST_SIDE)
    labels = {**dict(enumerate(classes)), ignore_index: "ignored"}
    overlays = {"ground_truth": sample.mask, "prediction": prediction}
    masks = {k: {"mask_data": v[::step, ::step].numpy(), "class_labels": labels} for k, v in overlays.items()}
    return wandb.Image(_at_size(sample.image, sample.mask)[::step, ::step], masks=masks, caption=sample.id)


def _at_size(image: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    if picture.shape[:2] != tuple(mask.shape):
        picture = cv2.resize(picture, tuple(mask.shape)[::-1], interpolation=cv2.INTER_AREA)
    return picture


def _colour(labels: NDArray[Any], palette: Palette, ignore_index: int) -> NDArray[np.uint8]:
    table = np.full((max(256, len(palette), ignore_index + 1), 3), _IGNORED, np.uint8)
    table[: len(palette)] = palette
    table[ignore_index] = _IGNORED
    picture: NDArray[np.uint8] = table[labels]
    return picture


def _patch(label: str, colour: Sequence[int]) -> Patch:
    red, green, blue = (x / 255 for x in colour)
    return Patch(facecolor=(red, green, blue), edgecolor="0.6", linewidth=0.5, label=label)


# ---------------------------------------------------------------- scores


def class_table(classes: Sequence[str], scores: Mapping[str, Tensor], title: str = "validation") -> Table:
    """Return IoU and accuracy per class in per cent, with the means below.

    Args:
        classes: Names, K.
        scores: What `ConfusionMatrix.compute` returns.
        title: Above it.
    """
    table = Table(title=title, show_footer=True)
    table.add_column("class", footer="mIoU / mAcc")
    table.add_column("IoU %", footer=_percent(scores["mIoU"]), justify="right")
    table.add_column("acc %", footer=_percent(scores["mAcc"]), justify="right")
    for name, iou, acc in zip(classes, scores["iou"], scores["acc"], strict=True):
        table.add_row(name, _percent(iou), _percent(acc), style="dim" if torch.isnan(iou) else None)
    table.caption = f"pixel accuracy (aAcc) {_percent(scores['aAcc'])} %"
    return table


def log_classes(loggers: Sequence[Logger], classes: Sequence[str], scores: Mapping[str, Tensor]) -> None:
    """Send the table of classes and the picture of the confusion matrix to the W&B loggers among `loggers`."""
    rows = [
        [name, *map(number, pair)] for name, *pair in zip(classes, scores["iou"], scores["acc"], strict=True)
    ]
    for logger in loggers:
        if isinstance(logger, NeverFatalWandbLogger):
            picture = io.BytesIO()
            _confusion(scores["matrix"], classes).savefig(picture, format="png")
            logger.log_payload(
                {
                    "val/classes": wandb.Table(columns=["class", "IoU", "acc"], data=rows),
                    # a picture and not W&B's own chart: that one is in no terminal viewer, and ends at 10000 cells
                    "val/confusion": wandb.Image(Image.open(picture)),
                }
            )


def metrics(
    values: Mapping[str, Any], classes: Sequence[str], scores: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the contents of metrics.json: numbers and the IoU of every class; what is not a number becomes None."""
    iou = {name: number(x) for name, x in zip(classes, scores["iou"], strict=True)}
    return {**{k: number(v) for k, v in values.items()}, "val/IoU": iou}


def write_confusion(path: Path, classes: Sequence[str], matrix: Tensor) -> None:
    """Write counts (K, K), rows are targets, with the names of the classes."""
    write_json(path, {"classes": list(classes), "matrix": matrix.long().tolist()}, indent=None)


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write strict JSON, whole or not at all."""
    with replace_file(path) as file:
        file.write((json.dumps(content, indent=indent, allow_nan=False) + "\n").encode())


def plot_confusion(path: Path, matrix: Tensor, classes: Sequence[str]) -> None:
    """Draw which share of each class's pixels is predicted as which class; with the numbers where they fit.

    Args:
        path: PNG file.
        matrix: Counts (K, K), rows are targets.
        classes: Names.
    """
    _save_figure(_confusion(matrix, classes), path)


def _confusion(matrix: Tensor, classes: Sequence[str]) -> Figure:
    share = (100 * matrix.double() / matrix.sum(1, keepdim=True)).numpy()
    side = min(max(5.0, 0.42 * len(classes) + 2.5), 24.0)
    size = 9 if len(classes) <= 30 else max(2.5, 330 / len(classes))
    figure = Figure(figsize=(side, side), dpi=110, facecolor="white", layout="constrained")
    axis = figure.subplots()
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axis.set_yticks(range(len(classes)), classes, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("labelled")
    axis.set_title("pixels of each class, % of its row", fontsize=10)
    for row, column in np.argwhere(share >= 0.5) if len(classes) <= 30 else ():
        value = share[row, column]
        axis.text(
            column,
            row,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > 60 else "0.2",
        )
    return figure


def plot_curves(metrics_csv: Path, path: Path) -> None:
    """Draw train/loss, val/loss and val/mIoU of a metrics.csv against the steps."""
    figure = Figure(figsize=(9.0, 3.2), dpi=110, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, keys in ((left, ("train/loss", "val/loss")), (right, ("val/mIoU",))):
        for key in keys:
            _curve(axis, key, _read_column(metrics_csv, key))
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.lines:
            axis.legend(frameon=False, fontsize=9)
    _save_figure(figure, path)


def _curve(axis: Axes, key: str, points: Mapping[int, float]) -> None:
    if points:
        steps = sorted(points)
        axis.plot(
            steps,
            [points[s] for s in steps],
            marker="o" if len(steps) < 40 else None,
            ms=3,
            lw=1.4,
            label=key,
        )


def _read_column(metrics_csv: Path, key: str) -> dict[int, float]:
    with metrics_csv.open(newline="") as file:
        return {int(row["step"]): float(row[key]) for row in csv.DictReader(file) if row.get(key)}


def _save_figure(figure: Figure, path: Path) -> None:
    with replace_file(path) as file:
        figure.savefig(file, format="png")


def _percent(value: Tensor) -> str:
    number = float(value)
    return "absent" if math.isnan(number) else f"{100 * number:.2f}"


def number(value: Any) -> int | float | None:
    """Return what JSON can hold: None for what is not finite."""
    if isinstance(value, int):
        return value
    found = float(value)
    return found if math.isfinite(found) else None
