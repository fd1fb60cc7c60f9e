"""metrics.csv loses nothing; W&B asks nothing, fails softly and never mixes runs."""

import csv
import json
import logging
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import wandb
from omegaconf import DictConfig

from isaseg.errors import ConfigError, DivergenceError
from isaseg.runs.history import AppendingCsvLogger
from isaseg.runs.loggers import NeverFatalWandbLogger, finish_loggers, make_loggers
from isaseg.training.run import train
from tests import forked
from tests.wandb_file import WandbFile, read_run_folder, read_wandb_file

ROOT = Path(__file__).parents[2]
TINY = ["data.val_length=4", "data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=1"]
TINY += ["check_data=false", "score_test=false", "callbacks.pictures=0", "trainer.accelerator=cpu"]
TINY += ["trainer.log_every_n_steps=1"]


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_train_and_validation_of_a_step_share_a_row(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    logger = AppendingCsvLogger(path)
    logger.log_metrics({"train/loss": 2.5, "epoch": 0}, step=9)
    logger.log_metrics({"val/mIoU": 0.25, "epoch": 0}, step=9)
    logger.log_metrics({"train/loss": 1.5}, step=19)
    logger.log_metrics({"val/mIoU": 0.5}, step=19)
    assert path.read_text() == "step,train/loss,val/mIoU\n10,2.5,0.25\n20,1.5,0.5\n"


def test_a_second_value_for_a_step_is_a_second_row(tmp_path: Path) -> None:
    logger = AppendingCsvLogger(tmp_path / "metrics.csv")
    for value in (0.25, 0.5):
        logger.log_metrics({"val/mIoU": value}, step=10)
    assert [r["val/mIoU"] for r in rows(logger.path)] == ["0.25", "0.5"]


def test_r8_a_resumed_run_appends_with_new_columns_and_without_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    AppendingCsvLogger(path).log_metrics({"train/loss": 2.5}, step=0)
    with path.open("a") as file:
        file.write("2,1.")
    resumed = AppendingCsvLogger(path)
    resumed.log_metrics({"train/loss": 1.5}, step=1)
    assert path.read_text() == "step,train/loss\n1,2.5\n2,1.5\n"
    resumed.log_metrics({"val/mIoU": 0.5, "val/loss": float("nan")}, step=1)
    resumed.log_metrics({"train/loss": 1.0}, step=2)
    assert path.read_text() == "step,train/loss,val/mIoU,val/loss\n1,2.5,,\n2,1.5,0.5,nan\n3,1,,\n"
    assert os.listdir(tmp_path) == ["metrics.csv"]


def test_what_is_evaluated_after_training_is_no_point_of_the_curve(tmp_path: Path) -> None:
    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("train/loss", 2.0)
            return self.layer(batch).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/mIoU", 0.25)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    sent: list[Any] = []
    loggers = make_loggers(tmp_path, wandb=True)
    run = loggers[1].experiment  # type: ignore[attr-defined]
    run.log = sent.append
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=4,
        val_check_interval=2,
        log_every_n_steps=2,
        num_sanity_val_steps=0,
        logger=loggers,
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(net := Net(), data := torch.ones(4, 1), data)
        trainer.validate(net, data, verbose=False)
    assert run.summary["best/mIoU"] == 0.25
    finish_loggers(loggers)
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss,val/mIoU\n2,2,0.25\n4,2,0.25\n"
    assert [p["trainer/global_step"] for p in sent if "val/mIoU" in p] == [2, 4]
    assert [p["trainer/global_step"] for p in sent if "train/loss" in p] == [2, 4]


def wandb_logger(folder: Path, **kwargs: Any) -> NeverFatalWandbLogger:
    logger = make_loggers(
        folder, wandb=True, name="n", group="g", tags=["t"], config={"a": {"b": 1}}, **kwargs
    )[1]
    assert isinstance(logger, NeverFatalWandbLogger)
    return logger


def test_r8_offline_by_default_with_files_in_the_run_folder_and_one_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="isaseg.runs.loggers")
    ids = []
    for _ in range(2):  # the second is the resumed run
        loggers = make_loggers(tmp_path, wandb=True)
        loggers[1].log_metrics({"val/mIoU": 0.5}, step=3)
        ids.append(loggers[1].experiment.id)  # type: ignore[attr-defined]
        finish_loggers(loggers)
    assert ids[0] == ids[1] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None
    assert "WANDB_MODE" not in os.environ
    lines = [r.message for r in caplog.records if r.name == "isaseg.runs.loggers"]
    assert len(lines) == 2, "one line a run"
    assert all(
        part in lines[0] for part in ("offline", str(tmp_path / "wandb"), "wandb leet ", "wandb sync ")
    )
    assert capfd.readouterr().err.count("wandb:") == 0


