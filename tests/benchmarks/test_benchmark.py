"""The benchmark runs on any data set in files, and tells what is wrong with what it is given."""

import json
import subprocess
from pathlib import Path

import pytest
from benchmarks.data import Row, save, table

from tests import fakes, forked

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run("benchmark.py", *arguments, cwd=ROOT)


def test_ours_is_measured_with_and_without_the_cache(tmp_path: Path) -> None:
    root = fakes.make_fake_ade20k(tmp_path / "a, (strange) 'root'")
    small = ["--samples", "8", "--rounds", "2", "--workers", "0", "1", "--output", str(tmp_path / "out")]
    done = run("data", f"ade20k={root}", *small, "--peer", str(tmp_path / "none"))
    assert done.returncode == 0, done.stderr
    assert "ours alone" in done.stderr
    rows = json.loads((tmp_path / "out" / "benchmark" / "data.json").read_text())
    assert [(r["pipeline"], r["workers"]) for r in rows] == [
        (name, workers) for name in ("isaseg", "isaseg, cached") for workers in (0, 1)
    ]
    assert all(len(r["rounds"]) == 2 and r["milliseconds"] > 0 and r["times_mmseg"] is None for r in rows)
    assert {p.name for p in tmp_path.iterdir()} == {root.name, "out"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ade20k"], "expected NAME=ROOT"),
        (["cityscape=/x"], "no option 'cityscape' in the group data; did you mean 'cityscapes'"),
        (["ade20k=/nowhere"], "data set not found"),
        (["lamps=/x"], "expected a data set of files, got lamps"),
        (["ade20k=/x", "--samples", "4"], "at least 8 samples"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run("data", *arguments, "--output", str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_medians_over_rounds_that_were_taken_in_turns(tmp_path: Path) -> None:
    """A round in which the whole machine was slow counts for both."""
    ours = Row("x", "isaseg", {0: [0.01, 0.02, 0.01]})
    theirs = Row("x", "mmsegmentation", {0: [0.03, 0.08, 0.03]})
    save([ours, theirs], [0], tmp_path / "data.json")
    first, second = json.loads((tmp_path / "data.json").read_text())
    assert (first["milliseconds"], first["times_mmseg"], second["times_mmseg"]) == pytest.approx(
        (10.0, 3.0, 1.0)
    )
    assert table([ours, theirs], [0]).row_count == 2
