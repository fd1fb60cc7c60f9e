"""What `isaseg data check` finds in a data set: every fault of every file, sizes, classes; as table and JSON."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from isaseg.data.check import size_fault
from isaseg.data.parallel import in_threads
from isaseg.data.source import FileSource
from isaseg.errors import DataError

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


@dataclass
class SplitReport:
    """What is in a split of K classes.

    Attributes:
        source: The split.
        warning: A sentence where the number of images is not the published one.
        pixels: Pixels of each class, ignored ones last, in labels without an unknown id; int64 (K + 1,).
        occurs: Images in which each occurs, likewise.
        sizes: Number of readable images of each size.
        faults: All faults.
        usable: Indices of the samples without a fault.
    """

    source: FileSource
    warning: str | None
    pixels: np.ndarray
    occurs: np.ndarray
    sizes: Counter[Size] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    usable: list[int] = field(default_factory=list)


def inspect_split(source: FileSource, workers: int | None = None) -> SplitReport:
    """Decode every file of a split, not from the cache, and report all that is wrong; shows a bar on stderr."""
    shown = [*range(len(source.classes)), source.ignore_index]
    none = np.zeros(len(shown), np.int64)
    report = SplitReport(source, size_fault(source), none, none.copy())
    text = f"checking {source.info.title} {source.split}"
    findings = in_threads(partial(inspect_sample, source), range(len(source)), text, workers)
    for index, (size, pixels, faults) in enumerate(findings):
        report.sizes.update([] if size is None else [size])
        report.pixels += pixels[shown]
        report.occurs += pixels[shown] > 0
        report.faults += faults
        if not faults:
            report.usable.append(index)
    return report


def inspect_sample(source: FileSource, index: int) -> tuple[Size | None, np.ndarray, list[Fault]]:
    """Decode a sample; return its size, the pixels of each train id, int64 (256,), and all its faults."""
    pair = source.pairs[index]
    pixels = np.zeros(256, np.int64)
    faults: list[Fault] = []

    def attempt(file: Path, work: Callable[..., Any], *args: Any) -> Any:
        """Return what `work` returns, None if that is a fault."""
        try:
            return work(*args)
        except DataError as error:
            if str(error) not in [fault.text for fault in faults]:  # both files are turned, or neither
                faults.append(Fault(source.split, pair.name, str(file), str(error)))

    image = attempt(pair.image, source.decode_image, index)
    size = None if image is None else (image.shape[1], image.shape[0])
    raw = None if pair.mask is None else attempt(pair.mask, source.decode_labels, index)
    if pair.mask is None or raw is None:
        return size, pixels, faults
    if image is not None:
        attempt(pair.mask, source.check_sizes, index, image, raw)
    ids = attempt(pair.mask, source.to_train_ids, raw, index)
    if ids is None:
        faults[-1] = replace(faults[-1], unknown_ids=source.unknown_ids(raw))
    else:
        pixels = np.bincount(ids.ravel(), minlength=256)
    return size, pixels, faults


def as_json(
    name: str, root: str | None, reports: Sequence[SplitReport], faults: Sequence[Fault]
) -> dict[str, Any]:
    """Return the reports on a data set as JSON types, with pixels and images of every class."""
    return {
        "name": name,
        "root": root,
        "splits": {report.source.split: _split_json(report) for report in reports},
        "warnings": [report.warning for report in reports if report.warning],
        "faults": [asdict(fault) for fault in faults],
    }


def _split_json(report: SplitReport) -> dict[str, Any]:
    source = report.source
    content: dict[str, Any] = {
        "images": len(source),
        "published": source.info.splits.get(source.split),
        "labelled": source.labelled,
        "usable": len(report.usable),
        "sizes": {f"{w}x{h}": n for (w, h), n in sorted(report.sizes.items())},
    }
    if source.labelled:
        content["ignored_pixels"], content["ignored_in"] = int(report.pixels[-1]), int(report.occurs[-1])
        content["classes"] = [
            {"id": i, "name": name, "pixels": int(report.pixels[i]), "images": int(report.occurs[i])}
            for i, name in enumerate(source.classes)
        ]
    return content


def tables(title: str, reports: Sequence[SplitReport]) -> Group:
    """Return the reports for people: a table of the splits, one of the classes."""
    table = Table("", *(Column(report.source.split, justify="right") for report in reports), title=title)
    columns = [_split_column(report) for report in reports]
    for key in columns[0]:
        table.add_row(key, *(column[key] for column in columns))
    labelled = [report for report in reports if report.source.labelled]
    return Group(table, *([_class_table(labelled)] if labelled else []))


def _split_column(report: SplitReport) -> dict[str, str]:
    sizes = sorted(report.sizes.elements(), key=lambda size: size[0] * size[1])
    spread = [f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1])] if sizes else ["-"] * 3
    published = report.source.info.splits
    ignored = f"{100 * report.pixels[-1] / max(1, report.pixels.sum()):.1f} %"
    return {
        "images": str(len(report.source)),
        **({"published": str(published.get(report.source.split, "-"))} if published else {}),
        **dict(zip(("smallest", "median", "largest"), spread, strict=True)),
        "distinct sizes": str(len(report.sizes)),
        "ignored pixels": ignored if report.source.labelled else "no labels",
        "faults": str(len(report.faults)),
    }


def _class_table(reports: Sequence[SplitReport]) -> Table:
    table = Table(Column("", justify="right"), "class")
    for report in reports:
        table.add_column(f"{report.source.split}\npixels %", justify="right")
        table.add_column("\nimages", justify="right")
    source = reports[0].source
    colours = [*source.palette.tolist(), (255, 255, 255)]
    for index, name in enumerate((*source.classes, "ignored")):
        cells = []
        for report in reports:
            share = 100 * report.pixels[index] / max(1, report.pixels.sum())
            cells += [f"{share:.3f}", str(report.occurs[index])] if report.occurs[index] else ["-", "-"]
        number = str(index) if index < len(source.classes) else ""
        table.add_row(
            number, Text.assemble(("██ ", f"rgb({','.join(map(str, colours[index]))})"), name), *cells
        )
    return table
