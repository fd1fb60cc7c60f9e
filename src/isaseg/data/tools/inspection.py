"""What `python src/data.py check` finds in a data set: every fault of every file, sizes, classes; as table and JSON."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from isaseg.data.check import size_fault
from isaseg.data.info import DatasetInfo
from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError

_IDS_TOLD = 5  # unknown ids that a sentence names; the JSON has all
_ABSENT_TOLD = 12  # classes, likewise

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file, or where `name` is empty with a split.

    Attributes:
        split: Its split.
        name: Of the sample.
        file: Path of the file.
        text: A sentence that names file, value, what was expected and what to do.
        unknown_ids: Ids that are not in the id table, with their numbers of pixels.
    """

    split: str
    name: str
    file: str
    text: str
    unknown_ids: Mapping[int, int] = field(default_factory=dict)


class Finding(NamedTuple):
    """What is found in one sample: size, whether the image is grey, pixels by train id, faults."""

    size: Size | None
    grey: bool
    pixels: Mapping[int, int]
    faults: tuple[Fault, ...]


@dataclass
class SplitReport:
    """What is found in a split of K classes.

    Attributes:
        split: Its name.
        facts: Of the data set.
        images: Number of images.
        labelled: Whether there are labels.
        warning: A sentence where the number of images is not the published one.
        sizes: Number of readable images of each size.
        grey: Number of images without colour.
        pixels: Pixels of each class, ignored ones last; int64 (K + 1,).
        occurs: Images in which each occurs, likewise.
        faults: All there are.
        usable: Indices of the samples without a fault.
    """

    split: str
    facts: DatasetInfo
    images: int
    labelled: bool
    warning: str | None
    sizes: Counter[Size]
    grey: int
    pixels: np.ndarray
    occurs: np.ndarray
    faults: list[Fault]
    usable: list[int]

    @property
    def absent(self) -> list[str]:
        """Names of the classes that never occur; none where there are no labels."""
        return [c for c, n in zip(self.facts.classes, self.pixels, strict=False) if n == 0 and self.labelled]


def inspect_split(source: FileSource, workers: int | None = None) -> SplitReport:
    """Decode every file of a split, past the cache, and report all that is wrong; shows a bar on stderr."""
    classes = len(source.classes)
    report = SplitReport(
        source.split,
        source.info,
        len(source),
        source.labelled,
        size_fault(source),
        sizes=Counter(),
        grey=0,
        pixels=np.zeros(classes + 1, np.int64),
        occurs=np.zeros(classes + 1, np.int64),
        faults=[],
        usable=[],
    )
    text = f"checking {source.info.title} {source.split}"
    with in_threads(lambda i: inspect_sample(source, i), range(len(source)), text, workers) as findings:
        for index, finding in enumerate(findings):
            if finding.size is not None:
                report.sizes[finding.size] += 1
            report.grey += finding.grey
            for train_id, count in finding.pixels.items():
                report.pixels[min(train_id, classes)] += count  # ignore_index is above the classes
                report.occurs[min(train_id, classes)] += 1
            report.faults += finding.faults
            if not finding.faults:
                report.usable.append(index)
    return report


def inspect_sample(source: FileSource, index: int) -> Finding:
    """Decode a sample and return what is in it, with all its faults."""
    pair, name = source.pairs[index], source.name(index)
    where = f"({source.info.title}, {source.split})"
    faults: list[Fault] = []
    image = raw = None
    try:
        image = source.decode_image(index)
    except DataError as error:
        faults.append(Fault(source.split, name, str(pair.image), str(error)))
    size = None if image is None else (image.shape[1], image.shape[0])
    grey = image is not None and _is_grey(image)
    if pair.mask is None:
        return Finding(size, grey, {}, tuple(faults))
    try:
        raw = source.decode_labels(index)
    except DataError as error:
        faults.append(Fault(source.split, name, str(pair.mask), str(error)))
    if raw is None:
        return Finding(size, grey, {}, tuple(faults))
    if size is not None and size != (raw.shape[1], raw.shape[0]):
        text = (
            f"expected image and labels of one size, got {size[0]}x{size[1]} in '{pair.image}' and "
            f"{raw.shape[1]}x{raw.shape[0]} in '{pair.mask}' {where}; replace the file that is not as published "
            "(EXIF orientation is not applied)"
        )
        faults.append(Fault(source.split, name, str(pair.mask), text))
    pixels: Counter[int] = Counter()
    unknown = {}
    for label, count in count_labels(raw).items():
        if label in source.ids:
            pixels[source.ids[label]] += count
        else:
            unknown[label] = count
    if unknown:
        told = ", ".join(f"{label} in {count} pixels" for label, count in list(unknown.items())[:_IDS_TOLD])
        more = f" and {len(unknown) - _IDS_TOLD} others" if len(unknown) > _IDS_TOLD else ""
        text = (
            f"expected labels among the {len(source.ids)} ids {min(source.ids)} to {max(source.ids)}, got {told}{more} "
            f"of '{pair.mask}' {where}; take the file of the official archive, or mend the file or the id table"
        )
        faults.append(Fault(source.split, name, str(pair.mask), text, unknown))
    return Finding(size, grey, pixels, tuple(faults))


