"""Which runs make a row, what a row is called, and what is computed of its scores."""

import csv
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from isaseg.console import is_share
from isaseg.report import intervals, labels, rows, table
from isaseg.report.marks import with_stale
from isaseg.report.page import page
from isaseg.runs.stale import code_digests
from tests.report.fake_runs import compared, write_run


def test_a_sweep_over_any_key_is_told_by_that_key(tmp_path: Path) -> None:
    one, other = "optim.lr=1e-3", "optim.lr=2e-3"
    for place, words in enumerate(((one,), (other,), (one, "trainer.max_steps=600"), ("backbone=resnet18",))):
        write_run(tmp_path / f"run{place}", *words)
    comparison = compared(tmp_path)
    assert [row.label for row in comparison.rows] == [
        "isa-8x8, backbone=resnet18, max_steps=300, lr=0.004",
        "isa-8x8, backbone=test_resnet, max_steps=300, lr=0.001",
        "isa-8x8, backbone=test_resnet, max_steps=300, lr=0.002",
        "isa-8x8, backbone=test_resnet, max_steps=600, lr=0.001",
    ]
    assert not any("total_steps" in key or key == "data.max_steps" for key in comparison.differing)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("attention.group_size=[4,8]", ["isa-4x8", "isa-8x8"]),
        ("attention.mask_padding=true", ["isa-8x8, mask_padding=false", "isa-8x8, mask_padding=true"]),
        ("data=cards experiment=lamps_isa", ["isa-8x8, data=cards", "isa-8x8, data=lamps"]),
        ("data.crop_size=[64,128]", ["isa-8x8, crop_size=64x128", "isa-8x8, crop_size=128x128"]),
        ("aux_weight=0.2", ["isa-8x8, aux_weight=0.2", "isa-8x8, aux_weight=0.4"]),
    ],
)
def test_labels_show_what_differs(changed: str, expected: Sequence[str], tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", *changed.split())
    found = [row.label.split(", class_weights")[0] for row in compared(tmp_path).rows]
    assert [label[: len(want)] for label, want in zip(found, expected, strict=True)] == list(expected)


def test_seeds_devices_and_folders_do_not_split_a_row(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "attention=dense")
    write_run(tmp_path / "b", "attention=dense", "trainer.devices=2", "logger=csv", "output_dir=x", seed=1)
    (row,) = compared(tmp_path).rows
    assert sorted(row.scores) == [0, 1]


def test_rows_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for place, rate in enumerate(("1e-2", "2e-4", "1e-3", "5e-5")):
        write_run(tmp_path / str(place), f"optim.lr={rate}")
    ends = [row.label.partition("lr=")[2] for row in compared(tmp_path).rows]
    assert ends == ["5e-05", "0.0002", "0.001", "0.01"]


def test_the_same_run_twice_counts_once_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path / "a", "attention=dense", curve={100: 0.5})
    write_run(tmp_path / "b", "attention=dense", finished=False)
    (row,) = compared(tmp_path).rows
    assert [run.folder.name for run in row.runs] == ["a"]
    assert "the same run" in caplog.text


def test_labels_of_random_configurations_are_never_the_same() -> None:
    dice = random.Random(0)
    keys_of_all = [f"{s}.{k}" for s in ("attention", "optim", "data") for k in ("name", "x", "y")]
    for _ in range(200):
        held = {
            tuple((key, str(dice.randint(0, 2))) for key in keys_of_all) for _ in range(dice.randint(1, 9))
        }
        values = [dict(pairs) for pairs in held]
        attention = [value["attention.x"] for value in values]
        keys = labels.differing(attention, values)
        made = labels.labels(attention, values, keys)
        assert len(set(made)) == len(values)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({600: 0.2, 800: 0.990, 900: 0.995, 1000: 0.998}, True),
        ({600: 0.2, 800: 0.980, 900: 0.995, 1000: 0.998}, False),
        ({800: 0.99, 900: 0.97, 1000: 0.99}, False),
        ({700: 0.99, 1000: 0.99}, False),
        ({800: 0.99, 900: 0.99}, False),
        ({}, False),
    ],
    ids=["flat", "rising", "dip", "one validation", "not at the end", "empty"],
)
def test_converged_means_flat_over_the_last_fifth(curve: dict[int, float], expected: bool) -> None:
    assert rows.is_converged(curve, 1000) is expected


def test_no_difference_is_taken_to_other_data(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "attention=dense")
    write_run(tmp_path / "b", "attention=dense", "data=cards", "experiment=lamps_isa")
    comparison = compared(tmp_path)
    assert all(row.gap is None for row in comparison.rows)
    assert "No difference to a baseline on other data: dense, data=" in table.markdown(comparison)


