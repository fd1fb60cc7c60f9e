"""The files of a split: found below the root, never outside it, and paired by name."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isaseg.data.info import DatasetInfo
from isaseg.errors import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
JPEG = (".jpg", ".jpeg")
PNG = (".png",)


@dataclass(frozen=True)
class Pair:
    """An image file, its label file (None if the labels are not public), and their name."""

    name: str
    image: Path
    mask: Path | None


class SplitFiles:
    """Where the files of one split are.

    Args:
        info: Of the data set.
        split: Name of the split, for messages.
        root: The folder that the user names: the data set itself, or a folder that holds it.
        inside: Where the data set may lie below `root`; the first of these folders that exists is taken.
        key: With which the user names `root`, for messages.

    Attributes:
        root: The resolved `root`; no file outside it is ever used.
        folder: The folder of the data set, in `root`.

    Raises:
        DataError: If `root` is not given or not a folder, or a link leads out of it.
    """

    def __init__(
        self,
        info: DatasetInfo,
        split: str,
        root: str | None,
        inside: Sequence[str] = (),
        key: str = "data.root",
    ) -> None:
        given = None if root is None else str(root)  # YAML reads 2012 as a number
        if given is None or not Path(given).expanduser().is_dir():
            raise DataError(
                f"data set not found: expected {info.title} in a folder, got data.root={given!r} (split {split!r}); "
                f"pass data.root=/path/to/it, which should hold\n{info.layout}"
            )
        self.info, self.split, self.key = info, split, key
        self.root = Path(given).expanduser().resolve()
        places = (self.root / sub for sub in inside)
        self.folder = self._inside(next((place for place in places if place.is_dir()), self.root))

    def first(self, *places: str) -> Path:
        """Return the first of these folders that exists, otherwise the first."""
        paths = [self.folder / place for place in places]
        return next((path for path in paths if path.is_dir()), paths[0])

    def find(
        self, place: str | Path, endings: Sequence[str] = IMAGE_ENDINGS, suffix: str = ""
    ) -> dict[str, Path]:
        """Return the files below a folder by name: the path relative to it, without `suffix` and ending.

        Args:
            place: A folder, relative to that of the data set. If it is absent, there are no files.
            endings: Of the files to be found, in lower case.
            suffix: What the names of the files end with.

        Raises:
            DataError: If two files have one name, or a link leads out of the root or in a circle.
        """
        files: dict[str, Path] = {}
        folder = self.folder / place
        if not folder.is_dir():
            return files
        for path in sorted(self._walk(self._inside(folder))):
            stem, ending = os.path.splitext(path.relative_to(folder).as_posix())
            if ending.lower() not in endings or path.name.startswith(".") or not stem.endswith(suffix):
                continue
            name = stem.removesuffix(suffix)
            if name in files:
                raise DataError(
                    f"expected one file for each name, got '{files[name]}' and '{path}'; remove one"
                )
            files[name] = path
        return files

    def read_list(self, place: str | Path) -> list[str]:
        """Return the names in a list file, one a line.

        Raises:
            DataError: If there is no such file below the root, if it is empty, or if a name stands in it twice.
        """
        path = self.folder / place
        try:
            lines = self._inside(path).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise DataError(
                f"expected a list of the images of split {self.split!r} of {self.info.title}, got '{path}': "
                f"{error.strerror}; data.root should hold\n{self.info.layout}"
            ) from None
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise DataError(
                f"expected names of images, one a line, got the empty list '{path}' (split {self.split!r})"
            )
        name, count = Counter(names).most_common(1)[0]
        if count > 1:  # its image would count twice in a score
            raise DataError(f"expected each image once, got '{name}' twice in the list '{path}'; remove one")
        return names

    def pairs(
        self,
        images: Mapping[str, Path],
        masks: Mapping[str, Path] | None,
        names: Iterable[str] | None = None,
    ) -> list[Pair]:
        """Return the images and masks of the same name.

        Args:
            images: Files by name.
            masks: Files by name; None if the split has no labels.
            names: The names of the split, in this order; None: all that there are, sorted.

        Raises:
            DataError: If there are no pairs, or a file has no partner.
        """
        labels = {} if masks is None else masks
        names = sorted(images.keys() | labels.keys()) if names is None else list(names)
        missing = [
            f"mask of '{images[n]}'" if n in images else f"image of '{labels.get(n, n)}'"
            for n in names
            if n not in images or (masks is not None and n not in masks)
        ]
        if missing or not names:
            more = ", ..." if len(missing) > 5 else ""
            raise DataError(
                f"expected {self.info.title} with {'images' if masks is None else 'a mask for every image'}, got "
                f"{len(names) - len(missing)} of {len(names)} pairs in data.root='{self.root}' "
                f"(split {self.split!r}){'; missing: ' if missing else ''}{', '.join(missing[:5])}{more}; "
                f"pass data.root=/path/to/it, which should hold\n{self.info.layout}"
            )
        return [Pair(n, images[n], labels.get(n)) for n in names]

    def _walk(self, folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real in above:
            raise DataError(
                f"expected folders inside each other, got the link '{folder}' back to '{real}'; remove it"
            )
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink():
                    self._inside(path)
                if path.is_dir() if entry.is_symlink() else entry.is_dir():
                    yield from self._walk(path, (*above, real))
                else:
                    yield path

    def _inside(self, path: Path) -> Path:
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(self.root):
            raise DataError(
                f"expected the files of the data set below {self.key}='{self.root}', got the link '{path}' to '{real}'; "
                f"copy or mount the files there, or point {self.key} to where they are"
            )
        return path
