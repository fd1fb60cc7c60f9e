"""Which checkpoint a run scores in the end, and where that is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from isaseg import config
from isaseg.errors import CheckpointError
from isaseg.runs.history import read_history
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests.conftest import compose_overrides
from tests.event_files import curves
from tests.reliability.small import SMALL, loaded
from tests.reliability.test_files import score

WORDS = [*SMALL, "trainer.val_check_interval=1", "data.num_workers=0"]


@pytest.mark.parametrize(
    ("chosen", "step", "callbacks"), [("best", 2, "[default,ema]"), ("last", 4, "default")]
)
def test_it_is_the_one_of_the_configuration(
    chosen: str,
    step: int,
    callbacks: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With its averaged weights where there are such; loggers name it, and both files are there in any case."""
    score(monkeypatch, (0.1, 0.4, 0.3, 0.2))
    words = [*WORDS, "trainer.max_steps=4", f"callbacks={callbacks}", f"score={chosen}", "score_test=true"]
    words += ["logger=tensorboard"]
    metrics = train(compose_overrides(*words, f"run_dir={tmp_path}"))
    assert (metrics["checkpoint"], metrics["step"]) == (chosen, step)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    losses = read_history(tmp_path).curves["val/loss"]
    assert metrics["val/loss"] == pytest.approx(losses[step], rel=1e-5)
    assert losses[2] != pytest.approx(losses[4], rel=1e-3)
    assert "test/mIoU" in metrics
    for name, at in (("best", 2), ("last", 4)):
        assert loaded(tmp_path / "checkpoints" / f"{name}.ckpt")["global_step"] == at
    found: dict[str, Any] = curves(tmp_path)
    assert found[f"{chosen}/mIoU"] == [(4, pytest.approx(metrics["val/mIoU"]))]
    assert found[f"{chosen}/step"] == [(4, step)]
    assert not [key for key in found if key.startswith({"best": "last/", "last": "best/"}[chosen])]
    said = capfd.readouterr().err
    assert f"validation, {chosen} checkpoint" in said and f"({chosen} checkpoint, step {step})" in said


def test_it_is_part_of_what_a_run_is_and_of_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete run is scored anew in its folder, without a step; elsewhere it has another name."""
    score(monkeypatch, (0.4, 0.1))
    words = [*WORDS, "trainer.max_steps=2", f"run_dir={tmp_path}"]
    best, last = (compose_overrides(*words, f"score={chosen}") for chosen in ("best", "last"))
    assert config.run_name(best) != config.run_name(last)
    first = train(best)

    def no_step(*args: object) -> None:
        raise AssertionError("a step is taken")

    monkeypatch.setattr(SegmentationModule, "training_step", no_step)
    second, third = train(last), train(best)
    assert [(held["checkpoint"], held["step"]) for held in (first, second)] == [("best", 1), ("last", 2)]
    assert third["val/loss"] == first["val/loss"] != second["val/loss"]
    with pytest.raises(CheckpointError, match=r"aux_weight: 0\.4 -> 0\.5; give the old ones"):
        train(compose_overrides(*words, "score=last", "aux_weight=0.5"))


def test_the_last_one_of_a_run_that_stops_early_is_where_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, (0.4, 0.1, 0.1, 0.1))
    words = [*WORDS, "trainer.max_steps=4", "callbacks=[default,early_stopping]", "score=last"]
    metrics = train(compose_overrides(*words, "callbacks.early_stopping.patience=1", f"run_dir={tmp_path}"))
    assert (metrics["checkpoint"], metrics["step"]) == ("last", 2)


def test_without_a_best_one_the_last_is_scored_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, (float("nan"),))
    metrics = train(compose_overrides(*WORDS, "trainer.max_steps=1", f"run_dir={tmp_path}"))
    assert (metrics["checkpoint"], metrics["step"]) == ("last", 1)


@pytest.mark.parametrize("protocol", ["openseg", "mmseg"])
def test_published_protocols_score_the_last_one(protocol: str) -> None:
    assert compose_overrides("data=cityscapes", f"protocol={protocol}", "data.root=x").score == "last"
    assert compose_overrides().score == "best"
