"""The ablation: which runs are trained, what becomes of their numbers, and the whole of it once, dry."""

import csv
import io
import itertools
import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from isaseg import config
from isaseg.errors import ConfigError, DataError
from isaseg.models.block import Cost
from isaseg.report import reach
from isaseg.report.ablation import figures, jobs, results, table
from isaseg.report.ablation.jobs import Job
from isaseg.report.ablation.results import Facts, Result, Run
from isaseg.report.reach import Bound
from tests import forked

ROOT = Path(__file__).parents[2]
FAKE_TRAIN = """
import json, pathlib, sys, time
args = dict(a.split("=", 1) for a in sys.argv[1:])
folder = pathlib.Path(args["run_dir"].strip("'"))
with open(pathlib.Path(__file__).with_name("order.txt"), "a") as file:
    file.write(" ".join([folder.parent.name, folder.name, args.get("resume", "auto")]) + "\\n")
if args.get("attention") == "none" and args["seed"] == "1":
    sys.exit("error: no such luck")
(folder / "metrics.json").write_text(json.dumps({"val/mIoU": 0.5}))
"""


def make(tmp_path: Path, *rows: str, seeds: Sequence[int] = (0,), steps: int = 100) -> list[Job]:
    return jobs.make_jobs("lamps", jobs.select_rows(rows), seeds, steps, tmp_path / "an out")


