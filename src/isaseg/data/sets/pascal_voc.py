"""PASCAL VOC 2012: 21 classes with background, palette labels; train may include the masks of SBD (trainaug)."""

from pathlib import Path

from isaseg.data.index import find_root, list_files, pair_files, read_list
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError, DataError

INFO = dataset_info("pascal_voc")
MODES = ("P", "L")
LISTS = "ImageSets/Segmentation"
TRAIN = ("train", "trainval", "trainaug")


def pascal_voc(split: str, root: str | None, train: str = "train") -> FileSource | None:
    """Return a split of VOC 2012; test has no labels.

    Args:
        split: train, val or test.
        root: VOCdevkit/VOC2012, or a folder that holds it.
        train: What is trained on: train (1464 images), trainaug (10582: train and SBD without val), or trainval
            (2913, for a submission: validation then says nothing).

    Returns:
        The split, by the name that `train` gives it; None for test where its images are absent.

    Raises:
        ConfigError: If `train` is none of these.
        DataError: If the data are absent or incomplete.
    """
    if train not in TRAIN:
        raise ConfigError(f"expected data.source.train as one of {', '.join(TRAIN)}, got {train!r}")
    folder = find_root(root, INFO, split, ("VOCdevkit/VOC2012", "VOC2012"))
    name = train if split == "train" else split
    images = list_files(folder / "JPEGImages", folder, (".jpg",))
    if split == "test":
        path = folder / LISTS / "test.txt"
        names = read_list(path, folder, INFO, name) if path.is_file() else []
        if not images.keys() & set(names):  # the archive of train and val alone
            return None
        return FileSource(INFO, name, pair_files(images, None, root, INFO, name, names))
    masks = list_files(folder / "SegmentationClass", folder, (".png",))
    if name == "trainaug" and masks:
        # VOC's own masks have a border of 255, those of SBD have none
        masks = {**list_files(_sbd(folder), folder, (".png",)), **masks}
        names = _trainaug(folder)
    else:
        names = read_list(folder / LISTS / f"{name}.txt", folder, INFO, name)
    return FileSource(INFO, name, pair_files(images, masks, root, INFO, name, names), MODES)


def _sbd(folder: Path) -> Path:
    path = folder / "SegmentationClassAug"
    if not path.is_dir():
        raise DataError(
            f"expected the masks of SBD for split 'trainaug' of {INFO.title}, got no folder '{path}'; make it from "
            "SBD's benchmark.tgz with `python src/data.py prepare data=pascal_voc archives=/path/to/downloads "
            "data.root=/path/to/it`, or set data.source.train=train"
        )
    return path


def _trainaug(folder: Path) -> list[str]:
    """Return the names in trainaug.txt, else those in train.txt and aug.txt."""
    train, extra, whole = (folder / LISTS / f"{name}.txt" for name in ("train", "aug", "trainaug"))
    if whole.is_file() or not extra.is_file():
        return read_list(whole, folder, INFO, "trainaug")
    lists = [read_list(path, folder, INFO, "trainaug") for path in (train, extra)]
    return list(dict.fromkeys(lists[0] + lists[1]))
