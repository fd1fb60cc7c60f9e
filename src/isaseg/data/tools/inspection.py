"""What `isaseg data check` finds in a data set: every fault of every file, sizes, classes; as table and JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from isaseg.data.check import size_fault
from isaseg.data.info import DatasetInfo
from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError

_ABSENT_NAMED = 12  # classes that a sentence names; the JSON has all

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, or with a whole split where `name` is empty.

    Attributes:
        split: The split.
        name: The sample.
        file: Path of the file.
        text: A sentence that names the file and the value, what was expected and what to do.
        unknown_ids: Ids that are not in the id table, with their numbers of pixels.
    """

    split: str
    name: str
    file: str
    text: str
    unknown_ids: Mapping[int, int] = field(default_factory=dict)


class Finding(NamedTuple):
    """What is in one sample: its size, whether the image is grey, pixels of each train id (256,), faults."""

    size: Size | None
    grey: bool
    pixels: np.ndarray
    faults: Sequence[Fault]


@dataclass
class SplitReport:
    """What is in a split of K classes.

    Attributes:
        split: Its name.
        info: The data set.
        images: Number of images.
        labelled: Whether there are labels.
        warning: A sentence where the number of images is not the published one.
        pixels: Pixels of each class, ignored ones last, in labels without an unknown id; int64 (K + 1,).
        occurs: Images in which each occurs, likewise.
        sizes: Number of readable images of each size.
        grey: Number of images without colour.
        faults: All faults.
        usable: Indices of the samples without a fault.
    """

    split: str
    info: DatasetInfo
    images: int
    labelled: bool
    warning: str | None
    pixels: np.ndarray
    occurs: np.ndarray
    sizes: Counter[Size] = field(default_factory=Counter)
    grey: int = 0
    faults: list[Fault] = field(default_factory=list)
    usable: list[int] = field(default_factory=list)

    @property
    def absent(self) -> list[str]:
        """Names of the classes that never occur; none where there are no labels."""
        return [c for c, n in zip(self.info.classes, self.pixels, strict=False) if n == 0 and self.labelled]


def inspect_split(source: FileSource, workers: int | None = None) -> SplitReport:
    """Decode every file of a split, not from the cache, and report all that is wrong; shows a bar on stderr."""
    shown = [*range(len(source.classes)), source.ignore_index]
    report = SplitReport(
        source.split,
        source.info,
        len(source),
        source.labelled,
        size_fault(source),
        np.zeros(len(shown), np.int64),
        np.zeros(len(shown), np.int64),
    )
    text = f"checking {source.info.title} {source.split}"
    with in_threads(partial(inspect_sample, source), range(len(source)), text, workers) as findings:
        for index, finding in enumerate(findings):
            if finding.size is not None:
                report.sizes[finding.size] += 1
            report.grey += finding.grey
            report.pixels += finding.pixels[shown]
            report.occurs += finding.pixels[shown] > 0
            report.faults += finding.faults
            if not finding.faults:
                report.usable.append(index)
    return report


def inspect_sample(source: FileSource, index: int) -> Finding:
    """Decode a sample and return what is in it, with all its faults."""
    pair, size, grey = source.pairs[index], None, False
    pixels, faults = np.zeros(256, np.int64), []

    def add(file: Path, text: object, unknown: Mapping[int, int] | None = None) -> None:
        faults.append(Fault(source.split, source.name(index), str(file), str(text), unknown or {}))

    try:
        image = source.decode_image(index)
        size, grey = (image.shape[1], image.shape[0]), _is_grey(image)
    except DataError as error:
        add(pair.image, error)
    if pair.mask is None:
        return Finding(size, grey, pixels, faults)
    raw = None
    try:
        raw = source.decode_labels(index)
        if size is not None and size != raw.shape[::-1]:
            text = (
                f"expected image and labels of one size, got {size[0]}x{size[1]} in '{pair.image}' and "
                f"{raw.shape[1]}x{raw.shape[0]} in '{pair.mask}' ({source.info.title}, {source.split}); replace the "
                "file that is not as published (EXIF orientation is not applied)"
            )
            add(pair.mask, text)
        # counts are float32, so exact up to 16 million pixels of an id
        counts = cv2.calcHist([source.to_train_ids(raw, index)], [0], None, [256], [0, 256])
        pixels += counts.ravel().astype(np.int64)
    except DataError as error:
        add(pair.mask, error, None if raw is None else source.unknown_ids(raw))
    return Finding(size, grey, pixels, faults)


