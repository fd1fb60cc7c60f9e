"""Pictures named by the user: their files, the names of their results, and their pixels."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from isaseg.data.decode import DecodeError, read_image
from isaseg.data.index import IMAGE_ENDINGS
from isaseg.data.upright import orientation, upright
from isaseg.errors import DataError


class Picture(NamedTuple):
    """A file and the name of its results: its path below the given folder, or its own name, without extension."""

    path: Path
    name: str


def find_pictures(inputs: Sequence[str], output: Path) -> list[Picture]:
    """Return the pictures in files and folders; those of a folder are sorted and include its subfolders.

    Links to files are followed, links to folders are not. Hidden files and whatever lies in `output` are skipped.

    Raises:
        DataError: If there are none, an input does not exist, or two pictures would have the same output.
        OSError: If a folder cannot be listed.
    """
    found: list[Picture] = []
    for word in inputs:
        path = Path(os.path.expanduser(word))
        if word and os.path.isdir(path):
            if os.path.realpath(path) == os.path.realpath(output):
                raise DataError(
                    f"expected output to be another folder than input, got {word!r} for both; give another"
                )
            inside = sorted(_walk(path, os.path.realpath(output)))
            if not inside:
                raise DataError(
                    f"expected pictures ({', '.join(IMAGE_ENDINGS)}) in {word!r}, got none; give another folder"
                )
            found += [Picture(path / name, _stem(name)) for name in inside]
        elif os.path.isfile(path):
            found.append(Picture(path, _stem(path.name)))
        else:
            raise DataError(
                f"expected a picture or a folder, got input={word!r}, which is neither; check the path"
            )
    if not found:
        raise DataError(
            "expected pictures, got none; give input=FOLDER_OR_FILES, or files as plain words after --"
        )
    taken: dict[str, Path] = {}
    for path, name in found:
        if name in taken:
            raise DataError(
                f"expected one picture for each output, got {str(taken[name])!r} and {str(path)!r}, both for "
                f"{name + '.png'!r}; give them in two calls, or rename one"
            )
        taken[name] = path
    return found


@contextmanager
def pixels_at_most(limit: int) -> Iterator[None]:
    """Let `read_picture` accept up to `limit` pixels, instead of Pillow's 89 million for the whole process."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # about transparency in a palette or damaged EXIF, on which no pixel depends
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_picture(picture: Picture, turned: bool = True) -> np.ndarray:
    """Return a picture as uint8 RGB (H, W, 3), upright by its EXIF orientation if `turned`, else as it is stored.

    Raises:
        DataError: If it cannot be read, or is larger than `pixels_at_most` allows; names the file.
    """
    path = str(picture.path)
    try:
        pixels = read_image(picture.path)
        return upright(pixels, orientation(picture.path)[0]) if turned else pixels
    except Exception as error:  # decoders raise anything
        cause = error.__cause__ or error
        if isinstance(cause, Image.DecompressionBombError | Image.DecompressionBombWarning):
            limit = Image.MAX_IMAGE_PIXELS
            raise DataError(
                f"expected at most max_pixels={limit}, got more in {path!r}; raise max_pixels if you trust the file"
            ) from error
        what = str(error) if isinstance(error, DecodeError) else f"no image: {type(error).__name__}"
        if isinstance(cause, OSError) and cause.strerror:
            what = f"expected a readable file: {cause.strerror}"  # without the path, which follows
        raise DataError(f"{what} in {path!r}; replace the file, or leave it out") from error


def _walk(folder: Path, output: str) -> Iterator[str]:
    """Yield the paths of files with a picture's extension, relative to `folder`."""

    def refuse(error: OSError) -> None:  # os.walk would leave the folder out
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if name[0] != "." and os.path.realpath(os.path.join(place, name)) != output
        ]
        for name in names:
            path = os.path.join(place, name)
            is_picture = name[0] != "." and os.path.splitext(name)[1].lower() in IMAGE_ENDINGS
            # a broken link is reported when it is read; reading a pipe would never end
            if is_picture and (os.path.isfile(path) or not os.path.exists(path)):
                yield os.path.relpath(path, folder)


def _stem(name: str) -> str:
    return Path(os.path.splitext(name)[0]).as_posix()