def save_config(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(jobs.compose_job(job), job.folder / "config.yaml", resolve=True)


def write_run(folder: Path, values: Mapping[int, float], steps: int = 1000, data: str = "lamps") -> None:
    """A run folder as train.py leaves it: training rows between, the best checkpoint scored at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save({"trainer": {"max_steps": steps}, "data": {"name": data}}, folder / "config.yaml")
    (folder / "metrics.json").write_text(
        json.dumps({"val/mIoU": max(values.values()), "seconds_per_step": 0.05})
    )
    lines = ["step,train/loss,val/mIoU,val/group_acc"]
    lines += [f"{s},0.3,{v},{v / 2}" for s, v in values.items()] + [f"{steps - 1},0.2,,"]
    lines += [f"{steps},,{max(values.values())},0.99"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def train(tmp_path: Path) -> Path:
    path = tmp_path / "fake_train.py"
    path.write_text(FAKE_TRAIN)
    return path


def started(train: Path) -> list[str]:
    path = train.with_name("order.txt")
    return path.read_text().splitlines() if path.exists() else []


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_every_row_is_another_configuration_of_the_same_experiment(tmp_path: Path) -> None:
    cfgs = [jobs.compose_job(job) for job in make(tmp_path, *(row.name for row in jobs.ROWS))]
    for cfg in cfgs:
        config.check(cfg)
    assert len({config.attention_label(cfg) for cfg in cfgs}) == len(jobs.ROWS)
    for cfg, row in zip(cfgs, jobs.ROWS, strict=True):
        assert cfg.trainer.max_steps == 100 * row.times
        cfg.trainer.max_steps = cfg.trainer.val_check_interval = 1
        del cfg.attention, cfg.run_dir
    assert all(cfg == cfgs[0] for cfg in cfgs), "rows differ in the context module alone"


def test_a_job_carries_seed_steps_and_a_folder_with_a_blank(tmp_path: Path) -> None:
    (job,) = jobs.make_jobs(
        "cards", jobs.select_rows(["dense"]), [4], 30, tmp_path / "it's", ["optim.lr=0.5"]
    )
    cfg = jobs.compose_job(job)
    assert (cfg.seed, cfg.trainer.max_steps, cfg.trainer.val_check_interval, cfg.optim.lr) == (4, 30, 3, 0.5)
    assert cfg.data.name == "cards"
    assert Path(cfg.run_dir) == job.folder == tmp_path / "it's" / "dense" / "seed4"


def test_an_unknown_row_is_named() -> None:
    with pytest.raises(ConfigError, match=r"isa-8.*got isa-9"):
        jobs.select_rows(["dense", "isa-9"])


def test_the_longest_runs_begin_first_and_every_run_has_its_log(tmp_path: Path, train: Path) -> None:
    todo = make(tmp_path, "none", "isa-8", "dense", seeds=[0, 2])
    assert jobs.run_jobs(todo, train, 1, quiet()) == []
    assert [line.split()[0] for line in started(train)] == [
        "dense",
        "dense",
        "none",  # the quicker step, but twice as many
        "none",
        "isa-8",
        "isa-8",
    ]
    assert all((job.folder / "log.txt").exists() and (job.folder / "metrics.json").exists() for job in todo)


def test_a_failed_run_is_told_with_its_log_and_stops_nobody_else(tmp_path: Path, train: Path) -> None:
    todo = make(tmp_path, "none", "isa-8", seeds=[0, 1])
    (failing,) = [job for job in todo if job.name == "none seed 1"]
    failing.folder.mkdir(parents=True)
    (failing.folder / "metrics.json").write_text("{}")  # of an earlier configuration: no result of this run
    with (tmp_path / "console.txt").open("w") as file:
        failed = jobs.run_jobs(todo, train, 2, Console(file=file, width=80))
    assert failed == [failing]
    assert len(started(train)) == 4
    said = (tmp_path / "console.txt").read_text()
    assert str(failing.folder / "log.txt") in said
    assert "error: no such luck" in said
    assert not (failing.folder / "metrics.json").exists()


def test_what_is_finished_is_not_trained_again(tmp_path: Path, train: Path) -> None:
    todo = make(tmp_path, "none", "isa-8")
    for job in todo:
        save_config(job)
    (todo[0].folder / "metrics.json").write_text("{}")
    assert jobs.run_jobs(todo, train, 2, quiet()) == []
    assert started(train) == ["isa-8 seed0 auto"], "the interrupted one goes on from its checkpoint"
    assert jobs.run_jobs(todo, train, 2, quiet()) == []
    assert len(started(train)) == 1


def test_another_configuration_in_the_folder_is_trained_afresh(tmp_path: Path, train: Path) -> None:
    (short,), (long,) = make(tmp_path, "isa-8", steps=50), make(tmp_path, "isa-8", steps=100)
    save_config(short)
    (short.folder / "metrics.json").write_text("{}")
    assert jobs.is_finished(short)
    assert not jobs.is_finished(long)
    assert jobs.run_jobs([long], train, 1, quiet()) == []
    assert started(train) == ["isa-8 seed0 never"]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({600: 0.2, 800: 0.990, 900: 0.995, 1000: 0.998}, True),
        ({600: 0.2, 800: 0.980, 900: 0.995, 1000: 0.998}, False),
        ({800: 0.99, 900: 0.97, 1000: 0.99}, False),
        ({700: 0.99, 1000: 0.99}, False),
        ({800: 0.99, 900: 0.99}, False),
    ],
    ids=["flat", "rising", "dip", "one validation", "not at the end"],
)
def test_converged_means_flat_over_the_last_fifth(curve: dict[int, float], expected: bool) -> None:
    assert results.is_converged(curve, 1000) is expected


def test_scores_are_those_of_the_last_step_and_not_of_the_best_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "seed7", {500: 0.9, 900: 0.6, 1000: 0.605})
    run = results.read_run(tmp_path / "seed7", row("isa-8"))
    assert (run.seed, run.steps, run.converged) == (7, 1000, True)
    assert run.scores == {"val/mIoU": 0.605, "val/group_acc": 0.3025, "seconds_per_step": 0.05}
    assert run.curve == {500: 0.9, 900: 0.6, 1000: 0.605}


def test_a_run_shorter_than_the_default_is_never_converged(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", {800: 0.5, 1000: 0.5}, data="cards")
    write_run(tmp_path / "seed1", {160: 0.3, 200: 0.3}, steps=200)
    write_run(tmp_path / "seed2", {350: 0.3, 400: 0.3}, steps=400)
    assert not results.read_run(tmp_path / "seed0", row("isa-8")).converged
    assert not results.read_run(tmp_path / "seed1", row("isa-8")).converged
    assert results.read_run(tmp_path / "seed2", row("isa-8")).converged
    assert not results.read_run(tmp_path / "seed2", row("none")).converged, "which is trained longer"


def test_nothing_to_report_and_a_run_without_validation_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected finished runs"):
        results.read_results(make(tmp_path, "none"), {"none": facts(0)})
    write_run(tmp_path / "seed0", {1000: 0.5})
    (tmp_path / "seed0" / "metrics.csv").write_text("step,train/loss\n1,0.5\n")
    with pytest.raises(DataError, match=r"val/mIoU in .*metrics.csv"):
        results.read_run(tmp_path / "seed0", row("none"))


def test_only_the_runs_that_were_asked_for_are_averaged(tmp_path: Path) -> None:
    """Neither another seed nor another learning rate, left in the same folders by an earlier command."""
    asked, other = (
        make(tmp_path, "isa-8", seeds=[0, 1, 2]),
        make(tmp_path, "isa-8", seeds=[0, 1, 2], steps=90),
    )
    for job, held in zip(asked, (asked[0], other[1], asked[2]), strict=True):
        write_run(job.folder, {90: 0.5, 100: 0.1 * (1 + job.seed)}, steps=100)
        save_config(held)
    (one,) = results.read_results(asked[:2], {"isa-8": facts(1)})
    assert [run.seed for run in one.runs] == [0]
    (both,) = results.read_results(asked, {"isa-8": facts(1)})
    assert [run.scores["val/mIoU"] for run in both.runs] == pytest.approx([0.1, 0.3])


def row(name: str) -> jobs.Row:
    (found,) = jobs.select_rows([name])
    return found


def facts(scores: int, bound: Bound | None = None) -> Facts:
    return Facts((32, 32), Cost(0, 96 * scores, scores), Cost(0, 96 * 64 * scores, 64 * scores), bound, 39)


def result(name: str, values: Sequence[float], converged: bool = True, bound: float | None = None) -> Result:
    scores = [{"val/mIoU": v, "val/group_acc": v, "seconds_per_step": 0.1} for v in values]
    runs = [Run(i, s, {500: 0.3, 1000: s["val/mIoU"]}, converged, 1000) for i, s in enumerate(scores)]
    known = None if bound is None else Bound(bound, 1 / 3)
    return Result(row(name), facts(0 if name == "none" else 2**18, known), runs)


def test_the_table_says_mean_sd_cost_and_convergence(tmp_path: Path) -> None:
    rows = [result("isa-8", [0.98, 0.99, 1.0]), result("ccnet-2", [0.5, 0.7], converged=False)]
    text = table.write_table(rows, "lamps", tmp_path)
    accuracy, learning = text.split("## Speed of learning, not accuracy")
    assert "| ISA 8 | 99.0 ± 1.0 |" in accuracy
    assert "| 25.2 M / 1.61 G | 1 MiB / 64 MiB | 100 | 1000 | 3/3 |" in accuracy
    assert "CCNet" not in accuracy
    assert "| CCNet's module, R = 2 | 60.0 ± 14.1 |" in learning
    assert "| 0/2 |" in learning
    (isa, _) = json.loads((tmp_path / "table.json").read_text())
    assert (isa["mIoU"], isa["mIoU_sd"], isa["score_bytes_32x32"]) == (99.0, 1.0, 2**20)
    with (tmp_path / "table.csv").open() as file:
        assert [line["row"] for line in csv.DictReader(file)] == ["isa-8", "ccnet-2"]


def test_the_table_tells_the_outcome_whichever_way_it_falls(tmp_path: Path) -> None:
    rows = [
        result("dense", [0.99]),
        result("isa-8", [0.985]),
        result("isa-4", [0.97]),
        result("none", [0.38], bound=0.40),
        result("criss-cross-1", [0.80], bound=0.77),
        result("long-16", [0.34], bound=0.77),
        result("isa-16", [0.56, 0.99, 0.71]),
    ]
    text = table.write_table(rows, "lamps", tmp_path)
    assert "ISA 8 minus dense: -0.5 points of mIoU, within 1 point" in text
    assert "ISA 4 minus dense: -2.0 points of mIoU, NOT within 1 point" in text
    assert "none: group accuracy 38.0 %, below its bound of 40.0 %." in text
    assert "criss-cross, 1 pass: group accuracy 80.0 %, ABOVE its bound of 77.0 %" in text
    assert "ISA 16: the seeds end far apart, at 56.0, 71.0, 99.0 mIoU" in text
    assert text.count("far apart") == 1
    assert "34.0 %, below its bound of 77.0 %; geometry would have allowed more." in text


@pytest.mark.parametrize(
    "wanted", [[99.1, 34.0, 99.3, 99.2], [50.0, 50.0, 50.0], [3.0, 90.0], [1.0, 2.0, 7.0, 99.0]]
)
def test_labels_keep_their_order_and_distance(wanted: list[float]) -> None:
    places = figures.spread_out(wanted, 7.5, 0, 100)
    ordered = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    steps = [places[b] - places[a] for a, b in itertools.pairwise(ordered)]
    assert all(step >= 7.5 - 1e-9 for step in steps)
    assert all(0 <= place <= 100 for place in places)


def test_a_label_with_room_stays_where_it_was_wanted() -> None:
    assert figures.spread_out([80.0, 20.0], 7.5) == [80.0, 20.0]


@pytest.mark.parametrize("names", [["none"], ["none", "dense"], [row.name for row in jobs.ROWS]])
def test_figures_are_drawn_for_any_rows(names: list[str], tmp_path: Path) -> None:
    rows = [result(name, [0.3, 0.9], converged=name != "dense") for name in names]
    figures.plot_curves(rows, tmp_path / "curves.png")
    figures.plot_cost(rows, tmp_path / "cost.png")
    for name in ("curves.png", "cost.png"):
        with Image.open(tmp_path / name) as picture:
            assert 700 < picture.width < 1600


def test_bounds_are_known_before_training_and_rows_add_up(tmp_path: Path) -> None:
    extra = ["data.val_length=8", "backbone.name=test_resnet"]
    for name in ("none", "long-16"):
        todo = jobs.make_jobs("lamps", jobs.select_rows([name]), [0, 1], 10, tmp_path, extra)
        said = results.write_bounds(results.measure(todo, tmp_path), tmp_path)
        assert name in said
        assert "39 pixels" in said
    held = json.loads((tmp_path / "bounds.json").read_text())["bounds"]
    assert 1 / 3 < held["none"]["group_acc"] < held["long-16"]["group_acc"] < 1
    assert math.isclose(held["none"]["group_acc_far"], 1 / 3, abs_tol=0.02)


def test_a_bound_is_computed_once_and_again_where_the_row_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ["data.val_length=8", "backbone.name=test_resnet"]
    todo = jobs.make_jobs("lamps", jobs.select_rows(["none"]), [0], 10, tmp_path, extra)
    first = results.measure(todo, tmp_path)
    results.write_bounds(first, tmp_path)
    monkeypatch.setattr(reach, "group_accuracy_bound", lambda *_: reach.Bound(0.5, 0.5))
    assert results.measure(todo, tmp_path) == first
    other = jobs.make_jobs("lamps", jobs.select_rows(["none"]), [0], 10, tmp_path, ["data.val_length=9"])
    assert results.measure(other, tmp_path)["none"].bound == reach.Bound(0.5, 0.5)


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked.run("ablation.py", *words, cwd=cwd, WANDB_MODE="disabled")


def test_the_dry_run_goes_all_the_way_and_the_second_trains_nothing(tmp_path: Path) -> None:
    first = run("--dry", "--output", "out", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "| ISA 8 |" in first.stdout.split("Speed of learning, not accuracy")[1]
    for name in ("table.md", "table.csv", "table.json", "bounds.json", "curves.png", "cost.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0, name
    metrics = tmp_path / "out" / "isa-8" / "seed0" / "metrics.json"
    before = metrics.stat().st_mtime_ns
    again = run("--dry", "--output", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "2 of 2 runs are complete already" in again.stderr
    assert again.stdout == first.stdout
    assert metrics.stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "isa-9"], "got isa-9"),
        (["--steps", "0"], "at least 1"),
        (["--set", "optim.lrr=1"], "optim.lrr"),
        (["--report-only", "--rows", "none"], "expected finished runs"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = run(*arguments, "--dry", "--output", "out", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_help_names_every_row(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert all(row.name in result.stdout for row in jobs.ROWS)
