"""Cityscapes, fine annotations: 19 classes of the 34 label ids; the test labels are not public."""

from isaseg.data.index import find_root, list_files, pair_files
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("cityscapes")


def cityscapes(split: str, root: str | None) -> FileSource | None:
    """Return a split of Cityscapes, from the label ids of the official archives; test has no labels.

    Returns:
        The split; None for test where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    folder = find_root(root, INFO, split, ("cityscapes",))
    images = list_files(folder / "leftImg8bit" / split, folder, (".png",), "_leftImg8bit")
    if split == "test":  # gtFine/test holds dummies
        return FileSource(INFO, split, pair_files(images, None, root, INFO, split)) if images else None
    masks = list_files(folder / "gtFine" / split, folder, (".png",), "_gtFine_labelIds")
    return FileSource(INFO, split, pair_files(images, masks, root, INFO, split))
