"""PASCAL-Context: 59 classes, or 60 with background; labels as PNG, or as the MATLAB files of 459 ids."""

from collections.abc import Sequence
from pathlib import Path

from isaseg.data.index import find_root, list_files, pair_files, read_list
from isaseg.data.info import DatasetInfo, dataset_info
from isaseg.data.source import FileSource
from isaseg.errors import DataError

MODES = ("L", "P")
PREPARE = "`python src/data.py prepare data=pascal_context archives=/path/to/downloads data.root=/path/to/it`"


def pascal_context(split: str, root: str | None, background: bool = False) -> FileSource | None:
    """Return a split of PASCAL-Context; there is no test split.

    Labels are the PNG of SegmentationClassContext (0 to 59) where that folder exists, else LabelMap in trainval/*.mat.

    Args:
        split: train, val or test.
        root: VOCdevkit/VOC2010, or a folder that holds it; trainval may lie in VOC2010, in `root`, or between them.
        background: Take what is none of the 59 classes for a class, the first, instead of ignoring it.

    Returns:
        The split; None for test.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split == "test":
        return None
    known = dataset_info("pascal_context_60" if background else "pascal_context")
    folder = find_root(root, known, split, ("VOCdevkit/VOC2010", "VOC2010"))
    assert root is not None
    top = Path(root).expanduser().resolve()
    around = [path for path in (folder, *folder.parents) if path.is_relative_to(top)]
    pngs = folder / "SegmentationClassContext"
    mats = next((path / "trainval" for path in around if (path / "trainval").is_dir()), None)
    if not pngs.is_dir() and mats is None:
        raise _no_labels(around, known, split)
    names_file = folder / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not names_file.is_file():
        raise DataError(
            f"expected the list of split {split!r} of {known.title}, got no file '{names_file}'; {PREPARE} makes it"
        )
    names = read_list(names_file, folder, known, split)
    images = list_files(folder / "JPEGImages", folder, (".jpg",))
    if pngs.is_dir() or mats is None:
        masks, ids = list_files(pngs, folder, (".png",)), known.png_ids
    else:
        masks, ids = list_files(mats, top, (".mat",)), known.ids
    pairs = pair_files(images, masks, root, known, split, names)
    return FileSource(known, split, pairs, MODES, "LabelMap", ids)


def _no_labels(around: Sequence[Path], known: DatasetInfo, split: str) -> DataError:
    json = next((p / "trainval_merged.json" for p in around if (p / "trainval_merged.json").is_file()), None)
    got = f"only '{json}'; {PREPARE} makes the masks from it" if json else "neither; complete the data set"
    return DataError(
        f"expected labels of {known.title} in SegmentationClassContext or trainval below data.root='{around[-1]}' "
        f"(split {split!r}), got {got}; data.root should hold\n{known.layout}"
    )
