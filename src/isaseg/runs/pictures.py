"""Validation images beside what the network makes of them: PNGs in the run folder, overlays in W&B."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import wandb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor, nn

from isaseg.data.module import SegmentationDataModule
from isaseg.files import replace_file

Palette = Sequence[Sequence[int]]

_LONGEST_SIDE = 768  # pixels shown; larger images are subsampled
_IGNORED = (255, 255, 255)


class Sample(NamedTuple):
    """One validation image: `image` uint8 RGB (3, h, w) as the network gets it, `mask` (H, W), `id` its name."""

    image: Tensor
    mask: Tensor
    id: str


def validation_samples(datamodule: SegmentationDataModule, count: int) -> list[Sample]:
    """Return `count` validation images, or all if there are fewer, evenly spread and always the same."""
    dataset = datamodule.dataset("val")
    count = min(count, len(dataset))
    items = (dataset[number * len(dataset) // count] for number in range(count))
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


def save_pictures(
    segmenter: nn.Module, datamodule: SegmentationDataModule, folder: Path, count: int = 6
) -> None:
    """Write `count` validation images, each beside ground truth and prediction, as PNGs named by their ids."""
    for number, sample in enumerate(validation_samples(datamodule, count)):
        save_picture(
            folder / f"{number:02d}_{stem(sample.id)}.png",
            sample.image,
            sample.mask,
            predict_sample(segmenter, sample),
            datamodule.palette,
            datamodule.ignore_index,
            datamodule.classes,
        )


def stem(sample_id: str) -> str:
    """Return a file name, without suffix, for the name of a sample."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(sample_id).stem)


def save_picture(
    path: Path,
    image: Tensor,
    mask: Tensor,
    prediction: Tensor,
    palette: Palette,
    ignore_index: int,
    classes: Sequence[str],
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
    """
    colours = np.full((max(256, len(palette), ignore_index + 1), 3), _IGNORED, np.uint8)
    colours[: len(palette)] = palette
    colours[ignore_index] = _IGNORED
    truth, found = _subsampled(mask), _subsampled(prediction)
    panels = {
        "image": _subsampled(_at_size(image, mask)),
        "ground truth": colours[truth],
        "prediction": colours[found],
    }
    names = {**dict(enumerate(classes)), ignore_index: "ignored"}
    seen = sorted(
        {int(label) for label in np.union1d(truth, found)}, key=lambda label: (label == ignore_index, label)
    )
    handles = [Patch(fc=colours[c] / 255, ec="0.6", lw=0.5, label=names[c]) for c in seen]
    columns = min(len(handles), 7)
    legend_height = 0.22 * math.ceil(len(handles) / columns) + 0.15
    height = 3.6 * mask.shape[0] / mask.shape[1] + 0.4 + legend_height
    figure = Figure(figsize=(11.0, height), dpi=110, facecolor="white")
    smooth = max(mask.shape) >= _LONGEST_SIDE // 2
    for axis, (title, panel) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axis.imshow(panel, interpolation="antialiased" if smooth else "nearest")
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("0.6")
    figure.subplots_adjust(0.01, legend_height / height, 0.99, 1 - 0.3 / height, wspace=0.03)
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, fontsize=8, frameon=False, handlelength=1.2
    )
    save_figure(figure, path)


def wandb_image(sample: Sample, prediction: Tensor, classes: Sequence[str], ignore_index: int) -> wandb.Image:
    """Return the image with ground truth and prediction as overlays that can be switched on and off in W&B."""
    names = {**dict(enumerate(classes)), ignore_index: "ignored"}
    masks = {
        name: {"mask_data": _subsampled(labels), "class_labels": names}
        for name, labels in (("ground_truth", sample.mask), ("prediction", prediction))
    }
    return wandb.Image(_subsampled(_at_size(sample.image, sample.mask)), masks=masks, caption=sample.id)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with replace_file(path) as file:
        figure.savefig(file, format="png")


def _at_size(image: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    """Return an image (3, h, w) as (H, W, 3), of the size of the mask (H, W)."""
    picture: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    if picture.shape[:2] != tuple(mask.shape):
        picture = cv2.resize(picture, tuple(mask.shape)[::-1], interpolation=cv2.INTER_AREA)
    return picture


def _subsampled(pixels: Tensor | NDArray[Any]) -> NDArray[Any]:
    step = math.ceil(max(pixels.shape[:2]) / _LONGEST_SIDE)
    return np.asarray(pixels)[::step, ::step]
