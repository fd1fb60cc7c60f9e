"""`compare.py` from run folders to files: tables, figures and the page."""

import base64
import csv
import hashlib
import html
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs
from scipy import stats

import compare as script
from isaseg.report import charts, classes, figures, interactive, page, table
from tests.report.fake_runs import CLASSES, HOSTILE, compared, write_run, write_study

ROOT = Path(__file__).parents[2]
FIGURES = ("accuracy_cost.png", "curves.png")
TEXTS = ("table.md", "table.csv", "table.tex", "runs.csv", "classes.csv", "classes.md", "index.html")


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
    assert (dense["baseline"], isa["baseline"], dense["difference"]) == ("1", "0", "")
    assert (dense["seeds"], dense["scores"], dense["steps"]) == ("0 1 2", "90.00 92.00 94.00", "300")
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


def test_markdown_says_what_was_paired_what_failed_and_how_far_the_rest_is(
    written: Path, study: Path
) -> None:
    text = (written / "table.md").read_text()
    assert (
        "| isa-8x8 | 3 | 93.00 ± 2.00 | 91.00 95.00 93.00 | +1.00 [−3.97, +5.97] | 400 k | 664 M | 64 M | 16 MiB |"
        in text
    )
    assert "| isa-4x8 | 1 (1 failed, 1 unfinished) | 70.00 | – | −22.00 | 400 k |" in text
    assert "Difference: per seed where both rows have the same seeds (paired t)" in text
    assert "last validation: no checkpoint is picked" in text
    failed = f"mixed-1: failed at step 50: expected a loss, got {HOSTILE} (log: {study}/mixed-1/log.txt)"
    assert failed.replace("<", r"\<") in text
    assert "mixed-2: unfinished, at step 50 of 300" in text
    assert "no such data" in text


def test_runs_csv_has_a_line_for_each_run(written: Path) -> None:
    lines = {Path(line["folder"]).name: line for line in read(written / "runs.csv")}
    assert len(lines) == 12
    dense, failed, unfinished = (lines[name] for name in ("dense-1", "mixed-1", "mixed-2"))
    assert (dense["seed"], dense["state"], dense["last"]) == ("1", "finished", "0.92")
    assert float(dense["best"]) == pytest.approx(0.93)
    assert failed["state"] == "failed" and HOSTILE in failed["error"]
    assert [unfinished[key] for key in ("state", "last", "last_step")] == ["unfinished", "", "50"]
    assert lines[HOSTILE.replace("/", "|")]["row"] == ""


