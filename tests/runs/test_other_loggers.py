"""Loggers beside W&B: each gets the same curves, pictures and tables, and none can end a run."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from isaseg.config import run_name
from isaseg.config.checks import check
from isaseg.errors import ConfigError
from isaseg.runs import loggers
from isaseg.runs.guarded_loggers import GuardedLogger
from isaseg.runs.history import read_history
from isaseg.runs.loggers import HistoryLogger, build_loggers, finish_loggers
from tests import forked
from tests.conftest import compose_overrides
from tests.event_files import curves, read_events
from tests.reliability.small import SMALL
from tests.reliability.small import forked as forked_here

WORDS = [*SMALL, "trainer.max_steps=4", "trainer.val_check_interval=2", "data.num_workers=0"]


def test_tensorboard_has_what_metrics_csv_has_and_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = forked.run("train.py", *WORDS, "logger=tensorboard", f"run_dir={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    found, expected = curves(folder), read_history(folder).curves
    assert expected["val/mIoU"].keys() == {2, 4}
    for key, curve in expected.items():
        assert found[key] == [(step, pytest.approx(value, rel=1e-6)) for step, value in curve.items()], key
    metrics = json.loads((folder / "metrics.json").read_text())
    after = {key: value for key, value in found.items() if key not in expected}
    assert after["best/mIoU"] == [(4, pytest.approx(metrics["val/mIoU"]))], "no point of the curve"
    assert after["best/step"] == [(4, metrics["step"])]
    assert not [key for key in after if key.startswith("val/")]
    events = read_events(folder)
    pictures = [tag for tag in events.Tags()["images"] if tag.startswith("val/pictures/")]
    assert len(pictures) == 2
    assert [(image.step, image.width) for image in events.Images(pictures[0])] == [(2, 3 * 128), (4, 3 * 128)]
    assert events.Images("val/confusion/matrix")[0].height > 300
    (text,) = events.Tensors("val/classes/text_summary")
    assert "| background | " in text.tensor_proto.string_val[0].decode()


def test_mlflow_goes_on_in_the_run_that_was_begun(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And was ended from outside; steps after its last checkpoint are logged again."""
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = compose_overrides(*WORDS, "logger=mlflow", f"output_dir={tmp_path / 'out'}", f"run_dir={folder}")
    known: Any = OmegaConf.to_container(cfg, resolve=True)

    def log(steps: range, seed: float) -> Sequence[Logger]:
        used = build_loggers(cfg, folder, known)
        for step in steps:
            for logger in used:
                logger.log_metrics({"train/loss": seed / (1 + step), "epoch": 0}, step)
                if step % 2:
                    logger.log_metrics({"val/mIoU": seed * step / 9}, step)
                logger.save()
            if step % 2:
                used[1].log_images("val/pictures", {"a": np.zeros((2, 2, 3))})  # type: ignore[attr-defined]
        return used

    def twice(rank: int) -> None:
        log(range(3), 1.0)
        used = log(range(2, 4), 0.5)
        for logger in used:
            logger.finalize("success")
        used[1].log_metrics({"val/mIoU": 0.75}, 3)
        used[1].log_images("val/confusion", {"matrix": np.zeros((2, 2, 3))})  # type: ignore[attr-defined]
        used[1].log_table("val/classes", ["class"], [["sky"]])  # type: ignore[attr-defined]
        finish_loggers(used)

    assert forked_here(twice) == [0]
    said = capfd.readouterr()
    for noise in ("Warning", "Traceback", "INFO", "not found"):
        assert noise not in said.out + said.err, noise
    from mlflow.tracking import MlflowClient  # takes seconds, and configures logging

    client = MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lamps_isa")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder / "mlflow_id.txt").read_text().strip()
    assert run.info.status == "FINISHED"
    assert run.info.run_name.startswith("isa-8x8_test_resnet_seed0_")
    assert run.data.params["trainer/max_steps"] == "4"
    history = read_history(folder).curves
    assert {key: sorted(curve) for key, curve in history.items()} == {
        "train/loss": [1, 2, 3, 4],
        "val/mIoU": [2, 4],
    }
    for key, curve in history.items():
        points = client.get_metric_history(run.info.run_id, key)
        found = {point.step: point.value for point in sorted(points, key=lambda point: point.timestamp)}
        assert found == pytest.approx(curve, rel=1e-6), key
    assert run.data.metrics["best/mIoU"] == 0.75
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images")]
    assert {step for path in images if "pictures" in path for step in re.findall(r"\+step\+(\d)", path)} == {
        "2",
        "4",
    }
    assert [path for path in images if "confusion" in path]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "val")] == ["val/classes.md"]
    assert not (tmp_path / "mlruns").exists()


class Mine(Logger):
    """A logger that keeps what it gets, and fails when it is told to."""

    name = version = None

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.fails, self.kept, self.calls = fails, [], []

    @property
    def experiment(self) -> Any:
        """What Lightning asks for before the first step."""
        self._call("experiment")

    def log_hyperparams(self, params: dict[str, Any], *args: Any) -> None:  # type: ignore[override]
        self._call("log_hyperparams")
        self.config = params

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self._call("log_metrics")
        self.kept.append((step, metrics))

    def finalize(self, status: str) -> None:
        self._call("finalize")
        self.status = status

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise ConnectionError("the server\nis gone")


