"""CamVid in the layout of the SegNet tutorial: 11 classes, 480x360."""

from isaseg.data.index import PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("camvid")


def camvid(split: str, root: str | None) -> FileSource:
    """Return a split of CamVid. Images and labels are paired by file name; list files are not needed.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    files = SplitFiles(INFO, split, root, inside=("CamVid",))
    return FileSource(INFO, split, files.pairs(files.find(split), files.find(f"{split}annot", PNG)))
