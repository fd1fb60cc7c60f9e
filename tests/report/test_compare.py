"""Comparing runs from their folders: what is read, grouped, computed and written, whatever state the folders are in."""

import base64
import csv
import hashlib
import html
import io
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from scipy import stats

import compare as script
from isaseg.errors import DataError
from isaseg.report import figures, labels, page, rows, runs, table
from isaseg.report import intervals as statistics
from isaseg.report.pictures import sample_pictures
from tests.conftest import compose_overrides

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>alert('$x_1$')</script>"
CLASSES = ("background", "red & $plain$", "</script><b>", "lamp")
FIGURES = ("accuracy_cost.png", "curves.png", "group_size.png", "classes.png")
TEXTS = ("table.md", "table.csv", "table.tex", "runs.csv", "index.html")
ISA = "attention.group_size=[{},{}]"


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_overrides(*overrides)


def write_run(
    folder: Path,
    *overrides: str,
    seed: int = 0,
    curve: Mapping[int, float] | None = None,
    finished: bool = True,
    facts: bool = True,
    pictures: int = 0,
) -> Path:
    """A run folder as train.py leaves it; the best checkpoint is 0.01 better than the best of the curve."""
    folder.mkdir(parents=True)
    cfg = OmegaConf.create(OmegaConf.to_container(_composed(overrides)))
    cfg.seed = seed
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    curve = {50: 0.3, 100: 0.9} if curve is None else curve
    lines = ["step,train/loss,val/loss,val/mIoU"]
    for step in range(10, max(curve, default=20) + 1, 10):
        lines.append(
            f"{step},{1 / step:.6g},{1 - curve[step] if step in curve else ''},{curve.get(step, '')}"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if facts:
        size = math.prod(cfg.attention.get("group_size", [32, 32]))
        known = {"parameters": 400_000, "mult_adds": 6e8 + 1e6 * size, "attention_mult_adds": 1e6 * size}
        known |= {"attention_score_mib": size / 4, "device": "cpu", "git_commit": "0" * 40}
        (folder / "facts.json").write_text(json.dumps(known))
    if finished:
        best = max(curve.values()) + 0.01
        iou = {name: best - 0.1 * place for place, name in enumerate(CLASSES)} | {"never": None}
        scores = {"val/mIoU": best, "step": 50, "seconds_per_step": 0.1 + 0.01 * seed, "val/IoU": iou}
        (folder / "metrics.json").write_text(json.dumps(scores))
    for number in range(pictures):
        (folder / "pictures").mkdir(exist_ok=True)
        grain = np.random.default_rng(number).integers(0, 255, (24, 72, 3)).astype(np.uint8)
        Image.fromarray(grain).resize((1200, 400)).save(folder / "pictures" / f"{number:02d}_val.png")
    return folder


def write_study(top: Path) -> Path:
    """Runs of every kind: two rows of three seeds, an old one, a broken one, failed ones, hostile names."""
    ends = {"dense": (0.90, 0.92, 0.94), ISA.format(8, 8): (0.91, 0.95, 0.93)}
    for attention, values in ends.items():
        option = (attention,) if "size" in attention else (f"attention={attention}",)
        for seed, end in enumerate(values):
            curve = {50: 0.4 + 0.1 * seed, 100: end}
            write_run(
                top / f"{attention[:9]}-{seed}", *option, seed=seed, curve=curve, pictures=2 * (seed == 0)
            )
    for seed, end in enumerate((0.80, 0.86)):
        curve = {50: 0.3, 100: end}
        write_run(top / f"old-{seed}", ISA.format(4, 4), seed=seed, curve=curve, facts=False)
    mixed = ISA.format(4, 8)
    write_run(top / "mixed-0", mixed, curve={50: 0.2, 100: 0.7})
    failed = write_run(top / "mixed-1", mixed, seed=1, curve={50: 0.2}, finished=False)
    (failed / "failed.txt").write_text(f"expected a loss, got {HOSTILE}\n\nTraceback\n")
    (failed / "log.txt").write_text("said\n")
    write_run(top / "mixed-2", mixed, seed=2, curve={50: 0.25}, finished=False)
    never = top / HOSTILE.replace("/", "|")
    never.mkdir()
    (never / "failed.txt").write_text("no such data\n")
    return top


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def written(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("written")
    assert script.main([str(study), "--output", str(output)]) == 0
    return output


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def compared(*folders: Path, **options: Any) -> rows.Comparison:
    return rows.compare(runs.read_runs(folders), **options)


# ---------------------------------------------------------------- the whole


def test_everything_is_written_and_no_figure_is_empty(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == sorted([*FIGURES, *TEXTS])
    for name in FIGURES:
        with Image.open(written / name) as picture:
            assert 400 < picture.width < 2000
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20, name


def test_the_numbers_are_those_computed_by_hand(written: Path) -> None:
    held = {line["row"]: line for line in read(written / "table.csv")}
    assert list(held) == ["dense", "isa-4x4", "isa-4x8", "isa-8x8"]
    dense, old, mixed, isa = held.values()
    assert (dense["baseline"], isa["baseline"], dense["difference"], dense["seeds"]) == (
        "1",
        "0",
        "",
        "0 1 2",
    )
    assert float(dense["mean"]) == pytest.approx(0.92)
    assert float(dense["sd"]) == pytest.approx(0.02)
    # differences by seed: 0.01, 0.03, -0.01; mean 0.01, sd 0.02, t of 2 degrees of freedom at 97.5 %: 4.302653
    half = 4.302653 * 0.02 / math.sqrt(3)
    assert isa["interval"] == "paired"
    assert [float(isa[k]) for k in ("difference", "low", "high")] == pytest.approx(
        [0.01, 0.01 - half, 0.01 + half]
    )
    expected = stats.ttest_ind([0.80, 0.86], [0.90, 0.92, 0.94], equal_var=False).confidence_interval(0.95)
    assert old["interval"] == "Welch"
    assert [float(old["low"]), float(old["high"])] == pytest.approx([expected.low, expected.high])
    assert (mixed["interval"], mixed["low"], mixed["sd"]) == ("none", "", "")
    assert float(mixed["difference"]) == pytest.approx(-0.22)
    assert [mixed[state] for state in ("finished", "failed", "unfinished")] == ["1", "1", "1"]
    assert float(isa["ms_per_step"]) == pytest.approx(110)
    assert float(isa["attention_mult_adds"]) == 64e6
    assert (old["parameters"], old["attention_mult_adds"]) == ("", "")
    assert dense["steps"] == "300"


def test_markdown_says_what_was_paired_what_failed_and_how_far_the_rest_is(
    written: Path, study: Path
) -> None:
    text = (written / "table.md").read_text()
    assert "| isa-8x8 | 3 | 93.00 ± 2.00 | +1.00 [−3.97, +5.97] | 400 k | 664 M / 64 M | 16 MiB |" in text
    assert "| isa-4x8 | 1 (1 failed, 1 unfinished) | 70.00 | −22.00 | 400 k |" in text
    assert "Difference of each seed (paired t): isa-8x8." in text
    assert "(Welch's t): isa-4x4." in text
    assert "single seed: isa-4x8." in text
    assert "last validation: no checkpoint is picked" in text
    assert (
        f"mixed-1: failed at step 50: expected a loss, got {HOSTILE} (log: {study / 'mixed-1' / 'log.txt'})".replace(
            "<", r"\<"
        )
        in text
    )
    assert "mixed-2: unfinished, at step 50 of 300" in text
    assert "no such data" in text


def test_runs_csv_has_a_line_for_each_run(written: Path) -> None:
    lines = {Path(line["folder"]).name: line for line in read(written / "runs.csv")}
    assert len(lines) == 12
    assert (lines["dense-1"]["seed"], lines["dense-1"]["state"], lines["dense-1"]["last"]) == (
        "1",
        "finished",
        "0.92",
    )
    assert float(lines["dense-1"]["best"]) == pytest.approx(0.93)
    assert lines["mixed-1"]["state"] == "failed" and HOSTILE in lines["mixed-1"]["error"]
    assert (lines["mixed-2"]["state"], lines["mixed-2"]["last"], lines["mixed-2"]["last_step"]) == (
        "unfinished",
        "",
        "50",
    )
    assert lines[HOSTILE.replace("/", "|")]["row"] == ""


def test_a_fresh_process_needs_no_torch_and_prints_what_was_asked_for(study: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    command = [
        sys.executable,
        str(ROOT / "src" / "compare.py"),
        str(study),
        "--format",
        "csv",
        "--at",
        "best",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    held = {line["row"]: line for line in csv.DictReader(io.StringIO(done.stdout))}
    assert float(held["dense"]["mean"]) == pytest.approx(0.93)
    assert held["dense"]["at"] == "best"
    assert (tmp_path / "outputs" / "compare" / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "expected run folders (with config.yaml) in"),
        (["{study}/nowhere"], "which is not there"),
        (["{study}", "--baseline", "isa-9"], "expected --baseline to be one of dense; isa-4x4"),
        (["{study}", "--metric", "val/miou"], "train/loss, val/loss, val/mIoU"),
        (["{study}", "--metric", "val/loss", "--at", "best"], "it is known with --at last"),
        (["{study}", "--output", "{study}/old-0/config.yaml"], "expected --output to be a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: Sequence[str], message: str, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(empty=tmp_path, study=study) for word in arguments]
    assert script.main([*words[:1], "--output", str(tmp_path / "out"), *words[1:]]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["0", "1", "95"])
def test_a_confidence_that_is_none_is_refused(
    value: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        script.main([str(study), "--confidence", value])
    assert "between 0 and 1" in capsys.readouterr().err


# ---------------------------------------------------------------- reading


def test_a_sweep_file_gives_its_members_those_not_begun_too(study: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "one", "attention=dense")
    write_run(tmp_path / "other", "attention=dense", seed=1)
    (tmp_path / "grid.sweep").write_text("# seed=0,1\none\nnot there yet\n\n")
    found = runs.read_runs([tmp_path / "grid.sweep"])
    assert [(run.folder.name, run.state) for run in found] == [
        ("one", "finished"),
        ("not there yet", "unfinished"),
    ]
    assert len(runs.read_runs([tmp_path / "grid.sweep", tmp_path / "one", tmp_path])) == 3


@pytest.mark.parametrize("line", ["../elsewhere", "/etc", "one/../../x", "link"])
def test_a_sweep_file_that_leads_out_of_its_folder_is_refused(line: str, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    write_run(folder / "one", "attention=dense")
    (folder / "link").symlink_to(tmp_path, target_is_directory=True)
    (folder / "grid.sweep").write_text(f"one\n{line}\n")
    with pytest.raises(DataError, match=re.escape(repr(line))):
        runs.read_runs([folder / "grid.sweep"])


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
        ("config.yaml", "seed: ${oc.env:HOME}\n", "finished"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(
    name: str, content: str, state: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path / "run", "attention=dense")
    (folder / name).write_text(content)
    with caplog.at_level(logging.WARNING):
        comparison = compared(tmp_path)
    (message,) = caplog.messages
    assert str(folder / name) in message and "\n" not in message
    (run,) = [run for row in comparison.rows for run in row.runs] or comparison.loose
    assert run.state == state
    assert (run.config is None) == (name == "config.yaml")
    for text in (table.markdown, table.latex, table.as_csv, table.runs_csv, page.page):
        assert isinstance(text(comparison), str)
    assert str(folder) in table.markdown(comparison) or name == "facts.json"


@pytest.mark.parametrize("word", ['"\\x24{oc.env:SECRET}"', "'${oc.env:SECRET}'"])
def test_a_configuration_of_a_stranger_is_not_resolved(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SECRET", "sk-leaked")
    write_run(tmp_path / "good")
    bad = write_run(tmp_path / "bad", seed=1)
    with (bad / "config.yaml").open("a") as file:
        file.write(f"note: {word}\n")
    comparison = compared(tmp_path)
    assert [run.folder for run in comparison.loose] == [bad]
    assert "sk-leaked" not in repr(comparison) + table.markdown(comparison)
    assert "config.yaml is broken" in caplog.text


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "failed.txt", "pictures/00_val.png"])
def test_a_link_out_of_a_run_folder_is_not_followed(name: str, tmp_path: Path) -> None:
    other = write_run(tmp_path / "elsewhere" / "run", pictures=1)
    (other / "failed.txt").write_text("a secret\n")
    run = write_run(tmp_path / "runs" / "run", seed=3)
    (run / "pictures").mkdir()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(other / name)
    (found,) = runs.read_runs([tmp_path / "runs"])
    assert found.error == ""
    assert (found.config is None) == (name == "config.yaml")
    assert (found.state == "unfinished") == (name == "metrics.json")
    assert sample_pictures(compared(tmp_path / "runs").rows if found.config and found.metrics else []) == {}


@pytest.mark.parametrize("section", ["trainer", "data"])
def test_a_configuration_that_is_cut_short_is_one_line(
    section: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path / "good")
    path = write_run(tmp_path / "bad", seed=1) / "config.yaml"
    text = path.read_text()
    end = re.search(rf"^{section}:$", text, re.M)
    assert end is not None
    path.write_text(text[: end.end()] + "\n")
    comparison = compared(tmp_path)
    assert (len(comparison.rows), len(comparison.loose)) == (1, 1)
    assert "config.yaml is broken" in caplog.text


@pytest.mark.parametrize("value", [10**400, 1e308, -1e308])
def test_numbers_beyond_all_measure_are_none(value: float, tmp_path: Path) -> None:
    for seed in range(2):
        run = write_run(tmp_path / str(seed), seed=seed)
        known = json.loads((run / "facts.json").read_text())
        (run / "facts.json").write_text(json.dumps({**known, "parameters": value}))
        scores = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**scores, "seconds_per_step": value}))
    (row,) = compared(tmp_path).rows
    assert row.fact("parameters") is None
    assert list(row.measured("seconds_per_step")) == []


def test_scenes_of_another_seed_are_another_row_unless_they_follow_the_runs(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / "scenes" / str(seed), f"data.seed={seed}")
        write_run(tmp_path / "runs" / str(seed), seed=seed)
        write_run(tmp_path / "files" / str(seed), f"data.seed={seed}", seed=seed)
    assert [len(row.runs) for row in compared(tmp_path / "scenes").rows] == [1, 1, 1]
    assert [len(row.runs) for row in compared(tmp_path / "runs").rows] == [3]
    assert [len(row.runs) for row in compared(tmp_path / "files").rows] == [3]


def test_what_strangers_wrote_is_no_formula_and_moves_no_cursor(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    known = json.loads((run / "facts.json").read_text())
    (run / "facts.json").write_text(json.dumps({**known, "device": "=HYPERLINK(1)", "git_commit": "+1"}))
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


def test_of_repeated_steps_the_later_row_holds_and_cells_may_be_empty(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "attention=dense")
    (folder / "metrics.csv").write_text("step,a,val/mIoU\n50,1,0.1\n100,2,0.5\n50,3,\n100,,0.6\n150,4,nan\n")
    run = runs.read_run(folder)
    assert run.history == {
        "a": {50: 3, 100: 2, 150: 4},
        "val/mIoU": pytest.approx({50: 0.1, 100: 0.6, 150: math.nan}, nan_ok=True),
    }
    assert run.score("val/mIoU", "last") is None, (
        "what is not a number is no score, and an earlier one is not the last"
    )
    assert rows.finite(run.history["val/mIoU"]) == {50: 0.1, 100: 0.6}


def test_only_unfinished_runs_are_still_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", "attention=dense", curve={}, finished=False)
    assert script.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "| dense | 0 (1 unfinished) | – | baseline |" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png"))


def test_a_figure_of_an_earlier_comparison_does_not_stay(tmp_path: Path, study: Path) -> None:
    write_run(tmp_path / "run", "attention=dense")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "group_size.png").write_text("old")
    assert script.main([str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out" / "group_size.png").exists()
    assert (tmp_path / "out" / "curves.png").exists()


# ---------------------------------------------------------------- rows and labels


def test_a_sweep_over_any_key_is_told_by_that_key(tmp_path: Path) -> None:
    for place, words in enumerate(
        [
            ("optim.lr=1e-3",),
            ("optim.lr=2e-3",),
            ("optim.lr=1e-3", "trainer.max_steps=600"),
            ("backbone=resnet18",),
        ]
    ):
        write_run(tmp_path / f"run{place}", *words)
    comparison = compared(tmp_path)
    names = [row.label for row in comparison.rows]
    assert names == [
        "isa-8x8, backbone=resnet18.a1_in1k, max_steps=300, lr=0.004",
        "isa-8x8, backbone=tiny, max_steps=300, lr=0.001",
        "isa-8x8, backbone=tiny, max_steps=300, lr=0.002",
        "isa-8x8, backbone=tiny, max_steps=600, lr=0.001",
    ] or names == [name.replace(".a1_in1k", "") for name in names]
    assert not any("total_steps" in key or key == "data.max_steps" for key in comparison.differing)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("attention.group_size=[4,8]", ["isa-4x8", "isa-8x8"]),
        ("attention.mask_padding=true", ["isa-8x8, mask_padding=false", "isa-8x8, mask_padding=true"]),
        ("data=cards", ["isa-8x8, data=cards", "isa-8x8, data=lamps"]),
        ("data.crop_size=[64,128]", ["isa-8x8, crop_size=64x128", "isa-8x8, crop_size=128x128"]),
        ("aux_weight=0.2", ["isa-8x8, aux_weight=0.2", "isa-8x8, aux_weight=0.4"]),
    ],
)
def test_labels_show_what_differs(changed: str, expected: Sequence[str], tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", changed)
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


def test_no_difference_is_taken_to_other_data(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "attention=dense")
    write_run(tmp_path / "b", "attention=dense", "data=cards")
    comparison = compared(tmp_path)
    assert all(row.gap is None for row in comparison.rows)
    assert "No difference to a baseline on other data: dense, data=" in table.markdown(comparison)


@pytest.mark.parametrize(
    ("sort", "first", "last"),
    [("label", "dense", "isa-8x8"), ("score", "isa-8x8", "isa-4x8"), ("score_memory", "isa-4x8", "isa-4x4")],
)
def test_rows_are_sorted(sort: rows.Sort, first: str, last: str, study: Path) -> None:
    names = [row.label for row in compared(study, sort=sort).rows]
    assert (names[0], names[-1]) == (first, last)


# ---------------------------------------------------------------- statistics


def test_intervals_are_those_of_scipy_on_random_scores() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        n, m, level = int(draw.integers(2, 9)), int(draw.integers(2, 9)), float(draw.uniform(0.5, 0.999))
        ours, theirs = draw.normal(0.7, 0.1, n), draw.normal(0.6, 0.02, m)
        found = statistics.difference(
            dict(enumerate(ours)), {100 + i: v for i, v in enumerate(theirs)}, level
        )
        wanted = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(level)
        assert found.how == "Welch"
        assert found[:3] == pytest.approx((ours.mean() - theirs.mean(), wanted.low, wanted.high))
        theirs = draw.normal(0.6, 0.02, n)
        by_seed = dict(enumerate(theirs))
        found = statistics.difference({i: ours[i] for i in reversed(range(n))}, by_seed, level)
        wanted = stats.ttest_rel(ours, theirs).confidence_interval(level)
        assert found.how == "paired"
        assert found[1:3] == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("paired", [True, False])
def test_an_interval_covers_the_truth_as_often_as_it_says(paired: bool) -> None:
    draw = np.random.default_rng(1)
    hits, trials, level = 0, 4000, 0.9
    for _ in range(trials):
        common = draw.normal(0, 0.5, 3) if paired else np.zeros(3)
        theirs = dict(enumerate(common + draw.normal(0, 0.1, 3)))
        ours = {i + (0 if paired else 5): common[i] + draw.normal(0.3, 0.1) for i in range(3)}
        found = statistics.difference(ours, theirs, level)
        hits += found.low <= 0.3 <= found.high
    # paired is exact; Welch errs a little to the careful side with so few seeds. Four standard errors are 0.019.
    assert 0.88 < hits / trials < (0.92 if paired else 0.96)


def test_a_single_seed_and_no_spread_claim_no_more_than_they_know() -> None:
    assert statistics.spread([])[0] == 0 and math.isnan(statistics.spread([]).mean)
    one = statistics.difference({0: 0.5}, {0: 0.4, 1: 0.6}, 0.95)
    assert one.how == "none" and math.isnan(one.low) and one.value == pytest.approx(0.0)
    assert statistics.difference({0: 0.5, 1: 0.5}, {2: 0.5, 3: 0.5}, 0.95) == (0, 0, 0, "Welch")
    assert statistics.spread([1.0, 3.0]).sd == pytest.approx(math.sqrt(2)), "the sample's, n - 1"


# ---------------------------------------------------------------- texts


def test_latex_and_markdown_keep_every_letter_harmless(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "attention=dense")
    write_run(tmp_path / "b", "attention=dense", r"name='50%_a&b|$x^2~{#}\<'")
    comparison = compared(tmp_path)
    tex = table.latex(comparison)
    assert (
        r"name=50\%\_a\&b\textbar{}\$x\textasciicircum{}2\textasciitilde{}\{\#\}\textbackslash{}\textless{}"
        in tex
    )
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1
    assert tex.index(r"\toprule") < tex.index(r"\midrule") < tex.index(r"\bottomrule")
    (line,) = [
        line for line in table.markdown(comparison).splitlines() if line.startswith("| dense, name=50")
    ]
    assert len(re.findall(r"(?<!\\)\|", line)) == len(table.cells(comparison)[0]) + 1
    figures.write_figures(comparison, tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0, "0"), (999, "999"), (400_000, "400 k"), (6.29e6, "6.29 M"), (1.5e12, "1.5 T")],
)
def test_amounts_have_three_digits_and_a_prefix(value: float | None, expected: str) -> None:
    assert table.amount(value) == expected


# ---------------------------------------------------------------- figures


def test_the_grid_of_group_sizes_and_the_classes_are_those_of_the_rows(study: Path) -> None:
    comparison = compared(study)
    (cells,) = figures.grids(comparison).values()
    assert {place: row.label for place, row in cells.items()} == {
        (4, 4): "isa-4x4",
        (4, 8): "isa-4x8",
        (8, 8): "isa-8x8",
    }
    names, gaps = figures.class_gaps(comparison)
    assert names == list(CLASSES), "a class that is never there has no IoU"
    assert {row.label: values for row, values in gaps}["isa-8x8"] == pytest.approx([1.0] * 4)


def test_many_rows_look_different(tmp_path: Path) -> None:
    places = range(28)
    looks = {(figures.COLOURS[i % 7], figures.DASHES[i % 4]) for i in places}
    assert len(looks) == 28


# ---------------------------------------------------------------- the page


def test_the_page_is_one_file_that_asks_for_nothing(written: Path) -> None:
    text = (written / "index.html").read_text()
    assert len(text) < 1_000_000
    addresses = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'\s>)]*)""", text)
    assert addresses and all(address.startswith("data:") for address in addresses if address), addresses
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text
    assert "default-src 'none'" in text


def test_the_only_script_is_the_one_whose_hash_is_allowed(written: Path) -> None:
    text = (written / "index.html").read_text()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, flags=re.DOTALL | re.IGNORECASE)
    assert [attributes.strip() for attributes, _ in scripts] == ['id="data" type="application/json"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "<b>" in CLASSES[2] and "</script><b>" not in text
    assert not set("<>&") & set(scripts[0][1])
    data = json.loads(scripts[0][1])
    assert data["classes"] == list(CLASSES)
    assert html.escape(HOSTILE) in text


def test_the_page_holds_rows_curves_pictures_and_what_failed(written: Path) -> None:
    text = (written / "index.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL).group(1))  # type: ignore[union-attr]
    (isa,) = [row for row in data["rows"] if row["label"] == "isa-8x8"]
    assert isa["means"]["val/mIoU"] == [[50, 0.5], [100, 0.93]]
    assert [run["state"] for run in data["rows"][2]["runs"]] == ["finished", "failed", "unfinished"]
    assert text.count("data:image/jpeg;base64,") == 4
    picture = base64.b64decode(re.findall(r"data:image/jpeg;base64,([^\"]+)", text)[0])
    with Image.open(io.BytesIO(picture)) as shown:
        assert shown.width == 760
    assert "no such data" in text and "unfinished, at step 50 of 300" in text


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    curve = {step: float(step) for step in range(1, 10_001)}
    short = page._thinned(curve, 50)
    assert len(short) == 50 and short[0] == [1, 1] and short[-1] == [10_000, 10_000]
    assert page._thinned({1: 0.5}, 50) == [[1, 0.5]]


def test_a_broken_picture_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_run(tmp_path / "a", "attention=dense", pictures=2)
    (folder / "pictures" / "00_val.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert page.page(compared(tmp_path)).count("data:image/jpeg") == 1
    assert "00_val.png is left out" in caplog.text