def _is_grey(image: np.ndarray) -> bool:
    thin = image[::16, ::16]
    if (thin[..., 0] != thin[..., 1]).any():  # is quick, and true of most images with colour
        return False
    red, green, blue = cv2.split(image)
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


def as_json(
    name: str, root: str | None, reports: Sequence[SplitReport], faults: Sequence[Fault]
) -> dict[str, Any]:
    """Return the reports as JSON types, with pixels and images of every class.

    Args:
        name: The data set.
        root: Its folder.
        reports: One for each split.
        faults: All faults.
    """
    return {
        "name": name,
        "root": root,
        "splits": {report.split: _split_json(report) for report in reports},
        "warnings": [report.warning for report in reports if report.warning],
        "faults": [asdict(fault) for fault in faults],
    }


def _split_json(report: SplitReport) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": report.images,
        "published": report.info.splits.get(report.split),
        "labelled": report.labelled,
        "usable": len(report.usable),
        "grey": report.grey,
        "sizes": {f"{w}x{h}": n for (w, h), n in sorted(report.sizes.items())},
    }
    if report.labelled:
        content["never"] = report.absent
        content["ignored_pixels"], content["ignored_in"] = int(report.pixels[-1]), int(report.occurs[-1])
        content["classes"] = [
            {"id": i, "name": name, "pixels": int(report.pixels[i]), "images": int(report.occurs[i])}
            for i, name in enumerate(report.info.classes)
        ]
    return content


def tables(title: str, reports: Sequence[SplitReport]) -> Group:
    """Return the reports for people: a table of the splits, one of the classes."""
    labelled = [report for report in reports if report.labelled]
    absent = [
        Text(f"never in {report.split}: {', '.join(report.absent[:_ABSENT_NAMED])}{_more(report.absent)}")
        for report in labelled
        if report.absent
    ]
    classes = [_class_table(labelled)] if labelled else []
    return Group(_split_table(title, reports), *classes, *absent)


def _more(absent: Sequence[str]) -> str:
    return f" and {len(absent) - _ABSENT_NAMED} others" if len(absent) > _ABSENT_NAMED else ""


def _split_table(title: str, reports: Sequence[SplitReport]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for report in reports:
        table.add_column(report.split, justify="right")
    columns = [_split_column(report) for report in reports]
    for key in columns[0]:
        table.add_row(key, *(column[key] for column in columns))
    return table


def _split_column(report: SplitReport) -> dict[str, str]:
    sizes = sorted(report.sizes.elements(), key=lambda size: size[0] * size[1])
    spread = [f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1])] if sizes else ["-"] * 3
    ignored = _percent(report.pixels[-1], report.pixels.sum()) if report.labelled else "no labels"
    return {
        "images": str(report.images),
        "published": str(report.info.splits.get(report.split, "-")),
        **dict(zip(("smallest", "median", "largest"), spread, strict=True)),
        "distinct sizes": str(len(report.sizes)),
        "grey images": _percent(report.grey, len(sizes)),
        "ignored pixels": ignored,
        "faults": str(len(report.faults)),
    }


def _class_table(reports: Sequence[SplitReport]) -> Table:
    table = Table()
    table.add_column("", justify="right")
    table.add_column("class")
    for report in reports:
        table.add_column(f"{report.split}\npixels %", justify="right")
        table.add_column("\nimages", justify="right")
    info = reports[0].info
    for index in range(len(info.classes) + 1):
        cells = []
        for report in reports:
            pixels, share = report.pixels[index], 100 * report.pixels[index] / max(1, report.pixels.sum())
            cells += [f"{share:.3f}", str(report.occurs[index])] if pixels else ["-", "-"]
        if index < len(info.classes):
            colour = f"rgb({','.join(map(str, info.palette[index]))})"
            table.add_row(str(index), Text.assemble(("██ ", colour), info.classes[index]), *cells)
        else:
            table.add_row("", "   ignored", *cells)
    return table


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