def test_runs_of_one_process_stay_apart(tmp_path: Path) -> None:
    first, second = wandb_logger(tmp_path / "a"), wandb_logger(tmp_path / "b")
    assert first.experiment.id != second.experiment.id, "even where the first was not finished"
    finish_loggers([first, second])


def test_s2_what_fails_later_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loggers = make_loggers(tmp_path, wandb=True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise BrokenPipeError("service died")

    monkeypatch.setattr(loggers[1].experiment, "log", fail)  # type: ignore[attr-defined]
    for step in range(3):
        for logger in loggers:
            logger.log_metrics({"val/mIoU": 0.5}, step=step)
    loggers[1].experiment.log({"x": 1})  # type: ignore[attr-defined]
    finish_loggers(loggers)
    assert len(rows(tmp_path / "metrics.csv")) == 3
    assert [r.levelname for r in caplog.records if "W&B is off" in r.message] == ["WARNING"]


def test_s1_online_without_key_goes_on_offline_without_a_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("a prompt"))
    logger = wandb_logger(tmp_path, mode="online")
    logger.log_metrics({"val/mIoU": 0.5}, step=1)
    finish_loggers([logger])
    assert sum("goes on offline" in r.message for r in caplog.records) == 1
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_s1_online_without_network_goes_on_offline(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = wandb.init
    modes = []

    def init(**kwargs: Any) -> Any:
        modes.append(kwargs["mode"])
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("no network")
        return real(**kwargs)

    monkeypatch.setattr(wandb, "login", lambda **k: True)
    monkeypatch.setattr(wandb, "init", init)
    logger = wandb_logger(tmp_path, mode="online")
    assert logger.experiment.offline
    finish_loggers([logger])
    assert modes == ["online", "offline"]
    assert "no network" in caplog.text


def test_the_mode_comes_from_the_argument_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert len(make_loggers(tmp_path, wandb=True)) == 1
    assert len(make_loggers(tmp_path, wandb=True, mode="offline")) == 2
    assert len(make_loggers(tmp_path, wandb=False, mode="offline")) == 1
    with pytest.raises(ConfigError, match=r"logger\.mode.*mode='onlin'"):
        make_loggers(tmp_path, wandb=True, mode="onlin")
    assert not list(tmp_path.glob("wandb*")), "nothing is written before the first use"


def test_a_failed_job_is_marked_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = wandb_logger(tmp_path)
    run, codes = logger.experiment, []
    real = run.finish
    monkeypatch.setattr(run, "finish", lambda exit_code: (codes.append(exit_code), real(exit_code=exit_code)))
    with pytest.raises(ZeroDivisionError):
        try:
            1 / 0
        finally:
            finish_loggers([logger])
    assert codes == [1]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, WandbFile]]:
    """Run four trainings of a sweep in one process, the second of which fails; give folder and W&B run of each."""
    from hydra import compose, initialize_config_dir

    from isaseg import config

    folder = tmp_path_factory.mktemp("sweep")
    jobs = {"isa": ["attention.group_size=[4,8]"], "fails": ["optim.lr=1e30", "trainer.max_steps=9"]}
    jobs |= {"dense": ["attention=dense", "logger.group=null"], "none": ["attention=none", "seed=7"]}
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(str(config.conf_dir()), version_base="1.3"),
    ):
        patch.setenv("WANDB_MODE", "offline")
        for name, words in jobs.items():
            run = [*TINY, "logger.group=a-sweep", *words, f"run_dir={folder / name}"]
            cfg = compose("train", overrides=run)
            if name == "fails":
                with pytest.raises(DivergenceError):
                    train(cfg)
            else:
                train(cfg)
    return {name: (folder / name, read_run_folder(folder / name)) for name in jobs}


