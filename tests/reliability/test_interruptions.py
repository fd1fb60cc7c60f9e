"""R: an interrupted run continues as if it had not been; one that cannot continue says why."""

import os
import random
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from isaseg.config import conf_dir
from isaseg.errors import CheckpointError
from isaseg.runs.history import read_history
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests import forked
from tests.conftest import compose_overrides
from tests.event_files import curves
from tests.reliability.small import SMALL, STRESS, history, kill, loaded, said, train_in_processes

TWO = [*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=1"]


TWELVE = [*SMALL, "trainer.max_steps=12", "trainer.val_check_interval=6", "checkpoint_every_n_steps=3"]
TWELVE += ["data.seed=1", "head.dropout=0.3"]


def check_resumed(
    words: list[str], cuts: Sequence[int], workers: Sequence[int], cut: Path, whole: Path, processes: int = 1
) -> None:
    """Check that a run killed at each of `cuts` in turn equals the one that was never killed.

    `workers` has the number of loader processes of each part, one more than there are cuts.
    """
    parts = [[*words, f"data.num_workers={number}"] for number in workers]
    for part, step in zip(parts[:-1], cuts, strict=True):
        ended = train_in_processes(part, cut, processes, kill(step))
        assert ended == [-signal.SIGKILL] * processes, said(cut)
    assert not (cut / "metrics.json").exists()
    assert train_in_processes(parts[-1], cut, processes) == [0] * processes, said(cut)
    check_equal(cut, whole)


def check_equal(cut: Path, whole: Path) -> None:
    a, b = history(whole), history(cut)
    for name in a:
        assert a[name] == b[name], name


AVERAGED = "callbacks=[default,ema,early_stopping] callbacks.ema.decay=0.5"
MIXED = {
    "attention=dense optim.layer_decay=0.7 backbone.freeze=[stem,1] backbone.norm_eval=true": (2, 0),
    f"attention=isa attention.heads=2 attention.position_bias=2 optim=muon {AVERAGED}": (0, 2, 0),
}
if STRESS:
    MIXED |= {f"attention={path.stem}": (0, 0, 0) for path in (conf_dir() / "attention").glob("*.yaml")}
EACH = [(0, 0, 0, 0), (2, 2, 2, 2)]


@pytest.mark.parametrize("choice", MIXED)
def test_r1_r2_a_run_that_is_killed_again_and_again_equals_one_that_is_not(
    choice: str, tmp_path: Path
) -> None:
    """Bit for bit, with loaders or without: samples, losses, scores, weights, state of the optimizer."""
    words = [*TWELVE, *choice.split()]
    whole = tmp_path / "whole"
    assert train_in_processes([*words, "data.num_workers=0"], whole) == [0], said(whole)
    for number, workers in enumerate(EACH if STRESS else [MIXED[choice]]):
        cuts = random.Random(f"{choice} {workers}").sample(range(1, 12), len(workers) - 1)
        check_resumed(words, sorted(cuts), workers, tmp_path / f"cut{number}", whole)


def wait_no_longer(step: int, rank: int) -> None:
    """End a process by an alarm if it waits for the other in vain."""
    signal.alarm(60)


def test_r1_so_do_two_processes_that_are_killed(tmp_path: Path) -> None:
    """All but the last batch of a step skip communication, which a static graph does not allow."""
    words, whole = [*TWELVE, *AVERAGED.split(), "trainer.accumulate_grad_batches=2"], tmp_path / "whole"
    ended = train_in_processes([*words, "data.num_workers=0"], whole, 2, wait_no_longer)
    assert ended == [0, 0], said(whole)
    check_resumed(words, (8,), (0, 0), tmp_path / "cut", whole, processes=2)


VALIDATING = [
    *TWELVE,
    *AVERAGED.split(),
    "trainer.val_check_interval=4",
    "data.num_workers=1",
    "data.val_batch_size=1",
]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of VALIDATING, not interrupted."""
    folder = tmp_path_factory.mktemp("validated")
    assert train_in_processes(VALIDATING, folder) == [0], said(folder)
    return folder


@pytest.mark.parametrize(
    ("sent", "step", "every", "saved"),
    [
        (signal.SIGTERM, 4, 3, 4),
        (signal.SIGKILL, 12, 4, 12),
        *(
            [(signal.SIGKILL, 4, 3, 3), (signal.SIGKILL, 8, 4, 8), (signal.SIGTERM, 12, 5, 12)]
            if STRESS
            else []
        ),
    ],
)
def test_r4_a_validation_that_is_cut_is_repeated(
    sent: signal.Signals,
    step: int,
    every: int,
    saved: int,
    validated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is cut between its two batches; schedulers send SIGTERM twice."""
    words = [*VALIDATING, f"checkpoint_every_n_steps={every}"]
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        validate = SegmentationModule.validation_step

        def ended(self: SegmentationModule, batches: Any, batch_idx: int) -> None:
            validate(self, batches, batch_idx)
            if (self.global_step, batch_idx) == (step, 0) and self.trainer.state.fn == "fit":
                signal.raise_signal(sent)
                signal.raise_signal(sent)

        patch.setattr(SegmentationModule, "validation_step", ended)
        assert train_in_processes(words, cut) == [143 if sent == signal.SIGTERM else -9], said(cut)
    newest = max(loaded(path)["global_step"] for path in (cut / "checkpoints").glob("*.ckpt"))
    assert newest == saved
    assert train_in_processes(words, cut) == [0], said(cut)
    check_equal(cut, validated)


def test_r4_sigterm_saves_the_step_at_which_it_comes(validated: Path, tmp_path: Path) -> None:
    """However rarely checkpoints are written; and the row of the step is in metrics.csv."""

    def terminated(now: int, rank: int) -> None:
        if now == 5:
            signal.raise_signal(signal.SIGTERM)

    words, cut = [*VALIDATING, "checkpoint_every_n_steps=12"], tmp_path / "cut"
    assert train_in_processes(words, cut, at_step=terminated) == [143], said(cut)
    assert loaded(cut / "checkpoints" / "last.ckpt")["global_step"] == 6
    assert train_in_processes(words, cut) == [0], said(cut)
    check_equal(cut, validated)


def test_r1_tensorboard_changes_no_bit_and_shows_each_step_once(validated: Path, tmp_path: Path) -> None:
    """Also those that a run has logged after its last checkpoint, before it was killed."""
    cut = tmp_path / "cut"
    check_resumed([*VALIDATING, "logger=tensorboard"], (5,), (1, 0), cut, validated)
    shown, expected = curves(cut), read_history(validated).curves
    assert len(list((cut / "tensorboard").glob("events.*"))) == 2
    for key in expected.keys() - {"train/images_per_second"}:
        assert [step for step, _ in shown[key]] == sorted(expected[key]), key
        assert dict(shown[key]) == pytest.approx(expected[key], rel=1e-6), key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two steps."""
    folder = tmp_path_factory.mktemp("made")
    train(compose_overrides(*TWO, f"run_dir={folder}"))
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attention=dense"], "SelfAttention2d', attention.depth: 1 -> nothing"),
        (["attention.group_size=[4,4]"], "attention.group_size: [8, 8] -> [4, 4]"),
        (["optim=sgd_poly"], "optim.optimizer.momentum: nothing -> 0.9"),
        (["seed=3"], "seed: 0 -> 3"),
    ],
)
def test_r7_another_configuration_does_not_go_on(
    words: list[str], said: str, made: Path, compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    cfg = compose(*TWO, *words, f"resume={made}", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        train(cfg)
    assert "last.ckpt" in str(caught.value) and "resume=never" in str(caught.value)
    assert not (tmp_path / "run").exists(), "before anything is written"


def test_r7_longer_elsewhere_and_otherwise_rounded_goes_on(
    made: Path, compose: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["trainer.max_steps=3", "optim.total_steps=2", "trainer.val_check_interval=3", "name=other"]
    words += ["data.num_workers=1", "trainer.precision=bf16-mixed", "trainer.log_every_n_steps=2"]
    cfg = compose(*TWO, "optim=adamw_poly", *words, f"resume={made}", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(CheckpointError, match=r"optim\."):
        train(cfg)
    cfg = compose(*TWO, *words, f"resume={made}", f"run_dir={tmp_path / 'run'}")
    assert train(cfg)["step"] >= 2
    assert "not bit for bit: trainer.precision: '32-true' -> 'bf16-mixed'" in caplog.text
    assert loaded(tmp_path / "run" / "checkpoints" / "last.ckpt")["config"]["trainer"]["max_steps"] == 3


def test_r5_under_slurm_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mechanism on a cluster and off it: no hpc_ckpt file, no other folder; a finished run is left alone."""
    slurm = "JOB_ID=7 JOB_NAME=train NTASKS=1 NTASKS_PER_NODE=1 NNODES=1 PROCID=0 LOCALID=0 NODEID=0 NODELIST=localhost"
    for setting in slurm.split():
        name, _, value = setting.partition("=")
        monkeypatch.setenv(f"SLURM_{name}", value)
    folder = tmp_path / "run"
    words = [*TWELVE, "data.num_workers=0", f"run_dir={folder}"]
    assert train_in_processes(words, folder, 1, kill(8)) == [-signal.SIGKILL]
    again = forked.run("train.py", *words, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert re.search(r"continues from .*\.ckpt at step 6", again.stderr)
    assert sorted(path.name for path in folder.rglob("*.ckpt")) == ["best.ckpt", "last.ckpt"]
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    finished = forked.run("train.py", *words, cwd=tmp_path)
    assert finished.returncode == 0
    assert "is complete" in finished.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == files
    assert {"run"} <= set(os.listdir(tmp_path)) <= {"run", "outputs"}  # the latter empty: Hydra makes it
