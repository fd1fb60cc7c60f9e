"""metrics.csv loses nothing, and is read alike everywhere."""

import os
from pathlib import Path

import pytest

from isaseg.runs.history import HistoryWriter, read_history


def test_each_row_is_in_the_file_at_once_and_a_later_value_counts(tmp_path: Path) -> None:
    writer = HistoryWriter(tmp_path / "run")
    for step, values in [(10, {"train/loss": 2.5}), (10, {"val/mIoU": 0.25}), (20, {"train/loss": 1.5})]:
        writer.add(step, values)
    path = tmp_path / "run" / "metrics.csv"
    assert path.read_text() == "step,train/loss,val/mIoU\n10,2.5,\n10,,0.25\n20,1.5,\n", (
        "whole without an end"
    )
    writer.add(20, {"train/loss": 1.25, "val/mIoU": 0.5})
    assert path.read_text().endswith("\n20,1.5,\n20,1.25,0.5\n")
    assert read_history(tmp_path / "run") == (
        {"train/loss": {10: 2.5, 20: 1.25}, "val/mIoU": {10: 0.25, 20: 0.5}},
        None,
    )


def test_r8_a_resumed_run_appends_with_new_columns_and_without_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    HistoryWriter(tmp_path).add(1, {"train/loss": 2.5})
    with path.open("a") as file:
        file.write("2,1.")
    resumed = HistoryWriter(tmp_path)
    resumed.add(2, {"train/loss": 1.5})
    assert path.read_text() == "step,train/loss\n1,2.5\n2,1.5\n"
    resumed.add(2, {"val/mIoU": 0.5, "val/loss": float("nan")})
    resumed.add(3, {"train/loss": 1.0})
    assert path.read_text() == "step,train/loss,val/mIoU,val/loss\n1,2.5,,\n2,1.5,,\n2,,0.5,nan\n3,1,,\n"
    assert os.listdir(tmp_path) == ["metrics.csv"]


@pytest.mark.parametrize(
    ("content", "mious", "fault"),
    [
        ("step,train/loss,val/mIoU\n1,0.5,\n2,,0.25\n4,0.1,0.5\n2,,0.3\n", {2: 0.3, 4: 0.5}, None),
        ("step,val/mIoU\n2,0.25\n4,0.7", {2: 0.25}, "the last line is cut short"),
        ("step,val/mIoU\n2,0.25\nx,0.5\n4,0.75\n", {2: 0.25, 4: 0.75}, "line 3 cannot be read"),
        ("step,val/mIoU,val/loss\n2,0.25\n4,0.5,1\n", {4: 0.5}, "line 2 cannot be read"),
        ("step,val/mIoU\n2,0.25,1\n4,0.5\n", {4: 0.5}, "line 2 cannot be read"),
        ("step,train/loss\n", {}, None),
        ("", {}, None),
    ],
)
def test_the_later_row_counts_and_what_cannot_be_read_is_left_out(
    content: str, mious: dict[int, float], fault: str | None, tmp_path: Path
) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    history = read_history(tmp_path)
    assert history.curves.get("val/mIoU", {}) == mious
    assert history.last_step == max(mious, default=0)
    assert history.fault == fault
