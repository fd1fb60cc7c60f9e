"""Labels from masks that are images: in colours, or with indices of 1 to 16 bits."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isaseg.data.decode import DecodeError, read_mask
from isaseg.data.info import DatasetInfo
from isaseg.data.parallel import in_threads
from isaseg.errors import ConfigError, DataError

_SHOWN = 8  # unknown colours in a message


class MaskTables(NamedTuple):
    """What the values of masks mean.

    Attributes:
        indices: Label of each index, int16 (65536,); -1: unknown.
        colours: Label of each colour, int16 (2**24,); -1: unknown. Empty if there are no masks.
        names: Label of each name.
        by_colour: Whether a mask that has indices, and a colour for each, is read by its colours.
    """

    indices: np.ndarray
    colours: np.ndarray
    names: Mapping[str, int]
    by_colour: bool


def mask_tables(
    info: DatasetInfo,
    void: int,
    palette: Sequence[Sequence[int]] | None,
    ignored: Sequence[str | Sequence[int]],
    files: Sequence[Path],
) -> MaskTables:
    """Return what the values of masks mean.

    Grey masks and those with a palette are read by their colours if one of them, other than black, is in `palette` or
    `ignored`; otherwise by their indices. This is decided once for all of them.

    Args:
        info: Classes, and the labels that files may have.
        void: Label for what is left out.
        palette: Colours of the classes, (K, 3).
        ignored: Colours and names that get `void`.

    Raises:
        ConfigError: If a colour is given twice.
        DataError: If a mask cannot be read, or all of them are black and white without a palette for that.
    """
    indices, colours = np.full(2**16, -1, np.int16), np.full(2**24 if files else 0, -1, np.int16)
    for raw, train in info.ids.items():
        indices[raw] = void if train == info.ignore_index else train
    names = {name: number for number, name in enumerate(info.classes)}
    names.update({entry: void for entry in ignored if isinstance(entry, str)})
    known = [(colour, number) for number, colour in enumerate(palette or ())]
    known += [(entry, void) for entry in ignored if not isinstance(entry, str)]
    codes = [int(r) << 16 | int(g) << 8 | int(b) for (r, g, b), _ in known]
    if len({*codes}) < len(codes):
        raise ConfigError(
            f"expected different colours in data.source.palette and ignored=, got one twice in {known}"
        )
    if not files:
        return MaskTables(indices, colours, names, False)
    colours[codes] = [number for _, number in known]
    found = in_threads(_used, files, "looking at masks")
    used = np.array(sorted(set().union(*found)), np.int64).reshape(-1, 2)
    by_colour = bool((colours[used[used[:, 1] > 0, 1]] >= 0).any())
    if not by_colour and {*used[:, 0].tolist()} == {0, 255} and len(info.classes) > 1 and 255 in info.ids:
        raise DataError(
            f"expected indices of the {len(info.classes)} classes in the masks, got 0 and 255 alone in all, as in "
            f"'{files[0]}'; if they are black and white for two classes, give data.source.palette=[[0,0,0],[255,255,255]]"
        )
    return MaskTables(indices, colours, names, by_colour)


def relabel(tables: MaskTables, path: Path) -> tuple[np.ndarray, dict[str, int]]:
    """Return the labels of a mask, uint8 (H, W), and its unknown colours or labels with their numbers of pixels.

    Raises:
        DataError: If it cannot be read.
    """
    values, colours = _read(path)
    if colours is not None and tables.by_colour and colours[0] >= 0:  # 16 bits have none
        values, colours = colours.take(values, mode="clip"), None
    found = (tables.colours if colours is None else tables.indices)[values]
    strange, counts = np.unique(values[found < 0], return_counts=True)
    shown = [
        f"[{value >> 16},{value >> 8 & 255},{value & 255}]" if colours is None else f"label {value}"
        for value in strange.tolist()
    ]
    return found.astype(np.uint8), dict(zip(shown, counts.tolist(), strict=True))


def refuse_unknown(
    unknown: Mapping[str, Mapping[str, int]],
    place: Path,
    info: DatasetInfo,
    has_palette: bool,
    are_masks: bool,
) -> None:
    """Raise a DataError that lists the values that match no class, the most frequent first, if there is any.

    Args:
        unknown: For each file, colours, labels or names with their numbers of pixels or shapes.
        place: What `masks=` names.
        has_palette: Whether colours of the classes are known.
        are_masks: Whether pixels were counted; otherwise shapes.
    """
    pixels, names = Counter[str](), defaultdict[str, list[str]](list)
    for name, counts in unknown.items():
        pixels.update(counts)
        for text in counts:
            names[text].append(name)
    if not pixels:
        return
    if not are_masks:
        known, unit = f"the classes {', '.join(info.classes)}", "shapes"
        advice = "add them to data.classes, or to ignored= if they are to be left out"
    elif any(text.startswith("[") for text in pixels):
        known, unit = "colours of data.source.palette and ignored=", "pixels"
        advice = (
            "add them"
            if has_palette
            else "give data.source.palette=[[red,green,blue], ...], one for each class"
        )
        advice += "; colours between those of classes come from smoothing: save the masks without it"
    else:
        known, unit = f"labels 0 to {len(info.classes) - 1} and data.source.ignore", "pixels"
        advice = "add classes to data.classes, or the label to data.source.ignore"
    listed = [
        f"{text} ({count} {unit} in {len(names[text])} of {len(unknown)} files, first '{names[text][0]}')"
        for text, count in pixels.most_common(_SHOWN)
    ]
    more = f", and {len(pixels) - _SHOWN} more" if len(pixels) > _SHOWN else ""
    raise DataError(f"expected {known} alone in masks='{place}', got {', '.join(listed)}{more}; {advice}")


def _used(path: Path) -> set[tuple[int, int]]:
    """Return the indices that a mask uses, each with its colour; none for a mask in colours."""
    values, colours = _read(path, only_indices=True)
    if colours is None:
        return set()
    used = np.unique(values)
    return set(zip(used.tolist(), colours.take(used, mode="clip").tolist(), strict=True))


def _read(path: Path, only_indices: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        return read_mask(path, only_indices)
    except DecodeError as error:
        raise DataError(f"{error} in the mask '{path}'; save it again as PNG") from error
