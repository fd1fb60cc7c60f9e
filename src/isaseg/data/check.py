"""The check before the first step: the number of files, and whether they can be decoded."""

import logging
from typing import Any

import numpy as np

from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource, Loaded, Source
from isaseg.errors import DataError

log = logging.getLogger(__name__)

_CHECK_ALL = 5000  # pairs; of a larger split, about _CHECK_SOME evenly spaced ones are checked
_CHECK_SOME = 500


def check_files(source: FileSource, strict_size: bool = False) -> None:
    """Check the size of a split, and every pair, or about 500 evenly spaced ones if there are more than 5000.

    Args:
        strict_size: Whether a number of images that is not the published one is an error instead of a warning.

    Raises:
        DataError: If the size is wrong and `strict_size` is set, or a pair cannot be used.
    """
    wrong = size_fault(source)
    if wrong and strict_size:
        raise DataError(f"{wrong}; complete the data set, or set data.strict_size=false")
    if wrong:
        log.warning("warning: %s", wrong)
    indices = range(len(source))
    if len(source) > _CHECK_ALL:
        indices = range(0, len(source), -(-len(source) // _CHECK_SOME))
    text = f"checking {source.info.title} {source.split}"
    in_threads(lambda index: _decode(source, index), indices, text)


def check_first(source: Source, split: str) -> None:
    """Check the first sample of a source.

    Raises:
        DataError: If it is not what `Source` describes.
    """
    where, count = f"from data.source for the split {split}", len(source.classes)
    if len(source) == 0:
        raise DataError(
            f"expected at least one sample {where}, got none; return None if there is no such split"
        )
    loaded = source.load(0)
    if not isinstance(loaded, tuple) or not 2 <= len(loaded) <= 3:
        raise DataError(f"expected load to return (image, mask) {where}, got {shown(loaded)}")
    image, mask, _ = Loaded(*loaded)
    size = getattr(image, "shape", (0, 0))[:2]
    if getattr(image, "shape", ())[2:] != (3,) or _type(image) != np.uint8:
        raise DataError(f"expected an RGB image, uint8 (H, W, 3), {where}, got {shown(image)}")
    if mask is None and split == "test":
        return
    if getattr(mask, "shape", None) != size or _type(mask) != np.uint8:
        raise DataError(f"expected a mask, uint8 {size} as its image, {where}, got {shown(mask)}")
    assert mask is not None
    strange = np.setdiff1d(mask[:, :], [*range(count), source.ignore_index])
    if len(strange):
        raise DataError(
            f"expected labels 0 to {count - 1} and {source.ignore_index} {where}, got {strange[:10].tolist()}"
        )


def _type(picture: Any) -> Any:
    return picture[:1, :1].dtype if len(getattr(picture, "shape", ())) >= 2 else None


def shown(value: Any) -> str:
    """Return type and shape of an array, or the type of anything else, for messages."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def size_fault(source: FileSource) -> str | None:
    """Return a sentence if the split does not have its published number of images."""
    published = source.info.splits.get(source.split)
    if published is None or published == len(source):
        return None
    return (
        f"{source.info.title} {source.split} has {len(source)} images, the published split {published}: scores do not "
        "compare with published ones"
    )


def _decode(source: FileSource, index: int) -> None:
    image, mask, _ = source.load(index)
    if mask is not None:
        mask[:, :]
    image[:1, :1]
