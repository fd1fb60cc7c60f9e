"""ADE20K, the scene-parsing challenge: 150 classes; the test labels are not public."""

from isaseg.data.index import find_root, list_files, pair_files
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("ade20k")
FOLDERS = {"train": "training", "val": "validation"}


def ade20k(split: str, root: str | None) -> FileSource | None:
    """Return a split of ADE20K; test has no labels.

    Returns:
        The split; None for test where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    folder = find_root(root, INFO, split, ("ADEChallengeData2016",))
    if split == "test":  # of release_test.zip
        images = list_files(folder / "testing", folder, (".jpg", ".jpeg"))
        return FileSource(INFO, split, pair_files(images, None, root, INFO, split)) if images else None
    images = list_files(folder / "images" / FOLDERS[split], folder, (".jpg", ".jpeg"))
    masks = list_files(folder / "annotations" / FOLDERS[split], folder, (".png",))
    return FileSource(INFO, split, pair_files(images, masks, root, INFO, split))
