"""LIP, human parsing: 20 classes, among them three pairs of left and right; the test labels are not public."""

from isaseg.data.index import JPEG, PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("lip")
# Where the archives put the folders; "." where somebody moved them up.
IMAGES = ("TrainVal_images", ".")
LABELS = ("TrainVal_parsing_annotations", "Trainval_parsing_annotations", ".")
TESTS = ("Testing_images/testing_images", "Testing_images", "testing_images")


def lip(split: str, root: str | None) -> FileSource | None:
    """Return a split of LIP; test has no labels.

    The images are those of `{split}_id.txt` beside their folder; without that list, all of them.

    Returns:
        The split; None for test where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    files = SplitFiles(INFO, split, root, inside=("LIP",))
    if split == "test":
        images = files.find(files.first(*TESTS), JPEG)
        return FileSource(INFO, split, files.pairs(images, None)) if images else None
    folder = files.first(*(f"{place}/{split}_images" for place in IMAGES))
    images = files.find(folder, JPEG)
    masks = files.find(files.first(*(f"{place}/{split}_segmentations" for place in LABELS)), PNG)
    ids = folder.parent / f"{split}_id.txt"
    names = files.read_list(ids) if ids.is_file() else None
    return FileSource(INFO, split, files.pairs(images, masks, names), modes=("L", "P"))
