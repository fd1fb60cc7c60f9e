"""CamVid in the layout of the SegNet tutorial: 11 classes, 480x360."""

from isaseg.data.index import find_root, list_files, pair_files
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError

INFO = dataset_info("camvid")


def camvid(split: str, root: str | None) -> FileSource:
    """Return a split of CamVid; images and labels are paired by file name, list files are not needed.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split not in INFO.splits:
        raise ConfigError(f"expected a split of {', '.join(INFO.splits)}, got {split=}")
    folder = find_root(root, INFO, split, ("CamVid",))
    images = list_files(folder / split, folder)
    masks = list_files(folder / f"{split}annot", folder, (".png",))
    return FileSource(INFO, split, pair_files(images, masks, root, INFO, split))
