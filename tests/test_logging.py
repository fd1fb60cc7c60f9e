"""metrics.csv loses nothing; W&B asks nothing, fails softly and never mixes runs."""

import csv
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import wandb

from isaseg.errors import ConfigError
from isaseg.logging import AppendingCsvLogger, NeverFatalWandbLogger, finish_loggers, make_loggers


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


def test_a_resumed_run_appends_with_new_columns_and_without_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    AppendingCsvLogger(path).log_metrics({"train/loss": 2.5}, step=0)
    with path.open("a") as file:
        file.write("2,1.")
    resumed = AppendingCsvLogger(path)
    resumed.log_metrics({"train/loss": 1.5}, step=1)
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


def test_offline_by_default_with_files_in_the_run_folder_and_one_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="isaseg.logging")
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
    lines = [r.message for r in caplog.records if r.name == "isaseg.logging"]
    assert len(lines) == 2, "one line a run"
    assert all(
        part in lines[0] for part in ("offline", str(tmp_path / "wandb"), "wandb leet ", "wandb sync ")
    )
    assert capfd.readouterr().err.count("wandb:") == 0


def test_runs_of_one_process_stay_apart(tmp_path: Path) -> None:
    first, second = wandb_logger(tmp_path / "a"), wandb_logger(tmp_path / "b")
    assert first.experiment.id != second.experiment.id, "even where the first was not finished"
    finish_loggers([first, second])


def test_what_fails_later_is_one_warning(
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


def test_online_without_key_goes_on_offline_without_a_question(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("a prompt"))
    logger = wandb_logger(tmp_path, mode="online")
    logger.log_metrics({"val/mIoU": 0.5}, step=1)
    finish_loggers([logger])
    assert sum("goes on offline" in r.message for r in caplog.records) == 1
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_online_without_network_goes_on_offline(
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
