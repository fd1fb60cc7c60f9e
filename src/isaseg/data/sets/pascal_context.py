"""PASCAL-Context: 59 classes, or 60 with background; labels as PNG, or as the MATLAB files of 459 ids."""

from isaseg.data.index import JPEG, PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO, INFO_60 = dataset_info("pascal_context"), dataset_info("pascal_context_60")


def pascal_context(split: str, root: str | None, background: bool = False) -> FileSource | None:
    """Return a split of PASCAL-Context; there is no test split.

    Labels are the PNG of SegmentationClassContext (0 to 59) where there are any, otherwise LabelMap in trainval/*.mat.

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
    masks, ids = files.find("SegmentationClassContext", PNG), info.png_ids
    if not masks:
        around = (path for path in (files.folder, *files.folder.parents) if path.is_relative_to(files.root))
        masks, ids = files.find(files.first(*(f"{path}/trainval" for path in around)), (".mat",)), info.ids
    names = files.read_list(f"ImageSets/SegmentationContext/{split}.txt")
    pairs = files.pairs(files.find("JPEGImages", JPEG), masks, names)
    return FileSource(info, split, pairs, ("L", "P"), "LabelMap", ids)