def test_no_difference_is_taken_between_two_folders_of_the_users_own(tmp_path: Path) -> None:
    for root in ("cats", "dogs"):
        write_run(
            tmp_path / root, "data=folder", f"data.root={root}", "data.classes=[a,b]", "pretrained=false"
        )
    assert all(row.gap is None for row in compared(tmp_path).rows)


def test_a_single_seed_and_no_spread_claim_no_more_than_they_know() -> None:
    assert math.isnan(intervals.spread([]).mean)
    one = intervals.difference({0: 0.5}, {0: 0.4, 1: 0.6})
    assert one.how == "none" and math.isnan(one.low) and one.value == pytest.approx(0.0)
    assert intervals.difference({0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}) == (0, 0, 0, "Welch")
    assert intervals.spread([1.0, 3.0]).sd == pytest.approx(math.sqrt(2)), "the sample's, n - 1"


def test_rows_of_other_code_or_other_files_are_marked(tmp_path: Path) -> None:
    """In Markdown, LaTeX, CSV and on the page, each with a footnote; a run without these facts is not."""
    now = code_digests()
    val = {"count": 2, "bytes": 9, "digest": "aa"}
    known = {
        "dense": [now, val],
        "isa": [now, val],
        "none": [{"isaseg": "0123abcd"}, {**val, "digest": "bb"}],
        "criss_cross": [{**now, "os.path": "0"}, None],
        "aspp": None,
    }
    for name, held in known.items():
        folder = write_run(tmp_path / name, f"attention={name}")
        if held is not None:
            facts = {"code": held[0], "files": held[1] and {"val": held[1]}}
            (folder / "facts.json").write_text(json.dumps(facts))
    comparison = with_stale(compared(tmp_path))
    assert {row.attention: row.stale for row in comparison.rows if row.stale} == {"none": ("code", "files")}
    first = {line.split(" | ")[0] for line in table.markdown(comparison).splitlines()}
    assert {"| none † ‡", "| dense"} < first and "| aspp" in first
    assert r"none $^\dagger$ $^\ddagger$ &" in table.latex(comparison)
    assert {line["row"]: line["stale"] for line in csv.DictReader(table.as_csv(comparison).splitlines())}[
        "none"
    ]
    notes = [note for note in table.notes(comparison) if note[0] in "†‡"]
    assert notes[0].startswith(
        "† Computed by code other than what is installed now (the runs are of 3 codes): none."
    )
    assert notes[1] == "‡ Computed from different files than most runs on these data: none."
    assert "none † ‡" in page(comparison)


def test_runs_that_score_the_last_checkpoint_are_told_from_those_that_score_the_best(tmp_path: Path) -> None:
    """Rows are compared at the same kind of checkpoint, whichever a run has scored; an older run has scored the best."""
    curve = {50: 0.6, 100: 0.5}
    write_run(tmp_path / "a", "attention=dense", curve=curve)
    folder = write_run(tmp_path / "b", "attention=dense", "score=last", curve=curve)
    held = json.loads((folder / "metrics.json").read_text())
    held |= {"checkpoint": "last", "step": 100, "val/mIoU": 0.5, "test/mIoU": 0.45}
    (folder / "metrics.json").write_text(json.dumps(held))
    for at, scores in (("last", [0.5, 0.5]), ("best", [pytest.approx(0.61), 0.6])):
        comparison = compared(tmp_path, at=at)
        assert [row.label for row in comparison.rows] == ["dense, score=best", "dense, score=last"]
        assert [row.score.mean for row in comparison.rows] == scores
    assert [run.score("test/mIoU", at) for run in comparison.rows[1].runs for at in ("last", "best")] == [
        0.45,
        None,
    ]
    which = "the best checkpoints, but the last ones of dense, score=last"
    assert any(note.endswith(f"classes and pictures are of {which}.") for note in table.notes(comparison))
    assert f"At {which}, mean over the seeds." in page(comparison)
    lines = list(csv.DictReader(table.runs_csv(comparison).splitlines()))
    assert [(line["best_step"], line["scored"]) for line in lines] == [("50", "best"), ("50", "last")]
    alone = compared(folder)
    assert "At the last checkpoints, mean over the seeds." in page(alone)
    assert not any("classes and pictures" in note for note in table.notes(alone))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("val/mIoU", True), ("val/boundary_mIoU", True), ("test/aAcc", True), ("val/group_acc_far", True)]
    + [("val/loss", False), ("val/previous_loss", False), ("train/acceleration", False)],
)
def test_fractions_are_known_by_their_names(metric: str, expected: bool) -> None:
    assert is_share(metric) == expected
