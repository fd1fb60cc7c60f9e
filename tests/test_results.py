"""The tables of docs/results.md whose runs are kept in docs/runs are what the printed `compare` makes of them."""

import re
import shlex
import tarfile
from pathlib import Path

import pytest

from isaseg.cli import compare

ROOT = Path(__file__).parents[1]
KEPT = {path.name.partition(".")[0]: path for path in sorted((ROOT / "docs" / "runs").glob("*.tar.xz"))}
# a command in a fence, with the next table below it
PRINTED = re.compile(r"^python src/compare\.py (outputs/(\w+)/.*)$\n(?s:.*?)\n\n((?:\|.*\n)+)", re.MULTILINE)
TABLES = [
    found.groups()
    for found in PRINTED.finditer((ROOT / "docs" / "results.md").read_text())
    if found[2] in KEPT
]


def rows_of(table: str) -> dict[str, dict[str, str]]:
    """Return the cells by row, without the mark of a row of earlier code, and title."""
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()
    )
    return {line[0].removesuffix(" †"): dict(zip(head[1:], line[1:], strict=True)) for line in lines}


def unpacked(experiment: str, folder: Path) -> list[Path]:
    """Unpack an archive into a folder; return its files."""
    with tarfile.open(KEPT[experiment]) as archive:
        archive.extractall(folder, filter="data")
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("words", "experiment", "table"), TABLES, ids=[words.split()[0] for words, *_ in TABLES]
)
def test_a_table_is_made_of_the_runs_that_are_kept(
    words: str, experiment: str, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked(experiment, tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    pattern, *options = shlex.split(words.replace(" --bounds", ""))  # these take long, and follow from no run
    assert compare.main([*map(str, tmp_path.glob(pattern)), *options, "--output", "made"]) == 0
    made = rows_of((tmp_path / "made" / "table.md").read_text().partition("\n\n")[0])
    printed = rows_of(table)
    assert set(made) == set(printed)
    for row, cells in printed.items():
        counted = {title: cell for title, cell in cells.items() if "bound" not in title}
        assert counted == {title: made[row].get(title) for title in counted}, row


def test_every_archive_has_a_table() -> None:
    assert {experiment for _, experiment, _ in TABLES} == set(KEPT)


@pytest.mark.parametrize("experiment", KEPT)
def test_an_archive_holds_records_alone_and_no_path_of_a_machine(experiment: str, tmp_path: Path) -> None:
    files = unpacked(experiment, tmp_path)
    kinds = {path.name for path in files if path.suffix != ".sweep"}
    assert kinds == {"config.yaml", "facts.json", "metrics.csv", "metrics.json"}
    for path in files:
        assert not re.search(r"[\"' =]/(work|home|root|tmp|Users)/", path.read_text()), path
