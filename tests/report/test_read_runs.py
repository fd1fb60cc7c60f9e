"""Reading run folders, whatever state they are in and whoever wrote them."""

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from isaseg.report import page, runs, table
from tests.report.fake_runs import compared, write_run


def test_a_sweep_file_gives_its_members_those_not_begun_too(tmp_path: Path) -> None:
    write_run(tmp_path / "one", "attention=dense")
    write_run(tmp_path / "other", "attention=dense", seed=1)
    (tmp_path / "grid.sweep").write_text("# seed=0,1\none\nnot there yet\n\n")
    found = runs.read_runs([tmp_path / "grid.sweep"])
    assert [(run.folder.name, run.state) for run in found] == [
        ("one", "finished"),
        ("not there yet", "unfinished"),
    ]
    assert len(runs.read_runs([tmp_path / "grid.sweep", tmp_path / "one", tmp_path])) == 3


def test_what_lies_inside_a_run_is_no_other_run(tmp_path: Path) -> None:
    inner = write_run(tmp_path / "a" / "run", "attention=dense") / "wandb" / "offline" / "files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("x: 1\n")
    (found,) = runs.read_runs([tmp_path])
    assert found.folder == tmp_path / "a" / "run"


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("metrics.json", '{"val/mIoU": 0.', "unfinished"),
        ("metrics.json", "[1, 2]", "unfinished"),
        ("metrics.csv", "step,val/mIoU\n50,0.5\n100,0.", "unfinished"),
        ("metrics.csv", "step,val/mIoU,val/loss\n50,0.5,1\n60,0.5\n100,0.6,1\n", "unfinished"),
        ("facts.json", "{", "finished"),
        ("config.yaml", "seed: [1\n", "finished"),
        ("config.yaml", "seed: 0\ntrainer:\n", "finished"),
        ("config.yaml", "seed: 0\ndata:\n", "finished"),
        ("config.yaml", "note: ${oc.env:SECRET}\n", "finished"),
        ("config.yaml", 'note: "\\x24{oc.env:SECRET}"\n', "finished"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it_and_nothing_is_resolved(
    name: str,
    content: str,
    state: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SECRET", "sk-leaked")
    folder = write_run(tmp_path / "run", "attention=dense")
    before = (folder / name).read_text() if content.startswith("note:") else ""
    (folder / name).write_text(before + content)
    with caplog.at_level(logging.WARNING):
        comparison = compared(tmp_path)
    (message,) = caplog.messages
    assert str(folder / name) in message and "\n" not in message
    (run,) = [run for row in comparison.rows for run in row.runs] or comparison.loose
    assert run.state == state
    assert (run.config is None) == (name == "config.yaml")
    made = (table.markdown, table.latex, table.as_csv, table.runs_csv, page.page)
    assert not any("sk-leaked" in text(comparison) for text in made)
    assert str(folder) in table.markdown(comparison) or name == "facts.json"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("value", [10**400, 1e308, -1e308])
def test_numbers_beyond_all_measure_are_none(value: float, tmp_path: Path) -> None:
    for seed in range(2):
        run = write_run(tmp_path / str(seed), seed=seed)
        change(run / "facts.json", parameters=value)
        change(run / "metrics.json", seconds_per_step=value)
    (row,) = compared(tmp_path).rows
    assert row.cost("parameters") is None
    assert row.cost("ms_per_step") is None


def test_scenes_of_another_seed_are_another_row_unless_they_follow_the_runs(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "scenes" / str(seed), f"data.seed={seed}")
        write_run(tmp_path / "runs" / str(seed), seed=seed)
        write_run(tmp_path / "files" / str(seed), f"data.seed={seed}", seed=seed)
    assert [len(row.runs) for row in compared(tmp_path / "scenes").rows] == [1, 1, 1]
    assert [len(row.runs) for row in compared(tmp_path / "runs").rows] == [3]
    assert [len(row.runs) for row in compared(tmp_path / "files").rows] == [3]
    write_run(tmp_path / "runs" / "other", "data.seed=0", "optim.lr=0.5", seed=1)
    assert sorted(len(row.runs) for row in compared(tmp_path / "runs").rows) == [1, 3]


def test_what_strangers_wrote_is_no_formula_and_moves_no_cursor(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    change(run / "facts.json", device="=HYPERLINK(1)", git_commit="+1")
    failed = write_run(tmp_path / "failed", seed=1, finished=False)
    (failed / "failed.txt").write_text("\x1b[2J<img src=x onerror=alert(1)>\n")
    comparison = compared(tmp_path)
    (line,) = [
        line for line in csv.DictReader(io.StringIO(table.runs_csv(comparison))) if line["seed"] == "0"
    ]
    assert (line["device"], line["git_commit"]) == ("'=HYPERLINK(1)", "'+1")
    text = table.markdown(comparison)
    assert "\x1b" not in text + table.runs_csv(comparison)
    assert "\\<img" in text


def test_what_is_not_a_number_is_no_score_and_an_earlier_one_is_not_the_last(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "attention=dense")
    (folder / "metrics.csv").write_text("step,val/mIoU\n100,0.6\n50,0.1\n150,nan\n")
    run = runs.read_run(folder)
    assert run.score("val/mIoU", "last") is None
    assert list(runs.finite(run.history.curves["val/mIoU"]).items()) == [(50, 0.1), (100, 0.6)]
