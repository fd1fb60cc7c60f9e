"""ADE20K, the scene-parsing challenge: 150 classes; the test labels are not public."""

from isaseg.data.index import JPEG, PNG, SplitFiles
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
    files = SplitFiles(INFO, split, root, inside=("ADEChallengeData2016",))
    if split == "test":  # from release_test.zip
        images = files.find("testing", JPEG)
        return FileSource(INFO, split, files.pairs(images, None)) if images else None
    images = files.find(f"images/{FOLDERS[split]}", JPEG)
    masks = files.find(f"annotations/{FOLDERS[split]}", PNG)
    return FileSource(INFO, split, files.pairs(images, masks))
