"""Validation images beside what the network makes of them: PNGs in the run folder, and what the loggers are sent."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import wandb
from lightning.pytorch.loggers import Logger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from isaseg.data.adopted import Data, LabelInfo
from isaseg.data.overlay import legend_handles
from isaseg.data.source import Source
from isaseg.files import save_figure
from isaseg.runs.guarded_loggers import GuardedLogger
from isaseg.runs.loggers import NeverFatalWandbLogger

_LONGEST_SIDE = 768  # pixels shown; larger images are subsampled


class Sample(NamedTuple):
    """One validation image: `image` uint8 RGB (3, h, w) as the network gets it, `mask` (H, W), `id` its name."""

    image: Tensor
    mask: Tensor
    id: str


def validation_samples(datamodule: Data, count: int) -> list[Sample]:
    """Return `count` validation images, or all if there are fewer, evenly spread and always the same."""
    length = datamodule.length("val")
    count = min(count, length)
    items = datamodule.samples("val", [number * length // count for number in range(count)])
    return [Sample(item["image"], item["mask"], item["id"]) for item in items]


def predict_sample(segmenter: nn.Module, sample: Sample) -> Tensor:
    """Return the predicted labels (H, W) on the CPU; the network stays in the mode in which it was."""
    was_training = segmenter.training
    device = next(segmenter.parameters()).device
    segmenter.eval()
    with torch.no_grad():
        labels: Tensor = segmenter(sample.image[None].to(device), sample.mask.shape).argmax(1)[0].cpu()
    segmenter.train(was_training)
    return labels


def save_pictures(segmenter: nn.Module, datamodule: Data, folder: Path, count: int) -> None:
    """Write `count` validation images, each beside ground truth and prediction, as PNGs named by their ids."""
    source = datamodule.source("val")
    for number, sample in enumerate(validation_samples(datamodule, count)):
        path = folder / f"{number:02d}_{stem(sample.id)}.png"
        save_picture(path, sample, predict_sample(segmenter, sample), source)


def stem(sample_id: str) -> str:
    """Return a file name, without suffix, for the name of a sample."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(sample_id).stem)


def save_picture(
    path: Path, sample: Sample, prediction: Tensor, source: Source | LabelInfo, before: Tensor | None = None
) -> None:
    """Write image, ground truth and prediction side by side, with a legend of the classes that occur.

    Args:
        path: PNG file.
        sample: The image is shown at the size of the mask.
        prediction: Labels (H, W).
        source: Gives names and colours of the classes; what it ignores is white.
        before: Labels (H, W) of another network, shown too, with where they are wrong and the prediction is right (in
            green), or the other way round (in red).
    """
    panels, colours = _panels(sample, prediction, source), _colours(source)
    occurring = np.union1d(_subsampled(sample.mask), _subsampled(prediction))
    if before is not None:
        panels |= {
            "before": colours[_subsampled(before)],
            "changed": _changes(sample, prediction, before, source),
        }
        occurring = np.union1d(occurring, _subsampled(before))
    names = {label: name for label, name in _names(source).items() if label in occurring}
    handles = legend_handles([*names.values()], colours[[*names]])
    columns = min(len(handles), 7)
    height, width = sample.mask.shape
    size = (11.0 * len(panels) / 3, 3.6 * height / width + 0.22 * math.ceil(len(handles) / columns) + 0.6)
    figure = Figure(figsize=size, dpi=110, facecolor="white", layout="constrained")
    smooth = max(height, width) >= _LONGEST_SIDE // 2
    for axes, (title, panel) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        axes.imshow(panel, interpolation="antialiased" if smooth else "nearest")
        axes.set_title(title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("0.6")
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
        handlelength=1.2,
    )
    save_figure(figure, path)


