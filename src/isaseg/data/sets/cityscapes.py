"""Cityscapes, fine annotations: 19 classes of the 34 label ids; the test labels are not public."""

from isaseg.data.index import PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("cityscapes")


def cityscapes(split: str, root: str | None) -> FileSource | None:
    """Return a split of Cityscapes, with the label ids of the official archives; test has no labels.

    Returns:
        The split; None for test where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    files = SplitFiles(INFO, split, root, inside=("cityscapes",))
    images = files.find(f"leftImg8bit/{split}", PNG, suffix="_leftImg8bit")
    if split == "test":  # gtFine/test holds dummies
        return FileSource(INFO, split, files.pairs(images, None)) if images else None
    masks = files.find(f"gtFine/{split}", PNG, suffix="_gtFine_labelIds")
    return FileSource(INFO, split, files.pairs(images, masks))
