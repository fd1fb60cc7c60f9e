"""CamVid in the layout of the SegNet tutorial: 11 classes, 480x360."""

from isaseg.data.index import find_root, list_files, pair_files
from isaseg.data.set_facts import facts
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError

FACTS = facts("camvid")


def camvid(split: str, root: str | None) -> FileSource:
    """Return a split of CamVid; images and labels are paired by file name, list files are not needed.

    Raises:
        DataError: If the data are absent or incomplete.
    """
    if split not in FACTS.splits:
        raise ConfigError(f"expected a split of {', '.join(FACTS.splits)}, got {split=}")
    folder = find_root(root, FACTS, split, ("CamVid",))
    images = list_files(folder / split, folder)
    masks = list_files(folder / f"{split}annot", folder, (".png",))
    return FileSource(FACTS, split, pair_files(images, masks, root, FACTS, split))
