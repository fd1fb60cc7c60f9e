"""COCO-Stuff: 171 classes, the same in the release of 10k images (the paper's) and in that of 164k."""

from isaseg.data.index import find_root, list_files, pair_files, read_list
from isaseg.data.info import DatasetInfo, dataset_info
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError

INSIDE = {
    "10k": ("coco_stuff10k", "cocostuff-10k-v1.1"),
    "164k": ("coco_stuff164k",),
}


def coco_stuff(split: str, root: str | None, release: str = "10k") -> FileSource | None:
    """Return a split of COCO-Stuff; val is what the 10k release calls test, and test of 164k has no labels.

    Args:
        split: train, val or test.
        root: The folder that holds images and annotations, or its parent.
        release: 10k or 164k.

    Returns:
        The split; None for test of 10k, and of 164k where its images are absent.

    Raises:
        ConfigError: If there is no such release.
        DataError: If the data are absent or incomplete.
    """
    if release not in INSIDE:
        raise ConfigError(f"expected data.source.release as one of {', '.join(INSIDE)}, got {release!r}")
    known = dataset_info("coco_stuff" if release == "10k" else "coco_stuff_164k")
    return (_of_10k if release == "10k" else _of_164k)(split, root, known)


def _of_10k(split: str, root: str | None, known: DatasetInfo) -> FileSource | None:
    if split == "test":
        return None
    folder = find_root(root, known, split, INSIDE["10k"])
    names = read_list(
        folder / "imageLists" / f"{'train' if split == 'train' else 'test'}.txt", folder, known, split
    )
    images = list_files(folder / "images", folder, (".jpg",))
    masks = list_files(folder / "annotations_png", folder, (".png",))  # made by prepare, faster to read
    if not masks.keys() >= set(names):
        masks = list_files(folder / "annotations", folder, (".mat",))
    return FileSource(known, split, pair_files(images, masks, root, known, split, names), variable="S")


def _of_164k(split: str, root: str | None, known: DatasetInfo) -> FileSource | None:
    folder = find_root(root, known, split, INSIDE["164k"])
    images = list_files(folder / "images" / f"{split}2017", folder, (".jpg",))
    if split == "test":
        return FileSource(known, split, pair_files(images, None, root, known, split)) if images else None
    found = list_files(folder / "annotations" / f"{split}2017", folder, (".png",))
    # mmsegmentation writes *_labelTrainIds.png beside them
    masks = {name: path for name, path in found.items() if not name.endswith("_labelTrainIds")}
    return FileSource(known, split, pair_files(images, masks, root, known, split))
