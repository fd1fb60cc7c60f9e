"""PASCAL-Context: 59 classes, or 60 with background; labels as PNG, or as the MATLAB files of 459 ids."""

from isaseg.data.index import JPEG, PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource
from isaseg.errors import DataError

INFO, INFO_60 = dataset_info("pascal_context"), dataset_info("pascal_context_60")
PREPARE = "`python src/data.py prepare data=pascal_context archives=/path/to/downloads data.root=/path/to/it`"


def pascal_context(split: str, root: str | None, background: bool = False) -> FileSource | None:
    """Return a split of PASCAL-Context; there is no test split.

    Labels are the PNG of SegmentationClassContext (0 to 59) where that folder exists, otherwise LabelMap in
    trainval/*.mat.

    Args:
        split: train, val or test.
        root: VOCdevkit/VOC2010, or a folder that holds it; trainval may lie in VOC2010, in `root`, or between them.
        background: Whether what is none of the 59 classes is a class, the first, instead of being ignored.

    Returns:
        The split; None for test.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split == "test":
        return None
    info = INFO_60 if background else INFO
    files = SplitFiles(info, split, root, inside=("VOCdevkit/VOC2010", "VOC2010"))
    around = [path for path in (files.folder, *files.folder.parents) if path.is_relative_to(files.root)]
    mats = next((path / "trainval" for path in around if (path / "trainval").is_dir()), None)
    if (files.folder / "SegmentationClassContext").is_dir():
        masks, ids = files.find("SegmentationClassContext", PNG), info.png_ids
    elif mats is not None:
        masks, ids = files.find(mats, (".mat",)), info.ids
    else:
        merged = [path / "trainval_merged.json" for path in around]
        json = next((path for path in merged if path.is_file()), None)
        got = (
            f"only '{json}'; {PREPARE} makes the masks from it" if json else "neither; complete the data set"
        )
        raise DataError(
            f"expected labels of {info.title} in SegmentationClassContext or trainval below data.root='{files.root}' "
            f"(split {split!r}), got {got}; data.root should hold\n{info.layout}"
        )
    names = files.folder / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not names.is_file():
        raise DataError(
            f"expected the list of split {split!r} of {info.title}, got no file '{names}'; {PREPARE} makes it"
        )
    pairs = files.pairs(files.find("JPEGImages", JPEG), masks, files.read_list(names))
    return FileSource(info, split, pairs, ("L", "P"), "LabelMap", ids)
