"""The IoU of each class: means of the rows, and how far these lie from the baseline."""

from typing import Any

from isaseg.console import percent
from isaseg.report.intervals import difference, spread
from isaseg.report.rows import Comparison, scored
from isaseg.report.table import NOTHING, csv_text, gap_text, markdown_table


def split_of(comparison: Comparison) -> str:
    """Return the split whose classes are shown: that of the metric."""
    return "test" if comparison.metric.startswith("test/") else "val"


def classes(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a record for each class: its name, and by row the mean IoU over the seeds at the scored checkpoints."""
    split = split_of(comparison)
    held = {row.label: row.classes(split) for row in comparison.rows}
    names = dict.fromkeys(name for found in held.values() for name in found)
    known = {label: found for label, found in held.items() if found}
    return [
        {
            "class": n,
            **{k: spread([*found[n].values()]).mean if n in found else None for k, found in known.items()},
        }
        for n in names
    ]


def classes_csv(comparison: Comparison) -> str:
    """Return the IoU of each class, one line per class."""
    return csv_text(classes(comparison))


def classes_markdown(comparison: Comparison) -> str:
    """Return a table with the IoU of the baseline and each row's difference to it; those of note are bold.

    Of note is an interval without zero. With many classes and rows a few such come by chance, which the note says.
    """
    base, split = comparison.baseline, split_of(comparison)
    others = [row for row in comparison.rows if row.gap is not None and row.classes(split)]
    held = base.classes(split) if base is not None else {}
    if base is None or not held or not others:
        return "No two rows with the IoU of classes.\n"
    lines, count, noted = [], 0, 0
    for name, scores in held.items():
        line = [name, percent(spread([*scores.values()]).mean)]
        for row in others:
            if not (ours := row.classes(split).get(name)):
                line.append(NOTHING)
                continue
            gap = difference(ours, scores)
            differs = gap.how != "none" and (gap.low > 0 or gap.high < 0)
            count, noted = count + 1, noted + differs
            line.append(f"**{gap_text(gap)}**" if differs else gap_text(gap))
        lines.append(line)
    table = markdown_table(["class", f"{base.label}, IoU %", *(row.label for row in others)], lines)
    note = (
        f"Mean over the seeds on {split}, at {scored(comparison.rows)}, and the difference of each row to {base.label} "
        f"with its 95 % interval. {noted} of {count} intervals leave out zero (bold). About one in 20 would, if no class "
        "differed at all."
    )
    return f"{table}\n\n{note}\n"
