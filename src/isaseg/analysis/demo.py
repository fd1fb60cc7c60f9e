"""What the page of `isaseg demo` shows: the labels of a picture, how sure they are, and what a pixel attends to."""

import io
from typing import NamedTuple

import cv2
import numpy as np
import torch

from isaseg.analysis.attention_figures import attention_figure
from isaseg.analysis.attention_maps import Position, image_attention
from isaseg.data.info import backgrounds
from isaseg.data.overlay import heat, overlay, shown_size
from isaseg.data.resize import fit
from isaseg.data.sets.cards import Cards
from isaseg.data.sets.lamps import Lamps
from isaseg.inference.apply import Inference
from isaseg.inference.label_files import LabelFormat
from isaseg.inference.probabilities import predict_probabilities
from isaseg.models.segmenter import Segmenter

_EMBEDDED = {"lamps": Lamps, "cards": Cards}
_EXAMPLES = 6
_ENLARGED = 512  # pixels that a side has at least, so that borders are thin lines and pixels can be hit


class Look(NamedTuple):
    """A picture as the page shows it.

    Attributes:
        size: (H, W) of the file.
        picture: What the network has seen, uint8 RGB (h, w, 3).
        shown: `picture`, `zoom` times as large.
        labels: `picture` under the colours of its classes, likewise.
        confidence: `picture` under the largest probability of each pixel, from violet (0) to yellow (1), likewise.
        shares: Classes by their share of the pixels, the largest first; those without a pixel are left out.
        zoom: By how much pictures are enlarged.
    """

    size: tuple[int, int]
    picture: np.ndarray
    shown: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    shares: list[tuple[int, float]]
    zoom: int


def look(segmenter: Segmenter, form: LabelFormat, image: np.ndarray, longest: int) -> Look:
    """Label a picture.

    Args:
        segmenter: The network, in evaluation mode.
        form: Names and colours of its classes.
        image: uint8 RGB (H, W, 3).
        longest: A larger picture is reduced first, to this many pixels on its longer side, at most 2048.
    """
    size = image.shape[0], image.shape[1]
    picture = fit(image, shown_size(*size, longest), cv2.INTER_AREA)
    strips = predict_probabilities(segmenter, _tensor(picture)[None], Inference())
    parts = [(some, probabilities.amax(0)) for some, probabilities in strips]
    labels, sure = (torch.cat(rows).cpu().numpy() for rows in zip(*parts, strict=True))
    zoom = -(-min(_ENLARGED, longest) // max(picture.shape))
    shown, of_class, level = (
        cv2.resize(x, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
        for x in (picture, labels, np.rint(255 * sure).astype(np.uint8))
    )
    count = np.bincount(labels.ravel(), minlength=len(form.classes))
    shares = [(int(i), float(count[i] / labels.size)) for i in np.argsort(-count, kind="stable") if count[i]]
    blend = overlay(shown, of_class, form.colours, backgrounds(form.classes))
    return Look(size, picture, shown, blend, heat(shown, level), shares, zoom)


def attention_png(segmenter: Segmenter, picture: np.ndarray, pixel: Position, name: str) -> bytes:
    """Draw what a pixel attends to in each stage, beside the picture; return a PNG.

    Args:
        segmenter: The network, in evaluation mode.
        picture: uint8 RGB (h, w, 3).
        pixel: (row, column).
        name: Of the context module.

    Raises:
        ValueError: If the context module has no maps, see `attention_maps`.
    """
    device = next(segmenter.parameters()).device
    maps = image_attention(segmenter, _tensor(picture).to(device), [pixel])
    file = io.BytesIO()
    attention_figure(_tensor(picture), [pixel], {name: maps}).savefig(file, format="png", dpi=150)
    return file.getvalue()


def examples(data: str | None) -> list[np.ndarray]:
    """Return scenes of the validation split of an embedded data set, uint8 RGB; none of any other."""
    scenes = _EMBEDDED[data]("val") if data in _EMBEDDED else None
    return [] if scenes is None else [scenes.load(i).image[:, :] for i in range(_EXAMPLES)]


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)