def test_a_fresh_process_needs_no_torch_and_prints_what_was_asked_for(study: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')\n")
    command = [sys.executable, str(ROOT / "src" / "compare.py"), str(study), "--at", "best"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "| dense | 3 | 93.00 ± 2.00 | 91.00 93.00 95.00 | baseline |" in done.stdout
    output = tmp_path / "outputs" / "compare"
    assert (output / "table.md").read_text() == done.stdout
    assert read(output / "table.csv")[0]["at"] == "best"
    assert (output / "index.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "expected run folders (with config.yaml) in"),
        (["{study}/nowhere"], "which is not there"),
        (["{study}/nowhere.sweep"], "which is not there"),
        (["{study}", "--baseline", "isa-9"], "expected --baseline to be one of dense; isa-4x4"),
        (["{study}", "--metric", "val/miou"], "train/loss, val/loss, val/mIoU"),
        (
            ["{study}", "--metric", "val/loss", "--at", "best"],
            "has with --at best (seconds_per_step, step, val/mIoU)",
        ),
        (["{study}", "--output", "{study}/old-0/config.yaml"], "expected a file or folder that can be used"),
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


def test_only_unfinished_runs_are_a_comparison_and_no_figure_of_an_earlier_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", "attention=dense", curve={}, finished=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "accuracy_cost.png").write_text("old")
    assert script.main([str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert "| dense | 0 (1 unfinished) | 400 k |" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png"))


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
    assert len(re.findall(r"(?<!\\)\|", line)) == len(table.shown_columns(comparison)) + 1
    figures.write_figures(comparison, tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (999, "999"), (400_000, "400 k"), (6.29e6, "6.29 M"), (1.5e12, "1.5 T")],
)
def test_amounts_have_three_digits_and_a_prefix(value: float, expected: str) -> None:
    assert table.amount(value) == expected


def charts_of(text: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    assert not any(set("<>") & set(chart) for chart in found)
    return [json.loads(chart) for chart in found]


def test_the_page_is_one_file_that_asks_for_nothing_and_runs_two_scripts(written: Path) -> None:
    text = (written / "index.html").read_text()
    own = text.replace(get_plotlyjs(), "")
    assert len(own) < 1_000_000
    addresses = re.findall(r"""(?:src|href|url|action)\s*[=(]\s*["']?([^"'\s>)]*)""", own)
    assert addresses and all(address.startswith("data:") for address in addresses if address), addresses
    assert "http://" not in own and "https://" not in own
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, flags=re.DOTALL | re.IGNORECASE)
    assert {attributes.strip() for attributes, _ in scripts} == {'type="application/json"', ""}
    run = [content for attributes, content in scripts if not attributes]
    assert len(run) == 2 and run[0] == get_plotlyjs()
    digests = (base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in run)
    allowed = " ".join(repr(f"sha256-{digest}") for digest in digests)
    assert f"default-src 'none'; script-src {allowed};" in text
    assert "<b>" in CLASSES[2] and "</script><b>" not in text
    assert html.escape(HOSTILE) in text
    assert all(f">{html.escape(name)}</th>" in text for name in CLASSES)


def test_the_page_holds_rows_curves_pictures_and_what_failed(written: Path) -> None:
    text = (written / "index.html").read_text()
    cost, curves = charts_of(text)
    mean = [trace for trace in curves["data"] if trace["name"] == "isa-8x8 *"][-1]
    assert (mean["x"], mean["y"]) == ([50, 100], [50, 93])
    means = {trace["name"]: (trace["x"], trace["y"]) for trace in cost["data"] if trace["showlegend"]}
    assert means == {
        "dense *": ([1024e6], [pytest.approx(92)]),
        "isa-4x4 *": ([], []),
        "isa-4x8 *": ([32e6], [pytest.approx(70)]),
        "isa-8x8 *": ([64e6], [pytest.approx(93)]),
    }, "the star: not converged; the cost of the old runs is not known"
    assert text.count("data:image/jpeg;base64,") == 4
    picture = base64.b64decode(re.findall(r"data:image/jpeg;base64,([^\"]+)", text)[0])
    with Image.open(io.BytesIO(picture)) as shown:
        assert shown.width == 760
    assert "no such data" in text and "unfinished, at step 50 of 300" in text


def test_without_plotly_the_rest_comes_and_one_line_says_how_to_get_the_page(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    (tmp_path / "index.html").write_text("of an earlier comparison")
    with caplog.at_level("INFO"):
        assert script.main([str(study), "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*FIGURES, *TEXTS} - {"index.html"}
    assert "pip install 'isaseg[report]'" in caplog.text


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    line = charts.Line(0, "dense", True, list(range(1001)), list(range(1001)))
    (drawn,) = interactive.interactive([charts.Chart("step", "val/mIoU %", True, [line])]).data
    assert len(drawn.x) == 300 and drawn.x == drawn.y and drawn.x[0] == 0 and drawn.x[-1] == 1000


def test_a_menu_changes_points_to_lines_too() -> None:
    point, line = (charts.Line(0, "dense", True, steps, steps) for steps in ([1], [1, 2]))
    both = [charts.Chart("step", name, True, [one]) for name, one in (("val/mIoU %", point), ("loss", line))]
    menu, _ = interactive.interactive(both).layout.updatemenus
    assert [button.args[0]["mode"] for button in menu.buttons] == [["markers"], ["lines"]]


def test_a_title_with_a_bar_is_one_cell() -> None:
    assert table.markdown_table(["row", "a|b"], [["c|d", "1"]]).count(r"\|") == 2


def test_a_curve_of_one_validation_is_a_point(tmp_path: Path) -> None:
    write_run(tmp_path / "run", curve={100: 0.9})
    comparison = compared(tmp_path)
    (chart, *_) = charts.curve_charts(comparison)
    assert {trace.mode for trace in interactive.interactive([chart]).data} == {"markers"}
    figures.write_figures(comparison, tmp_path)
    with Image.open(tmp_path / "curves.png") as picture:
        left = picture.crop((0, 0, picture.width // 2, picture.height))  # the legend is at the right
        assert (np.asarray(left.convert("HSV"))[..., 1] > 100).sum() > 20, "no coloured point"


def test_the_iou_of_each_class_is_the_mean_over_the_seeds(written: Path) -> None:
    held = read(written / "classes.csv")
    assert [line["class"] for line in held] == list(CLASSES), "a class that no run has scored is left out"
    assert list(held[0]) == ["class", "dense", "isa-4x4", "isa-4x8", "isa-8x8"]
    assert [float(line["dense"]) for line in held] == pytest.approx([0.93, 0.83, 0.73, 0.63])


def test_classes_differ_from_the_baseline_by_a_paired_interval(tmp_path: Path) -> None:
    for seed, (dense, isa) in enumerate([(0.90, 0.95), (0.92, 0.96), (0.94, 1.00)]):
        write_run(tmp_path / f"d{seed}", "attention=dense", seed=seed, curve={100: dense - 0.01})
        folder = write_run(tmp_path / f"i{seed}", seed=seed, curve={100: isa - 0.01})
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics |= {"test/mIoU": 0.5, "test/IoU": {"lamp": 0.5}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    test = stats.ttest_rel([0.95, 0.96, 1.00], [0.90, 0.92, 0.94]).confidence_interval()
    shown = f"**+5.00 [{100 * test.low:+.2f}, {100 * test.high:+.2f}]**".replace("-", "−")
    text = classes.classes_markdown(compared(tmp_path))
    assert f"| background | 92.00 | {shown} |" in text and f"| lamp | 62.00 | {shown} |" in text
    assert "on val, at the best checkpoints" in text and "4 of 4 intervals leave out zero" in text
    assert "No two rows" in classes.classes_markdown(compared(tmp_path, metric="test/mIoU", at="best"))


def test_a_broken_picture_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_run(tmp_path / "a", "attention=dense", pictures=2)
    (folder / "pictures" / "00_val.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert page.page(compared(tmp_path)).count("data:image/jpeg") == 1
    assert "00_val.png is left out" in caplog.text


@pytest.mark.parametrize(("split", "other"), [("val", "test"), ("test", "val")])
def test_scores_near_contours_and_of_images_are_of_the_split_that_is_compared(
    split: str, other: str, tmp_path: Path
) -> None:
    run, scores = write_run(tmp_path / "run"), ("mIoU", "boundary_mIoU", "image_mIoU")
    values = {f"{name}/{score}": 0.5 for name in ("val", "test") for score in scores}
    (run / "metrics.json").write_text(json.dumps(values))
    words = (str(run), "--metric", f"{split}/mIoU", "--at", "best", "--output", str(tmp_path / "out"))
    assert script.main(words) == 0
    head = (tmp_path / "out/table.md").read_text().splitlines()[0]
    assert all(f"| {split}/{score} %" in head for score in scores) and f"{other}/" not in head
