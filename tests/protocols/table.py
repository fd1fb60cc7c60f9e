"""Write docs/protocols.md from the JSON files of this folder: `python -m tests.protocols.table`."""

from pathlib import Path
from typing import Any

from tests.protocols.values import composed, files

PAGE = Path(__file__).parents[2] / "docs" / "protocols.md"
_HEAD = Path(__file__).parent / "protocols_head.md"
_TITLES = {
    "cityscapes": "Cityscapes",
    "ade20k": "ADE20K",
    "lip": "LIP",
    "pascal_voc": "PASCAL VOC 2012",
    "pascal_context": "PASCAL-Context, 59 classes",
    "pascal_context_60": "PASCAL-Context, 60 classes",
    "coco_stuff": "COCO-Stuff 10k",
    "coco_stuff_164k": "COCO-Stuff 164k",
}
Cells = dict[str, list[tuple[Any, str, tuple[Any, ...]]]]  # by key: value, link, what ours is and why


def page() -> str:
    """Return the page: its head, then one table a data set, a column for each protocol and kind of backbone."""
    tables: dict[str, dict[str, Cells]] = {}
    for file in files().values():
        for row in file["rows"]:
            cfg, _ = composed(" ".join(row["words"]))
            column = f"`{cfg.recipe.protocol}`"
            column += ", HRNet-W48" if str(cfg.backbone.get("name")).startswith("hrnet") else ""
            order = cfg.attention.order
            column += f", {order} range alone" if order in ("long", "short") else ""
            cells = tables.setdefault(cfg.data.name, {}).setdefault(column, {})
            for key, (value, source, *ours) in row["values"].items():
                cell = (value, _link(file, source), tuple(ours))
                if all(value != known for known, *_ in cells.get(key, [])):
                    cells.setdefault(key, []).append(cell)
    shared = _shared(tables)
    parts = [_HEAD.read_text(), f"\n## All data sets\n\n{_table(shared)}"]
    for name, title in _TITLES.items():
        own = {
            column: {key: found for key, found in cells.items() if key not in shared.get(column, {})}
            for column, cells in tables[name].items()
        }
        parts.append(f"\n## {title}\n\n{_table(own)}")
    return "".join(parts)


def _shared(tables: dict[str, dict[str, Cells]]) -> dict[str, Cells]:
    """Return for each column the cells of the keys whose value is the same in all data sets, and in most of them."""
    columns: dict[str, list[Cells]] = {}
    for table in tables.values():
        for column, cells in table.items():
            columns.setdefault(column, []).append(cells)
    keys = {key for held in columns.values() for cells in held for key in cells}
    kept = {key for key in keys if all(_is_one(key, held) for held in columns.values())}
    return {
        column: {key: found[:1] for cells in held for key, found in cells.items() if key in kept}
        for column, held in columns.items()
    }


def _is_one(key: str, held: list[Cells]) -> bool:
    """Return whether a key has one value in all data sets of a column that have it, and most or none have it."""
    found = [cells[key] for cells in held if key in cells]
    same = all(value == found[0][0][0] for cells in found for value, *_ in cells)
    return not found or (same and 2 * len(found) > len(held))


def _table(columns: dict[str, Cells]) -> str:
    keys = list(dict.fromkeys(key for cells in columns.values() for key in cells))
    columns = {column: columns[column] for column in sorted(columns, key=_place)}
    lines = [f"| key | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    notes: list[str] = []
    for key in keys:
        shown = [", ".join(_cell(cell, notes) for cell in cells.get(key, [])) for cells in columns.values()]
        lines.append(f"| `{key}` | {' | '.join(shown)} |")
    if notes:
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _place(column: str) -> tuple[bool, str]:
    """Return by what columns are sorted: the authors' code comes first."""
    return not column.startswith("`openseg"), column.replace("`", "")


def _cell(cell: tuple[Any, str, tuple[Any, ...]], notes: list[str]) -> str:
    value, link, ours = cell
    text = f"[{_text(value)}]({link})"
    if not ours:
        return text
    note = f"Here {_text(ours[0])}: {ours[1]}."
    if note not in notes:
        notes.append(note)
    return f"{text} <sup>{notes.index(note) + 1}</sup>"


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(one)}" for key, one in value.items())
    if isinstance(value, list):
        if len(value) > 8:
            return f"{len(value)} values"
        return ", ".join(_text(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _link(file: dict[str, Any], source: str) -> str:
    """Return the address of a source."""
    place, _, line = source.rpartition(":")
    commit, _, path = place.rpartition(":")
    address = next(file["at"][start] for start in sorted(file["at"], reverse=True) if path.startswith(start))
    return f"{address.format(commit=commit or file['commit'])}{path}#L{line}"


if __name__ == "__main__":
    PAGE.write_text(page())
