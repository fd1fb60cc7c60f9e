"""Callbacks of a configuration: those that are shipped, and the user's own."""

import json
from pathlib import Path

import pytest

from isaseg.checkpoints.loading import load_model
from isaseg.errors import ConfigError
from isaseg.runs.history import read_history
from isaseg.training import trainer
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, equal, loaded, weights

OWN = '''
from lightning.pytorch import Callback
from pydantic import PositiveInt

class Count(Callback):
    """Counts steps and, at one of them, fails."""

    def __init__(self, fail_at: PositiveInt | None = None, word: str = "step"):
        self.fail_at, self.word, self.steps = fail_at, word, 0

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.steps += 1
        pl_module.log("own/steps", float(self.steps))
        if self.steps == self.fail_at:
            raise ValueError(f"{self.word} {self.steps}")

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]
'''


def test_a_callback_of_the_users_own_is_built_checked_and_continued(tmp_path: Path) -> None:
    """One that fails leaves failed.txt, as any bug does."""
    (tmp_path / "mylab.py").write_text(OWN)
    words = [*SMALL, "trainer.max_steps=3", "trainer.val_check_interval=3", "checkpoint_every_n_steps=1"]
    words += ["+trust=[mylab]", "+callbacks.count._target_=mylab.Count", "run_dir=run"]
    typo = forked.run("train.py", *words, "+callbacks.count.fail_ta=2", cwd=tmp_path)
    assert typo.returncode == 2
    assert "no configuration key 'callbacks.count.fail_ta'; did you mean 'fail_at'?" in typo.stderr
    assert not (tmp_path / "run").exists()
    failed = forked.run("train.py", *words, "+callbacks.count.fail_at=2", cwd=tmp_path)
    assert failed.returncode == 1 and "ValueError: step 2" in failed.stderr
    assert (tmp_path / "run" / "failed.txt").read_text().startswith("step 2\n")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert loaded(last)["global_step"] == 1, "it failed before the checkpoint of the second step"
    other = forked.run("train.py", *words, cwd=tmp_path)
    assert other.returncode == 2 and "callbacks.count.fail_at: 2 -> nothing" in other.stderr
    done = forked.run("train.py", *words, "resume=never", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_history(tmp_path / "run").curves["own/steps"] == {1: 1, 2: 2, 3: 3}
    assert loaded(last)["callbacks"]["Count"] == {"steps": 3}


def test_an_average_is_what_is_validated_kept_and_scored(tmp_path: Path) -> None:
    """The best one, which is not the last one here."""
    words = [*SMALL, "callbacks=[default,ema,lr_monitor]", "callbacks.ema.decay=0.5", "optim.lr=0.05"]
    words += ["trainer.max_steps=6", "trainer.val_check_interval=1", "run_dir=run"]
    done = forked.run("train.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    metrics, curves = json.loads((run / "metrics.json").read_text()), read_history(run).curves
    assert 1 < metrics["step"] < 6
    assert metrics["val/loss"] == pytest.approx(curves["val/loss"][metrics["step"]], rel=1e-6)
    best, path = weights(run, "best"), run / "checkpoints" / "best.ckpt"
    assert not equal(best, loaded(path)["current_model_state"])
    assert equal(best, {f"segmenter.{k}": v for k, v in load_model(path).segmenter.state_dict().items()})
    assert curves["lr-AdamW/pg1"].keys() == curves["train/lr"].keys()


def test_a_run_that_is_stopped_early_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first score is the best one as long as a higher one must be higher by 1."""
    words = [*SMALL, "callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=2"]
    words += ["callbacks.early_stopping.min_delta=1", "trainer.max_steps=8", "trainer.val_check_interval=1"]
    words += ["checkpoint_every_n_steps=8", f"run_dir={tmp_path}/run"]
    done = forked.run("train.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert read_history(run).last_step == loaded(run / "checkpoints" / "last.ckpt")["global_step"] == 3
    again = forked.run("train.py", *words, cwd=tmp_path)
    assert again.returncode == 0 and "is complete" in again.stderr
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").unlink()  # as if it had been killed before it was scored
    monkeypatch.setattr(SegmentationModule, "training_step", lambda *_: pytest.fail("a step too many"))
    scored = train(compose_overrides(*words))
    assert {k: v for k, v in scored.items() if v == metrics[k]}.keys() >= metrics.keys() - {
        "seconds_per_step"
    }


@pytest.mark.parametrize(
    ("monitor", "said"),
    [
        ("val/mIuO", "did you mean 'val/mIoU'"),
        ("own/steps", "another name of val/... that a callback logs, got monitor=own/steps"),
        ("val/dice", ""),
        ("val/loss_own", ""),
    ],
)
def test_beside_a_callback_of_the_users_own_a_monitor_may_be_of_val(
    monitor: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "monitored.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ISASEG_TRUST", "monitored")
    words = [*SMALL, "callbacks=early_stopping", f"callbacks.early_stopping.monitor={monitor}"]
    cfg = compose_overrides(*words, "+callbacks.own._target_=monitored.Count")
    if said:
        with pytest.raises(ConfigError, match=said):
            trainer.build_trainer(cfg, tmp_path, [])
    else:
        assert trainer.build_trainer(cfg, tmp_path, [])


def test_a_score_of_groups_is_monitored_where_there_are_groups(tmp_path: Path) -> None:
    words = ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/group_acc", *SMALL]
    assert trainer.build_trainer(compose_overrides(*words), tmp_path, [])
    with pytest.raises(
        ConfigError,
        match="one of val/loss, val/mIoU, val/mAcc, val/aAcc, val/boundary_mIoU, val/image_mIoU, got",
    ):
        trainer.build_trainer(compose_overrides("data=camvid", *words), tmp_path, [])


def test_checkpoints_of_the_users_own_lie_beside_those_of_the_run(tmp_path: Path) -> None:
    words = [*SMALL, "callbacks=[]", "+callbacks.own._target_=lightning.pytorch.callbacks.ModelCheckpoint"]
    words += ["+callbacks.own.monitor=val/loss", "trainer.max_steps=1", f"run_dir={tmp_path}"]
    assert train(compose_overrides(*words))["step"] == 1
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ckpt")}
    assert found == {f"checkpoints/{name}.ckpt" for name in ("best", "last", "epoch=0-step=1")}
