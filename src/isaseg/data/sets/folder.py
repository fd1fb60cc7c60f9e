"""A user's own data set: images and label images in two folders, class names in the configuration."""

from collections.abc import Sequence

import numpy as np

from isaseg.data.index import SplitFiles
from isaseg.data.info import DatasetInfo, default_palette
from isaseg.data.source import FileSource
from isaseg.errors import ConfigError

LAYOUT = """\
  images/{train,val,test}/NAME.jpg     (or .png, ...)
  masks/{train,val,test}/NAME.png      (labels 0 to K - 1 and 255; test may be absent)"""


def folder(
    split: str,
    root: str | None,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None,
    ignore: Sequence[int] = (255,),
    ignore_index: int = 255,
) -> FileSource | None:
    """Return a split of a folder; None for test where it has no files.

    Args:
        split: train, val or test.
        root: Folder that holds images and masks.
        classes: Names; label i in the masks is class i.
        palette: One RGB triple for each class; None: different hues.
        ignore: Labels in the masks that are left out.
        ignore_index: Train id for them.

    Raises:
        ConfigError: If names, colours and ignored labels do not agree.
        DataError: If the data are absent or incomplete.
    """
    if not isinstance(classes, list | tuple) or len({str(c) for c in classes}) != max(len(classes), 1):
        raise ConfigError(f"expected data.classes as different names, got {classes}; write [sky,ground]")
    classes = [str(c) for c in classes]  # YAML reads [0,1] as numbers
    if palette is not None and np.shape(palette) != (len(classes), 3):
        raise ConfigError(f"expected one RGB triple for each of {len(classes)} classes, got {palette=}")
    clash = sorted(set(ignore) & set(range(len(classes))))
    if clash:
        raise ConfigError(f"expected ignored labels outside the classes, got {clash} in data.source.ignore")
    colours = default_palette(len(classes)) if palette is None else np.array(palette, np.uint8)
    ids = {**{i: i for i in range(len(classes))}, **dict.fromkeys(ignore, ignore_index)}
    info = DatasetInfo("images and masks", tuple(classes), colours, ids, ignore_index, layout=LAYOUT)
    files = SplitFiles(info, split, root)
    images, masks = files.find(f"images/{split}"), files.find(f"masks/{split}")
    if split == "test" and not masks:
        return FileSource(info, split, files.pairs(images, None)) if images else None
    return FileSource(info, split, files.pairs(images, masks), modes=("L", "P", "I;16"))