def use(mine: Mine, folder: Path, scored: str = "best") -> None:
    """Use a guarded logger as a run does."""
    used = [HistoryLogger(folder), GuardedLogger(mine, {"seed": 3}, folder / "id")]
    used[1].experiment  # type: ignore[attr-defined]
    used[1].scored = scored  # type: ignore[attr-defined]
    for step in range(3):
        for logger in used:
            logger.log_metrics({"val/mIoU": 0.5, "epoch": 0}, step)
            logger.save()
    used[1].log_images("pictures", {"a": np.zeros((2, 2, 3))})  # type: ignore[attr-defined]
    used[1].log_table("table", ["a"], [[1]])  # type: ignore[attr-defined]
    for logger in used:
        logger.finalize("success")
        logger.log_metrics({"val/mIoU": 0.75}, 2)
        logger.log_metrics({f"{scored}/step": 2})
    finish_loggers(used)


def test_any_logger_counts_finished_steps_and_is_finished_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that takes neither pictures nor tables gets none."""
    mine = Mine()
    use(mine, tmp_path)
    assert mine.kept == [(step, {"val/mIoU": 0.5}) for step in (1, 2, 3)] + [
        (3, {"best/mIoU": 0.75}),
        (3, {"best/step": 2.0}),
    ]
    assert mine.config == {"seed": 3}
    assert mine.calls.count("finalize") == 1 and mine.status == "success"
    assert not caplog.records


def test_what_is_scored_after_training_is_named_by_its_checkpoint(tmp_path: Path) -> None:
    mine = Mine()
    use(mine, tmp_path, "last")
    assert mine.kept[3:] == [(3, {"last/mIoU": 0.75}), (3, {"last/step": 2.0})]


@pytest.mark.parametrize("fails", ["experiment", "log_hyperparams", "log_metrics", "finalize"])
def test_any_logger_that_fails_is_one_warning_and_costs_no_row(
    fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = Mine(fails)
    use(mine, tmp_path)
    assert mine.calls.count(fails) == 1
    assert read_history(tmp_path).curves == {"val/mIoU": {1: 0.5, 2: 0.5, 3: 0.5}}
    (warning,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert "Mine" in warning and "ConnectionError: the server is gone" in warning


def test_an_error_in_the_run_marks_it_as_failed(tmp_path: Path) -> None:
    mine = Mine()
    guarded = GuardedLogger(mine, {}, tmp_path / "id")
    guarded.log_metrics({"val/mIoU": 0.5}, 0)
    with pytest.raises(ValueError, match="of the run"):
        try:
            raise ValueError("of the run")
        finally:
            finish_loggers([guarded])
    assert mine.status == "failed"


def test_a_logger_of_lightnings_is_filled_from_the_run(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    target = "lightning.pytorch.loggers.CSVLogger"
    cfg = compose("logger=csv", f"+logger.own._target_={target}", "+logger.own.name=null")
    check(cfg)
    history, own = build_loggers(cfg, tmp_path, {})
    assert isinstance(history, HistoryLogger) and isinstance(own, GuardedLogger)
    own.log_metrics({"val/mIoU": 0.5}, 0)
    own.save()
    written = tmp_path / run_name(cfg) / "version_0" / "metrics.csv"
    assert written.read_text().split() == ["step,val/mIoU", "1,0.5"]


LOGGERS = "lightning.pytorch.loggers"
REFUSED = [
    (
        "logger=tensorboard +logger.tensorboard.save_dr=x",
        "'logger.tensorboard.save_dr'; did you mean 'save_dir'",
    ),
    (
        f"+logger.tb._target_={LOGGERS}.TensorBoardLogger +logger.tb.save_dr=x",
        "'logger.tb.save_dr'; did you mean 'save_dir'",
    ),
    ("+logger.wandb.tagz=x", "'logger.wandb.tagz'; did you mean 'tags'"),
    ("logger.wandb.mode=onlin", "logger.wandb.mode to be 'online', 'offline'"),
    ("+logger.tb.save_dir=x", "logger.tb to be a node with _target_"),
    ("logger=mlflow +logger.mlflow.log_model=7", "logger.mlflow.log_model"),
    ("+logger.x._target_=torch.nn.ReLU", "logger.x._target_ to name a lightning Logger, got 'torch.nn.ReLU'"),
    (
        "logger=csv +logger.x._target_=lightning.pytorch.loggers.CometLogger",
        "logger.x cannot be built: .*comet",
    ),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_is_wrong_is_one_sentence_before_the_first_step(
    words: str, message: str, compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = compose(*words.split(), f"output_dir={tmp_path}")
    with pytest.raises(ConfigError, match=message) as caught:
        check(cfg)
        build_loggers(cfg, tmp_path, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_missing_is_named(
    name: str, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(ConfigError, match=rf"logger.{name} needs {name}.*pip install 'isaseg\[{name}\]'"):
        build_loggers(compose(f"logger={name}"), tmp_path, {})
    assert not list(tmp_path.iterdir())
