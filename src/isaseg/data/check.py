"""The check before the first step: the number of files, and whether they can be decoded."""

import logging

from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError

log = logging.getLogger(__name__)

_CHECK_ALL = 5000  # pairs; of a larger split, about _CHECK_SOME evenly spaced ones are checked
_CHECK_SOME = 500


def check_files(source: FileSource, strict_size: bool = False) -> None:
    """Check the size of a split, and every pair, or about 500 evenly spaced ones if there are more than 5000.

    Args:
        source: The split.
        strict_size: Whether a number of images that is not the published one is an error instead of a warning.

    Raises:
        DataError: If the size is wrong and `strict_size` is set, or a pair cannot be used.
    """
    wrong = size_fault(source)
    if wrong and strict_size:
        raise DataError(f"{wrong}; complete the data set, or set data.strict_size=false")
    if wrong:
        log.warning("%s", wrong)
    indices = range(len(source))
    if len(source) > _CHECK_ALL:
        indices = range(0, len(source), -(-len(source) // _CHECK_SOME))
    text = f"checking {source.info.title} {source.split}"
    in_threads(lambda index: _decode(source, index), indices, text)


def size_fault(source: FileSource) -> str | None:
    """Return a sentence if the split does not have its published number of images."""
    published = source.info.splits.get(source.split)
    if published is None or published == len(source):
        return None
    return (
        f"expected the published {published} images in split {source.split!r} of {source.info.title}, "
        f"got {len(source)}"
    )


def _decode(source: FileSource, index: int) -> None:
    image, mask, _ = source.load(index)
    if mask is not None:
        mask[:, :]
    image[:1, :1]
