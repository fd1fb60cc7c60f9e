"""W&B asks nothing, costs no run its results and never mixes runs; like metrics.csv it holds training alone."""

import json
import logging
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb

from isaseg.errors import ConfigError, DivergenceError
from isaseg.runs.history import read_history
from isaseg.runs.loggers import HistoryLogger, NeverFatalWandbLogger, build_loggers, finish_loggers
from isaseg.training.run import train
from tests import forked
from tests.conftest import compose_overrides
from tests.wandb_file import WandbFile, read_run_folder

ROOT = Path(__file__).parents[2]
TINY = ["data.val_length=4", "data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=1"]
TINY += ["check_data=false", "score_test=false", "pictures=0", "trainer.accelerator=cpu"]
TINY += ["trainer.log_every_n_steps=1"]


def test_r8_offline_by_default_with_files_in_the_run_folder_and_one_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="isaseg.runs.loggers")
    ids = []
    for _ in range(2):  # the second is the resumed run
        loggers = [HistoryLogger(tmp_path), NeverFatalWandbLogger(tmp_path, "isaseg")]
        loggers[1].log_metrics({"val/mIoU": 0.5}, step=3)
        run = loggers[1].run  # type: ignore[attr-defined]
        ids.append(run.id)
        assert run.settings.finish_timeout == 60, "a slow upload does not hold the GPU for ever"
        finish_loggers(loggers)
    assert ids[0] == ids[1] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None
    assert "WANDB_MODE" not in os.environ
    lines = [r.message for r in caplog.records if r.name == "isaseg.runs.loggers"]
    assert len(lines) == 2, "one line a run"
    assert all(part in lines[0] for part in ("offline", str(tmp_path / "wandb"), "wandb sync "))
    assert capfd.readouterr().err.count("wandb:") == 0


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_s2_what_fails_is_one_warning_and_costs_no_row(
    fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise BrokenPipeError("the service\ndied")

    loggers = [HistoryLogger(tmp_path), NeverFatalWandbLogger(tmp_path, "isaseg")]
    if fails == "init":
        monkeypatch.setattr(wandb, "init", fail)
    else:
        loggers[1].log_metrics({"train/loss": 0.5})
        monkeypatch.setattr(loggers[1].run, fails, fail)  # type: ignore[attr-defined]
    for step in range(3):
        for logger in loggers:
            logger.log_metrics({"val/mIoU": 0.5}, step=step)
    finish_loggers(loggers)
    assert read_history(tmp_path).curves == {"val/mIoU": {1: 0.5, 2: 0.5, 3: 0.5}}
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "W&B" in warning and "BrokenPipeError: the service died" in warning


def test_s1_online_without_key_goes_on_offline_without_a_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("a prompt"))
    loggers = [HistoryLogger(tmp_path), NeverFatalWandbLogger(tmp_path, "isaseg", mode="online")]
    loggers[1].log_metrics({"val/mIoU": 0.5}, step=1)
    finish_loggers(loggers)
    assert sum("kept offline" in r.message for r in caplog.records) == 1
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_the_mode_comes_from_the_argument_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*words: str) -> int:
        return len(build_loggers(compose_overrides(*words), tmp_path, {}))

    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert count() == 1
    assert count("logger.wandb.mode=offline") == 2
    assert count("logger=csv") == 1
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ConfigError, match=r"logger\.wandb\.mode or WANDB_MODE.*onlin"):
        count()
    assert not list(tmp_path.glob("wandb*")), "nothing is written before the first use"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, WandbFile]]:
    """Run three trainings of a sweep in one process, the second of which fails; give folder and W&B run of each."""
    folder = tmp_path_factory.mktemp("sweep")
    jobs = {"isa": ["attention.group_size=[4,8]"], "fails": ["optim.lr=1e30", "trainer.max_steps=9"]}
    jobs |= {"none": ["attention=none", "logger.wandb.group=lamps_isa", "seed=7"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for name, words in jobs.items():
            (folder / name).mkdir()
            (folder / name / "failed.txt").write_text("of an earlier attempt")
            cfg = compose_overrides(*TINY, "logger.wandb.group=a-sweep", *words, f"run_dir={folder / name}")
            with pytest.raises(DivergenceError) if name == "fails" else nullcontext():
                train(cfg)
    return {name: (folder / name, read_run_folder(folder / name)) for name in jobs}


def test_a_sweep_is_as_many_runs_each_with_its_own_configuration(
    sweep: dict[str, tuple[Path, WandbFile]],
) -> None:
    assert len({kept.run["id"] for _, kept in sweep.values()}) == 3
    expected = {
        "isa": ("isa-4x8", 0, "a-sweep"),
        "fails": ("isa-8x8", 0, "a-sweep"),
        "none": ("none", 7, "lamps_isa"),
    }
    for name, (folder, kept) in sweep.items():
        label, seed, group = expected[name]
        assert kept.run["tags"] == ["lamps", label, "test_resnet"]
        assert [kept.run[key] for key in ("project", "job_type", "group")] == ["isaseg", "train", group]
        assert kept.run["name"].startswith(f"{label}_test_resnet_seed{seed}_")
        known = json.loads((folder / "facts.json").read_text())
        assert known["attention_label"] == label
        assert all(kept.config[key] == known[key] for key in known.keys() - {"data", "backbone"})
        assert kept.config["trainer"]["max_steps"] == (9 if name == "fails" else 2)
        assert kept.exit_code == int(name == "fails")
        assert not (folder / "failed.txt").exists()
    assert sweep["isa"][1].config["attention"]["group_size"] == [4, 8]
    assert sweep["none"][1].config["attention_mult_adds"] == 0 < sweep["isa"][1].config["attention_mult_adds"]


def test_each_run_has_its_own_history_and_summary(sweep: dict[str, tuple[Path, WandbFile]]) -> None:
    assert [step for step, _ in sweep["fails"][1].curve("val/mIoU")] == [1], "none of the run after it"
    for name in ("isa", "none"):
        folder, kept = sweep[name]
        curves = read_history(folder).curves
        for key in ("train/loss", "train/lr", "val/loss", "val/mIoU", "val/mAcc", "val/aAcc"):
            assert [step for step, _ in kept.curve(key)] == [1, 2], (
                "what is evaluated after training is no point"
            )
            assert dict(kept.curve(key)) == pytest.approx(curves[key], rel=1e-6), key
        assert len((folder / "metrics.csv").read_text().splitlines()) == 5, "and no row"
        assert [step for step, _ in kept.curve("train/images_per_second")] == [2]
        for key in ("val/mIoU", "train/lr"):
            assert kept.summary[key] == kept.curve(key)[-1][1]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert kept.summary["best/mIoU"] == pytest.approx(metrics["val/mIoU"])
        assert kept.summary["best/step"] == metrics["step"]
        assert kept.summary["seconds_per_step"] == metrics["seconds_per_step"]
        assert not [key for row in kept.history for key in row if key == "epoch"]
        assert kept.metrics["*"][0] == "trainer/global_step"


def test_pictures_classes_and_confusion_are_sent(sweep: dict[str, tuple[Path, WandbFile]]) -> None:
    folder, kept = sweep["isa"]
    sent = {key for row in kept.history for key in row}
    assert {"val/pictures.filenames", "val/confusion.filenames", "val/classes.nrows"} <= sent
    pictures = [row for row in kept.history if "val/pictures.captions" in row]
    assert [row["trainer/global_step"] for row in pictures] == [1, 2]
    assert pictures[0]["val/pictures.captions"] == pictures[1]["val/pictures.captions"], "the same ones"
    (files,) = folder.glob("wandb/*run-*/files")
    assert len(list(files.glob("media/images/val/pictures_*.png"))) >= 4
    assert len(list(files.glob("media/images/mask/val/pictures_*.mask.png"))) >= 4
    confusion = json.loads((folder / "confusion.json").read_text())
    matrix = torch.tensor(confusion["matrix"])
    iou = matrix.diag() / (matrix.sum(0) + matrix.sum(1) - matrix.diag())
    kept_iou = json.loads((folder / "metrics.json").read_text())["val/IoU"]
    assert list(kept_iou) == confusion["classes"]
    assert iou.nan_to_num(-1).tolist() == pytest.approx([-1 if x is None else x for x in kept_iou.values()])


def test_a_run_has_the_keys_that_the_dashboard_asks_for(sweep: dict[str, tuple[Path, WandbFile]]) -> None:
    """In its configuration, summary and history; but what only a GPU has."""
    kept = sweep["isa"][1]
    text = (ROOT / "tests" / "dashboard.json").read_text()
    asked = set(re.findall(r'"(?:config:)?([\w.]+)\.value"', text)) | set(
        re.findall(r'"config:([\w.]+)"', text)
    )
    found: dict[str, Any] = {}
    for key in asked:
        found[key] = kept.config
        for part in key.removesuffix(".value").split("."):
            found[key] = found[key][part]
    assert len(found) > 10
    logged = set(
        re.findall(r'"(?:summary:|summary_metrics\.)?((?:train|val|best)/\w+|seconds_per_step)"', text)
    )
    sent = {key.partition(".")[0] for row in kept.history for key in row} | kept.summary.keys()
    assert len(logged) > 8
    assert logged - sent == {"train/gpu_memory_mib"}


CLOSED = {"WANDB_API_KEY": 40 * "x", "WANDB_BASE_URL": "http://127.0.0.1:9"}  # nobody listens on `discard`


def process(tmp_path: Path, script: str, *words: str) -> str:
    """Run a script without a network and return what it said; what does not begin and end in 100 s fails."""
    if "\n" in script:
        (tmp_path / "script.py").write_text(script)
        script = str(tmp_path / "script.py")
    wandb_has: dict[str, str | None] = {name: None for name in os.environ if name.startswith("WANDB_")}
    environment = {**wandb_has, **CLOSED, "HOME": str(tmp_path / "home")}
    done = forked.run(script, *words, cwd=tmp_path, seconds=100, **environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_s1_a_closed_network_costs_a_line_and_no_run(tmp_path: Path) -> None:
    words = [*TINY, "attention=none", "logger.wandb.mode=online", f"run_dir={tmp_path / 'run'}"]
    said = process(tmp_path, "train.py", *words)
    assert said.count("kept offline") == 1
    assert "127.0.0.1:9" in said
    assert "Traceback" not in said
    assert "wandb:" not in said
    kept = read_run_folder(tmp_path / "run")
    assert kept.run["id"] == (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    assert [step for step, _ in kept.curve("val/mIoU")] == [1, 2]
    assert kept.exit_code == 0


def test_s2_a_service_that_dies_holds_no_process(tmp_path: Path) -> None:
    """Nor does it change the exit code: `process` wants 0."""
    script = (
        "import os, pathlib, signal\n"
        "from isaseg.runs.loggers import HistoryLogger, NeverFatalWandbLogger, finish_loggers\n"
        "run = pathlib.Path('run')\n"
        "loggers = [HistoryLogger(run), NeverFatalWandbLogger(run, 'isaseg')]\n"
        "for step in range(3):\n"
        "    for logger in loggers: logger.log_metrics({'val/mIoU': 0.5}, step=step)\n"
        "    if step == 1:\n"
        "        children = pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text()\n"
        "        for child in children.split(): os.kill(int(child), signal.SIGKILL)\n"
        "finish_loggers(loggers)\n"
    )
    assert process(tmp_path, script).count("W&B ") >= 1
    assert read_history(tmp_path / "run").curves == {"val/mIoU": {1: 0.5, 2: 0.5, 3: 0.5}}