def test_a_sweep_is_as_many_runs_each_with_its_own_configuration(
    sweep: dict[str, tuple[Path, WandbFile]],
) -> None:
    runs = {name: kept.run for name, (_, kept) in sweep.items()}
    assert len({run["id"] for run in runs.values()}) == 4
    assert {run["project"] for run in runs.values()} == {"isaseg"}
    assert {run["job_type"] for run in runs.values()} == {"train"}
    assert {name: run["group"] for name, run in runs.items()} == {
        "isa": "a-sweep",
        "fails": "a-sweep",
        "dense": "lamps_isa",
        "none": "a-sweep",
    }
    labels = {"isa": "isa-4x8", "fails": "isa-8x8", "dense": "dense", "none": "none"}
    for name, (folder, kept) in sweep.items():
        assert kept.run["tags"] == ["lamps", labels[name], "test_resnet"]
        assert kept.run["name"].startswith(f"{labels[name]}_test_resnet_seed{7 if name == 'none' else 0}_")
        known = json.loads((folder / "facts.json").read_text())
        assert known["attention_label"] == labels[name]
        assert all(kept.config[key] == known[key] for key in known.keys() - {"data", "backbone"})
        assert kept.config["trainer"]["max_steps"] == (9 if name == "fails" else 2)
    assert sweep["isa"][1].config["attention"]["group_size"] == [4, 8]
    assert sweep["none"][1].config["attention_mult_adds"] == 0 < sweep["isa"][1].config["attention_mult_adds"]
    assert {name: kept.exit_code for name, (_, kept) in sweep.items()} == {
        name: int(name == "fails") for name in sweep
    }


def test_each_run_has_its_own_history_and_summary(sweep: dict[str, tuple[Path, WandbFile]]) -> None:
    assert [step for step, _ in sweep["fails"][1].curve("val/mIoU")] == [1], "none of the run after it"
    for name in ("isa", "dense", "none"):
        folder, kept = sweep[name]
        table = rows(folder / "metrics.csv")
        for key in ("train/loss", "train/lr", "val/loss", "val/mIoU", "val/mAcc", "val/aAcc"):
            expected = [(int(row["step"]), pytest.approx(float(row[key]), rel=1e-6)) for row in table]
            assert kept.curve(key) == expected, key
        assert [step for step, _ in kept.curve("train/images_per_second")] == [2]
        scores = [value for _, value in kept.curve("val/mIoU")]
        losses = [value for _, value in kept.curve("val/loss")]
        assert kept.summary["val/mIoU"] == {"max": max(scores), "last": scores[-1]}
        assert kept.summary["val/loss"] == {"min": min(losses), "last": losses[-1]}
        assert kept.summary["train/lr"] == kept.curve("train/lr")[-1][1]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert kept.summary["best/mIoU"] == pytest.approx(metrics["val/mIoU"])
        assert kept.summary["best/step"] == metrics["step"]
        assert kept.summary["seconds_per_step"] == metrics["seconds_per_step"]
        assert not [key for row in kept.history for key in row if key == "epoch"]
        assert {name: axis for name, (axis, _) in kept.metrics.items()}.items() >= {
            ("*", "trainer/global_step"),
            ("val/mIoU", "trainer/global_step"),
            ("train/loss", "trainer/global_step"),
        }


def test_pictures_classes_and_confusion_are_sent(sweep: dict[str, tuple[Path, WandbFile]]) -> None:
    folder, kept = sweep["isa"]
    sent = {key for row in kept.history for key in row}
    assert {"val/pictures.filenames", "val/confusion.path", "val/classes.nrows"} <= sent
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