def log_pictures(
    loggers: Sequence[Logger],
    samples: Sequence[Sample],
    predictions: Sequence[Tensor],
    source: Source | LabelInfo,
    step: int,
) -> None:
    """Send images with truth and prediction after `step` steps: to W&B as overlays, to others side by side."""
    images = {}
    for number, (sample, labels) in enumerate(zip(samples, predictions, strict=True)):
        images[f"{number:02d}_{stem(sample.id)}"] = np.hstack(list(_panels(sample, labels, source).values()))
    for logger in loggers:
        if isinstance(logger, NeverFatalWandbLogger):
            shapes = [_subsampled(sample.mask).shape for sample in samples]
            size = max(h for h, _ in shapes), max(w for _, w in shapes)
            pairs = zip(samples, predictions, strict=True)
            logger.log_payload({"val/pictures": [wandb_image(*pair, source, size) for pair in pairs]}, step)
        elif isinstance(logger, GuardedLogger):
            logger.log_images("val/pictures", images, step)


def wandb_image(
    sample: Sample, prediction: Tensor, source: Source | LabelInfo, size: tuple[int, int]
) -> wandb.Image:
    """Return the image with ground truth and prediction as overlays that can be switched on and off in W&B.

    It is padded to `size` (H, W), white and ignored, since W&B wants the images of a key to have one size.
    """

    def padded(pixels: NDArray[Any], value: int) -> NDArray[Any]:
        rest = [(0, side - is_side) for side, is_side in zip(size, pixels.shape, strict=False)]
        return np.pad(pixels, [*rest, (0, 0)][: pixels.ndim], constant_values=value)

    masks = {
        name: {"mask_data": padded(_subsampled(labels), source.ignore_index), "class_labels": _names(source)}
        for name, labels in (("ground_truth", sample.mask), ("prediction", prediction))
    }
    return wandb.Image(padded(_shown(sample), 255), masks=masks, caption=sample.id)


def figure_pixels(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure as RGB (H, W, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panels(sample: Sample, prediction: Tensor, source: Source | LabelInfo) -> dict[str, NDArray[np.uint8]]:
    """Return image, truth and prediction in colour, each (H, W, 3), by title."""
    colours = _colours(source)
    truth, found = colours[_subsampled(sample.mask)], colours[_subsampled(prediction)]
    return {"image": _shown(sample), "ground truth": truth, "prediction": found}


def _changes(
    sample: Sample, prediction: Tensor, before: Tensor, source: Source | LabelInfo
) -> NDArray[np.uint8]:
    """Return green where a pixel is newly right, red where newly wrong, grey where still wrong, as RGB (H, W, 3)."""
    truth, now, then = (_subsampled(labels) for labels in (sample.mask, prediction, before))
    colours = np.array(
        [[120, 120, 120], [213, 60, 40], [0, 150, 90], [232, 232, 232], [255, 255, 255]], np.uint8
    )
    return colours[np.where(truth == source.ignore_index, 4, 2 * (now == truth) + (then == truth))]


def _colours(source: Source | LabelInfo) -> NDArray[np.uint8]:
    """Return the colour of each label (256, 3); what is ignored is white."""
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(source.palette)] = source.palette
    return colours


def _names(source: Source | LabelInfo) -> dict[int, str]:
    """Return the names of all labels, the ignored one last."""
    return {**dict(enumerate(source.classes)), source.ignore_index: "ignored"}


def _shown(sample: Sample) -> NDArray[np.uint8]:
    """Return the image as (H, W, 3), at the size of its mask, subsampled."""
    picture: NDArray[np.uint8] = sample.image.permute(1, 2, 0).numpy()
    if picture.shape[:2] != tuple(sample.mask.shape):
        picture = cv2.resize(picture, tuple(sample.mask.shape)[::-1], interpolation=cv2.INTER_AREA)
    return _subsampled(picture)


def _subsampled(pixels: Tensor | NDArray[Any]) -> NDArray[Any]:
    step = math.ceil(max(pixels.shape[:2]) / _LONGEST_SIDE)
    return np.asarray(pixels)[::step, ::step]