def count_labels(raw: np.ndarray) -> dict[int, int]:
    """Return how many pixels each id of `raw`, whole numbers (H, W), has."""
    if raw.dtype == np.uint8:
        # without Python's global lock, and a fifth of the time; in float32, so exact up to 16 million pixels of an id
        counts = (
            cv2.calcHist([np.ascontiguousarray(raw)], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        )
        return {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
    values, numbers = np.unique(raw, return_counts=True)
    return {int(label): int(count) for label, count in zip(values, numbers, strict=True)}


def _is_grey(image: np.ndarray) -> bool:
    thin = image[::16, ::16]
    if (thin[..., 0] != thin[..., 1]).any():  # spares most coloured images the rest
        return False
    red, green, blue = cv2.split(image)
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


def as_json(
    name: str, root: str | None, reports: Sequence[SplitReport], faults: Sequence[Fault]
) -> dict[str, Any]:
    """Return the reports as what JSON can hold; pixels and images are counted for every class.

    Args:
        name: Of the data set.
        root: Its folder.
        reports: Of its splits.
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
        "published": report.facts.splits.get(report.split),
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
            for i, name in enumerate(report.facts.classes)
        ]
    return content


def tables(title: str, reports: Sequence[SplitReport]) -> Group:
    """Return the reports for people: a table of the splits, one of the classes."""
    parts: list[Table | Text] = [_split_table(title, reports)]
    labelled = [report for report in reports if report.labelled]
    if labelled:
        parts.append(_class_table(labelled))
    for report in labelled:
        if absent := report.absent:
            more = f" and {len(absent) - _ABSENT_TOLD} more" if len(absent) > _ABSENT_TOLD else ""
            parts.append(Text(f"never in {report.split}: {', '.join(absent[:_ABSENT_TOLD])}{more}"))
    return Group(*parts)


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
    published = report.facts.splits.get(report.split)
    sizes = sorted(report.sizes.elements(), key=lambda size: size[0] * size[1])
    spread = (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else ()
    smallest, median, largest = (f"{w}x{h}" for w, h in spread) if sizes else ("-",) * 3
    return {
        "images": str(report.images),
        "published": "-" if published is None else str(published),
        "smallest": smallest,
        "median": median,
        "largest": largest,
        "distinct sizes": str(len(report.sizes)),
        "grey images": _percent(report.grey, sum(report.sizes.values())),
        "ignored pixels": _percent(report.pixels[-1], report.pixels.sum())
        if report.labelled
        else "no labels",
        "faults": str(len(report.faults)),
    }


def _class_table(reports: Sequence[SplitReport]) -> Table:
    table = Table()
    table.add_column("", justify="right")
    table.add_column("class")
    for report in reports:
        table.add_column(f"{report.split}\npixels %", justify="right")
        table.add_column("\nimages", justify="right")
    facts = reports[0].facts
    for index, name in enumerate((*facts.classes, "ignored")):
        cells = []
        for report in reports:
            absent = report.pixels[index] == 0
            share = 100 * report.pixels[index] / max(1, report.pixels.sum())
            cells += ["-", "-"] if absent else [f"{share:.3f}", str(report.occurs[index])]
        colour = f"rgb({','.join(map(str, facts.palette[index]))})" if index < len(facts.classes) else "white"
        label = Text.assemble(("██ ", colour), name) if index < len(facts.classes) else Text("   ignored")
        table.add_row(str(index) if index < len(facts.classes) else "", label, *cells)
    return table


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def render(content: Group, width: int = 110) -> str:
    """Return what the tables look like, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(content)
    return captured.get()
