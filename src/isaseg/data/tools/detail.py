"""PASCAL in Detail: its JSON of images and regions, from which the labels of PASCAL-Context are painted.

Regions are painted in the order of the file, as the Detail API and mmsegmentation do: a later one covers an earlier one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field

from isaseg.errors import DataError

DETAIL = "trainval_merged.json"
Length = Annotated[int, Field(ge=1, le=2**13)]


class Mask(BaseModel, strict=True):
    """Compressed run lengths, and the height and width of their picture."""

    size: tuple[Length, Length]
    counts: str


class Region(BaseModel, strict=True):
    """The mask of one category in an image."""

    image_id: int
    category_id: int
    segmentation: Mask


class DetailImage(BaseModel, strict=True):
    """An image: its size, and its split as `phase`."""

    image_id: int
    file_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.jpg$")]
    height: Length
    width: Length
    phase: str

    @property
    def name(self) -> str:
        """The name without its ending."""
        return self.file_name.removesuffix(".jpg")


class _Merged(BaseModel, strict=True):
    images: list[DetailImage]
    annos_segmentation: list[Region]


def read_detail(path: Path) -> list[tuple[DetailImage, list[Region]]]:
    """Read the images of train and val, each with its regions, from the merged JSON of PASCAL in Detail.

    Raises:
        DataError: If it is another file, or damaged.
    """
    try:
        content = _Merged.model_validate_json(path.read_bytes())
        regions = defaultdict(list)
        for region in content.annos_segmentation:
            regions[region.image_id].append(region)
        if len({image.name for image in content.images}) < len(content.images):
            raise ValueError("several images of one file_name")
        if unknown := regions.keys() - {image.image_id for image in content.images}:
            raise ValueError(f"regions of the unknown image {min(unknown)}")
    except (OSError, ValueError) as error:
        got = " ".join(str(error).split())[:200]
        raise DataError(
            f"expected images and annos_segmentation of PASCAL in Detail in '{path}', got {got}; fetch it again"
        ) from error
    return [(image, regions[image.image_id]) for image in content.images if image.phase in ("train", "val")]


def paint(height: int, width: int, regions: Iterable[Region], ids: Mapping[int, int]) -> np.ndarray:
    """Return labels, uint8 (height, width), of regions that are painted over one another.

    Each region begins at the top left. Its label is that of its category in `ids`; what no region covers is `ids[0]`.

    Raises:
        ValueError: If a region cannot be decoded, lies outside, or has a category that is not in `ids`.
    """
    labels = np.full((height, width), ids[0], np.uint8)
    for region in regions:
        if region.category_id not in ids:
            raise ValueError(f"expected a category of the 459, got {region.category_id}")
        h, w = region.segmentation.size
        if h > height or w > width:
            raise ValueError(f"expected a mask inside {labels.shape}, got {h} x {w}")
        labels[:h, :w][decode_rle(region.segmentation.counts, h, w)] = ids[region.category_id]
    return labels


def decode_rle(counts: str | Sequence[int], height: int, width: int) -> np.ndarray:
    """Decode COCO's run lengths, compressed or as numbers, to a mask, bool (height, width).

    Runs of 0 and of 1 alternate, down the columns.

    Raises:
        ValueError: If it is no such string, or its runs do not add up to the picture.
    """
    runs = _decompress(counts) if isinstance(counts, str) else counts
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise ValueError(f"expected run lengths of {height * width} pixels in all, got others")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _decompress(counts: str) -> list[int]:
    """Return the runs of a string: numbers in base 32, least digit first.

    A digit is the character 48 + digit, + 32 if more digits follow. The top bit of the last digit is the sign. From the
    fourth run on, the number is the difference from the run two before.
    """
    runs: list[int] = []
    number = shift = 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 25:
            raise ValueError(
                f"expected compressed run lengths, got {character!r} or a number of more than six digits"
            )
        number |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("expected compressed run lengths, got an unfinished number")
    return runs
