"""PASCAL VOC 2012: 21 classes with background, palette labels; train may include the masks of SBD (trainaug)."""

from typing import Literal

from isaseg.data.index import JPEG, PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("pascal_voc")
LISTS = "ImageSets/Segmentation"


def pascal_voc(
    split: str, root: str | None, train: Literal["train", "trainval", "trainaug"] = "train"
) -> FileSource | None:
    """Return a split of VOC 2012; test has no labels.

    Args:
        split: train, val or test.
        root: VOCdevkit/VOC2012, or a folder that holds it.
        train: The training images: train (1464), trainaug (10582: train and SBD without val), or trainval (2913, for
            a submission: the scores on val then mean nothing).

    Returns:
        The split, named as `train` says; None for test where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    name = train if split == "train" else split
    files = SplitFiles(INFO, name, root, inside=("VOCdevkit/VOC2012", "VOC2012"))
    images = files.find("JPEGImages", JPEG)
    if split == "test":
        listed = (files.folder / LISTS / "test.txt").is_file()
        names = files.read_list(f"{LISTS}/test.txt") if listed else []
        if not images.keys() & set(names):  # only train and val were unpacked
            return None
        return FileSource(INFO, name, files.pairs(images, None, names))
    masks = files.find("SegmentationClass", PNG)
    if name == "trainaug":
        # VOC's own have a border of 255, those of SBD have none
        masks = {**files.find("SegmentationClassAug", PNG), **masks}
        names = _trainaug(files)
    else:
        names = files.read_list(f"{LISTS}/{name}.txt")
    return FileSource(INFO, name, files.pairs(images, masks, names), modes=("P", "L"))


def _trainaug(files: SplitFiles) -> list[str]:
    """Return the names in trainaug.txt, or else those in train.txt and aug.txt."""
    whole, extra = (f"{LISTS}/{name}.txt" for name in ("trainaug", "aug"))
    if (files.folder / whole).is_file() or not (files.folder / extra).is_file():
        return files.read_list(whole)
    return list(dict.fromkeys(files.read_list(f"{LISTS}/train.txt") + files.read_list(extra)))
