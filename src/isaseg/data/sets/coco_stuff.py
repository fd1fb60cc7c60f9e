"""COCO-Stuff: the same 171 classes in the release of 10k images (the paper's) and in that of 164k."""

from typing import Literal

from isaseg.data.index import JPEG, PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO_10K, INFO_164K = dataset_info("coco_stuff"), dataset_info("coco_stuff_164k")


def coco_stuff(split: str, root: str | None, release: Literal["10k", "164k"] = "10k") -> FileSource | None:
    """Return a split of COCO-Stuff. Val is what the 10k release calls test; test of 164k has no labels.

    Args:
        split: train, val or test.
        root: The folder that holds images and annotations, or its parent.
        release: Which of the two.

    Returns:
        The split; None for test of 10k, and of 164k where its images are absent.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    return _of_10k(split, root) if release == "10k" else _of_164k(split, root)


def _of_10k(split: str, root: str | None) -> FileSource | None:
    if split == "test":
        return None
    files = SplitFiles(INFO_10K, split, root, inside=("coco_stuff10k", "cocostuff-10k-v1.1"))
    names = files.read_list(f"imageLists/{'train' if split == 'train' else 'test'}.txt")
    pairs = files.pairs(files.find("images", JPEG), files.find("annotations", (".mat",)), names)
    return FileSource(INFO_10K, split, pairs, variable="S")


def _of_164k(split: str, root: str | None) -> FileSource | None:
    files = SplitFiles(INFO_164K, split, root, inside=("coco_stuff164k",))
    images = files.find(f"images/{split}2017", JPEG)
    if split == "test":
        return FileSource(INFO_164K, split, files.pairs(images, None)) if images else None
    found = files.find(f"annotations/{split}2017", PNG)
    # mmsegmentation writes *_labelTrainIds.png beside them
    masks = {name: path for name, path in found.items() if not name.endswith("_labelTrainIds")}
    return FileSource(INFO_164K, split, files.pairs(images, masks))
