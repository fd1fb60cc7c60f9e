"""PASCAL in Detail: its JSON of images and regions, from which the labels of PASCAL-Context are painted.

Paint order is the order in the file, as in the Detail API and mmsegmentation: a later region covers an earlier one.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isaseg.errors import DataError

DETAIL = "trainval_merged.json"
_MAX_JSON = 8 * 10**9  # bytes
_MAX_PIXELS = 2**26


class Region(NamedTuple):
    """A mask of one category: its compressed run lengths and size."""

    category: int
    counts: str
    height: int
    width: int


class DetailImage(NamedTuple):
    """An image of PASCAL in Detail: its name, split, size, and regions in the order in which they are painted."""

    name: str
    split: str
    height: int
    width: int
    regions: list[Region]


def decode_rle(counts: str, height: int, width: int) -> np.ndarray:
    """Decode a mask of COCO's compressed run lengths, bool (height, width).

    The runs are of 0 and 1 by turns, down the columns. Each is a number in base 32, least digit first, a character a
    digit (48 + digit, + 32 if more follow), signed by the top bit of the last; from the fourth run on it is the
    difference from the run two before.

    Raises:
        ValueError: If it is not such a string, or its runs are not as long as the picture.
    """
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    if (
        len(digits) == 0
        or digits.min() < 0
        or digits.max() > 63
        or len(ends) == 0
        or ends[-1] != len(digits) - 1
    ):
        raise ValueError("expected compressed run lengths, got other characters")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 6 or len(ends) > 2 * height * width + 2:
        raise ValueError(f"expected run lengths of a {height} x {width} picture, got larger or more of them")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (5 * place), starts)
    runs -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise ValueError(f"expected run lengths of {height * width} pixels in all, got others")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def read_detail(path: Path) -> list[DetailImage]:
    """Read the images and regions of train and val from the merged JSON of PASCAL in Detail.

    Raises:
        DataError: If it is not that file.
    """
    if path.stat().st_size > _MAX_JSON:
        raise DataError(
            f"expected at most {_MAX_JSON} bytes in '{path}', got {path.stat().st_size}; fetch it again"
        )
    try:
        content = json.loads(path.read_bytes())
        images = {entry["image_id"]: _detail_image(entry) for entry in content["images"]}
        if len({image.name for image in images.values()}) < len(images):
            raise ValueError("one file_name of several images")
        for entry in content["annos_segmentation"]:
            height, width = entry["segmentation"]["size"]
            region = Region(entry["category_id"], entry["segmentation"]["counts"], height, width)
            if not all(isinstance(n, int) for n in (region.category, height, width)):
                raise TypeError(f"a region of category {region.category!r}, {height!r} x {width!r}")
            if not isinstance(region.counts, str):
                raise TypeError("a region without compressed run lengths")
            images[entry["image_id"]].regions.append(region)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"expected images and annos_segmentation of PASCAL in Detail in '{path}', got {error!r:.200}; fetch it again"
        ) from error
    return [image for image in images.values() if image.split in ("train", "val")]


def paint(image: DetailImage, ids: Mapping[int, int]) -> np.ndarray:
    """Paint the regions in their order, each over those before, uint8 (H, W); what none covers is `ids[0]`.

    Raises:
        ValueError: If a region cannot be decoded, lies outside, or has a category that is not in `ids`.
    """
    labels = np.full((image.height, image.width), ids[0], np.uint8)
    for region in image.regions:
        if region.category not in ids:
            raise ValueError(f"expected a category of the 459, got {region.category}")
        if not (0 < region.height <= image.height and 0 < region.width <= image.width):
            raise ValueError(f"expected a mask inside {labels.shape}, got {region.height} x {region.width}")
        mask = decode_rle(region.counts, region.height, region.width)
        labels[: region.height, : region.width][mask] = ids[region.category]
    return labels


def _detail_image(entry: Mapping[str, Any]) -> DetailImage:
    name, height, width = entry["file_name"], entry["height"], entry["width"]
    if not re.fullmatch(r"\w+\.jpg", name, re.ASCII):
        raise ValueError(f"file_name {name!r}")
    if not (isinstance(height, int) and isinstance(width, int)):
        raise TypeError(f"{name} of {height} x {width}")
    if min(height, width) < 1 or height * width > _MAX_PIXELS:
        raise ValueError(f"{name} of {height} x {width}")
    return DetailImage(name.removesuffix(".jpg"), str(entry["phase"]), height, width, [])
