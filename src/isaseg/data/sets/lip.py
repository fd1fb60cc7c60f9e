"""LIP, human parsing: 20 classes, of which three pairs are left and right; the test labels are not public."""

from collections.abc import Sequence
from pathlib import Path

from isaseg.data.index import find_root, list_files, pair_files, read_list
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("lip")
JPEG = (".jpg", ".jpeg")
MODES = ("L", "P")
# where the archives put the folders, "" where they were moved up
IMAGES = ("TrainVal_images", "")
LABELS = ("TrainVal_parsing_annotations", "Trainval_parsing_annotations", "")
TESTS = ("Testing_images/testing_images", "Testing_images", "testing_images")


def lip(split: str, root: str | None) -> FileSource | None:
    """Return a split of LIP; test has no labels.

    The images are those of `{split}_id.txt` beside their folder; without that list, all there are.

    Returns:
        The split; None for test where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    folder = find_root(root, INFO, split, ("LIP",))
    if split == "test":
        images = list_files(_first(folder, TESTS), folder, JPEG)
        return FileSource(INFO, split, pair_files(images, None, root, INFO, split)) if images else None
    place = _first(folder, [f"{sub}/{split}_images" for sub in IMAGES])
    images = list_files(place, folder, JPEG)
    masks = list_files(_first(folder, [f"{sub}/{split}_segmentations" for sub in LABELS]), folder, (".png",))
    ids = place.parent / f"{split}_id.txt"
    names = read_list(ids, folder, INFO, split) if ids.is_file() else None
    return FileSource(INFO, split, pair_files(images, masks, root, INFO, split, names), MODES)


def _first(folder: Path, subs: Sequence[str]) -> Path:
    paths = [folder / sub.lstrip("/") for sub in subs]
    return next((path for path in paths if path.is_dir()), paths[0])
