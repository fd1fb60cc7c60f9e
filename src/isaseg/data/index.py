"""Which files a split has: found below the root, never outside it, and paired by name."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isaseg.data.info import DatasetInfo
from isaseg.errors import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Pair:
    """An image file, its label file (None: not public), and a name."""

    name: str
    image: Path
    mask: Path | None


def find_root(root: str | None, info: DatasetInfo, split: str, inside: Sequence[str] = ()) -> Path:
    """Return the folder of the data set: `root` itself, or the first of `inside` that it has.

    Raises:
        DataError: If `root` is not given or not a folder, or a link leads out of it.
    """
    root = None if root is None else str(root)  # YAML reads 2012 as a number
    if root is None or not Path(root).expanduser().is_dir():
        raise DataError(
            f"data set not found: expected {info.title} in a folder, got data.root={root!r} (split {split!r}); "
            f"pass data.root=/path/to/it, which should hold\n{info.layout}"
        )
    path = Path(root).expanduser().resolve()
    return _real(next((path / sub for sub in inside if (path / sub).is_dir()), path), path)


def list_files(
    folder: Path, root: Path, endings: Sequence[str] = IMAGE_ENDINGS, suffix: str = ""
) -> dict[str, Path]:
    """Return the files below `folder` by name: path without `suffix` and ending, relative to `folder`.

    Raises:
        DataError: If two files have one name, or a link leads out of `root` or in a circle.
    """
    files: dict[str, Path] = {}
    if not folder.is_dir():
        return files
    inside = _real(folder, root)
    for path in sorted(_walk(inside, root)):
        stem, ending = os.path.splitext(path.relative_to(inside).as_posix())
        if ending.lower() not in endings or path.name.startswith(".") or not stem.endswith(suffix):
            continue
        name = stem.removesuffix(suffix)
        if name in files:
            raise DataError(f"expected one file for each name, got '{files[name]}' and '{path}'; remove one")
        files[name] = path
    return files


def read_list(path: Path, root: Path, info: DatasetInfo, split: str) -> list[str]:
    """Return the names in a list file, one a line.

    Raises:
        DataError: If there is no such file below `root`, or it names nothing.
    """
    try:
        names = _real(path, root).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise DataError(
            f"expected a list of the images of split {split!r} of {info.title}, got '{path}': {reason}; "
            f"data.root should hold\n{info.layout}"
        ) from None
    names = [name.strip() for name in names if name.strip()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"expected each image once, got '{twice[0]}' twice in the list '{path}'; remove one")
    if not names:
        raise DataError(
            f"expected names of images, one a line, got the empty list '{path}' (split {split!r})"
        )
    return names


def pair_files(
    images: Mapping[str, Path],
    masks: Mapping[str, Path] | None,
    root: str | None,
    info: DatasetInfo,
    split: str,
    names: Iterable[str] | None = None,
) -> list[Pair]:
    """Return the pairs of images and masks of the same name.

    Args:
        images: Files by name.
        masks: Files by name; None: the split has no labels.
        root: For the error.
        info: For the error.
        split: For the error.
        names: The names of the split, in this order; None: all there are, sorted.

    Raises:
        DataError: If there are none, or a file has no partner.
    """
    if names is None:
        names = sorted(images.keys() | (masks or {}).keys())
    names = list(names)
    missing = [
        f"mask of '{images[n]}'" if n in images else f"image of '{(masks or {}).get(n, n)}'"
        for n in names
        if n not in images or (masks is not None and n not in masks)
    ]
    if missing or not names:
        lacking = (
            f"; missing: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}" if missing else ""
        )
        raise DataError(
            f"expected {info.title} with {'images' if masks is None else 'a mask for every image'}, got "
            f"{len(names) - len(missing)} of {len(names)} pairs in data.root={root!r} (split {split!r}){lacking}; "
            f"pass data.root=/path/to/it, which should hold\n{info.layout}"
        )
    return [Pair(n, images[n], None if masks is None else masks[n]) for n in names]


def _walk(folder: Path, root: Path, above: tuple[str, ...] = ()) -> Iterable[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(
            f"expected folders inside each other, got the link '{folder}' back to '{real}'; remove it"
        )
    with os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                _real(path, root)
            if path.is_dir() if entry.is_symlink() else entry.is_dir():
                yield from _walk(path, root, (*above, real))
            else:
                yield path


def _real(path: Path, root: Path) -> Path:
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(root)):
        raise DataError(
            f"expected the files of the data set below data.root='{root}', got the link '{path}' to '{real}'; "
            "copy or mount the files there, or point data.root at where they are"
        )
    return path