def test_what_a_failed_run_left_goes_when_it_starts_again(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    (tmp_path / "failed.txt").write_text("it failed")
    train(compose(*TINY, "logger=csv", "attention=none", f"run_dir={tmp_path}"))
    assert not (tmp_path / "failed.txt").exists()
    assert not (tmp_path / "wandb").exists()


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
    words = [*TINY, "attention=none", "logger.mode=online", f"run_dir={tmp_path / 'run'}"]
    told = process(tmp_path, "train.py", *words)
    assert told.count("goes on offline") == 1
    assert "127.0.0.1:9" in told
    assert "Traceback" not in told
    assert "wandb:" not in told
    kept = read_run_folder(tmp_path / "run")
    assert kept.run["id"] == (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    assert [step for step, _ in kept.curve("val/mIoU")] == [1, 2]
    assert kept.exit_code == 0


def test_s1_a_server_that_knows_the_key_and_then_fails_costs_no_run(tmp_path: Path) -> None:
    """W&B then holds on to the run's id; with the same one, it would wait for ever."""
    script = (
        "import pathlib, wandb\n"
        "from isaseg.runs import loggers as logging\n"
        "wandb.login = lambda **k: True\n"
        "logging._ONLINE_SECONDS = 2\n"
        "logger = logging.make_loggers(pathlib.Path('run'), wandb=True, mode='online')\n"
        "logger[1].log_metrics({'val/mIoU': 0.5}, step=2)\n"
        "logging.finish_loggers(logger)\n"
    )
    told = process(tmp_path, script)
    assert told.count("goes on offline") == 1
    (path,) = tmp_path.glob("run/wandb/offline-run-*/*.wandb")
    kept = read_wandb_file(path)
    assert kept.curve("val/mIoU") == [(3, 0.5)]
    first = (tmp_path / "run" / "wandb_id.txt").read_text().strip()
    assert kept.run["id"] != first
    assert f"--id {first}" in told


ENDS = {
    "is dead": ("kill(SIGKILL); service.wait()", "W&B could not finish its run ("),
    "dies": (
        "kill(SIGSTOP); threading.Timer(0.3, kill, [SIGKILL]).start()",
        "W&B could not finish its run (",
    ),
    "hangs": ("kill(SIGSTOP)", "W&B does not finish its run;"),
}


@pytest.mark.parametrize("how", ENDS)
def test_s2_s3_a_service_that_died_or_hangs_holds_no_process(how: str, tmp_path: Path) -> None:
    """Its end changes no exit code: `process` wants 0; and the next run of the process has another service."""
    end, told = ENDS[how]
    script = (
        "import pathlib, threading, wandb\n"
        "from signal import SIGKILL, SIGSTOP\n"
        "from isaseg.runs import loggers as logging\n"
        "logging._FINISH_SECONDS = -12\n"
        "for name in ('one', 'two'):\n"
        "    loggers = logging.make_loggers(pathlib.Path(name), wandb=True)\n"
        "    loggers[1].log_metrics({'val/mIoU': 0.5}, step=2)\n"
        "    service = wandb.setup()._connection._proc._process\n"
        "    kill = service.send_signal\n"
        f"    if name == 'one': {end}\n"
        "    else: logging._FINISH_SECONDS = 60\n"
        "    loggers[1].log_metrics({'val/mIoU': 0.75}, step=3)\n"
        "    logging.finish_loggers(loggers)\n"
    )
    said = process(tmp_path, script)
    assert said.count(told) == 1, said
    assert "Traceback" not in said
    (path,) = tmp_path.glob("two/wandb/offline-run-*/*.wandb")
    kept = read_wandb_file(path)
    assert kept.curve("val/mIoU") == [(3, 0.5), (4, 0.75)]
    assert kept.exit_code == 0


def test_s2_a_service_that_died_between_two_runs_costs_one_of_them(tmp_path: Path) -> None:
    script = (
        "import pathlib, wandb\n"
        "from isaseg.runs import loggers as logging\n"
        "for name in ('one', 'two', 'three'):\n"
        "    loggers = logging.make_loggers(pathlib.Path(name), wandb=True)\n"
        "    loggers[1].log_metrics({'val/mIoU': 0.5}, step=2)\n"
        "    logging.finish_loggers(loggers)\n"
        "    if name == 'one':\n"
        "        service = wandb.setup()._connection._proc._process\n"
        "        service.kill()\n"
        "        service.wait()\n"
    )
    said = process(tmp_path, script)
    assert said.count("W&B is off") == 1, said
    assert "Traceback" not in said
    (path,) = tmp_path.glob("three/wandb/offline-run-*/*.wandb")
    assert read_wandb_file(path).curve("val/mIoU") == [(3, 0.5)]


def test_s3_wandb_itself_has_a_limit(tmp_path: Path) -> None:
    logger = wandb_logger(tmp_path)
    assert logger.experiment.settings.finish_timeout == 60
    finish_loggers([logger])
