"""C: files are whole, and one that is not is never used; kills while saving are in `tests/checkpoints`."""

import errno
import math
import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.errors import CheckpointError
from isaseg.models.tensor_files import load_checkpoint
from isaseg.runs.history import HistoryWriter, read_history
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests.reliability.small import SMALL, loaded


def fill_the_disk(patch: pytest.MonkeyPatch, is_full: Callable[[], bool]) -> None:
    """Let no checkpoint be written while `is_full()`."""
    fsync = os.fsync

    def of_a_full_disk(descriptor: int) -> None:
        if ".ckpt." in os.readlink(f"/proc/self/fd/{descriptor}") and is_full():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    patch.setattr(os, "fsync", of_a_full_disk)


@pytest.mark.parametrize("final", [False, True])
def test_c2_a_full_disk_ends_a_run_only_at_its_last_step(
    final: bool,
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*SMALL, "trainer.max_steps=3", "trainer.val_check_interval=1", f"run_dir={tmp_path}"]
    step = 0
    training_step = SegmentationModule.training_step

    def counted(self: SegmentationModule, *args: Any) -> Any:
        nonlocal step
        step = self.global_step + 1
        return training_step(self, *args)

    monkeypatch.setattr(SegmentationModule, "training_step", counted)
    fill_the_disk(monkeypatch, lambda: step == (3 if final else 2))
    checkpoints = tmp_path / "checkpoints"
    if final:
        with pytest.raises(
            CheckpointError, match=r"expected to write .*last.ckpt, got .*No space.*MiB are free"
        ):
            train(compose(*words))
        assert loaded(checkpoints / "last.ckpt")["global_step"] == 2
        step = 0
    else:
        assert train(compose(*words))["step"] in (1, 3)
        assert "Training continues" in caplog.text
        assert loaded(checkpoints / "last.ckpt")["global_step"] == 3
    assert sorted(os.listdir(checkpoints)) == ["best.ckpt", "last.ckpt"]


def test_c2_rows_that_a_full_disk_refuses_are_written_when_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether a row is appended, of which a part is written, or the file rewritten."""
    open_path, path = Path.open, tmp_path / "metrics.csv"

    def full(self: Path, mode: str = "r", **kwargs: Any) -> Any:
        if mode in ("ab", "wb"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_path(self, mode, **kwargs)

    writer = HistoryWriter(tmp_path)
    writer.add(1, {"train/loss": 1.5})
    writer.add(2, {"train/loss": 2.5, "val/mIoU": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        writer.add(3, {"train/loss": 3.5})
        with open(path, "a") as file:
            file.write("3,3.")
        writer.add(4, {"train/loss": 4.5})
    assert caplog.text.count("No space left") == 1
    assert read_history(tmp_path).last_step == 2
    writer.add(5, {"train/loss": 5.5})
    assert read_history(tmp_path).last_step == 5
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        writer.add(5, {"val/mIoU": 0.25})
    writer.close()
    assert "lost" not in caplog.text
    assert read_history(tmp_path).curves == {
        "train/loss": {1: 1.5, 2: 2.5, 3: 3.5, 4: 4.5, 5: 5.5},
        "val/mIoU": {2: 0.5, 5: 0.25},
    }


def score(patch: pytest.MonkeyPatch, scores: Sequence[float]) -> None:
    """Let the validation after step n give scores[n - 1]."""
    log = SegmentationModule.log

    def replaced(self: SegmentationModule, name: str, value: Any, **kwargs: Any) -> None:
        fitting = name == "val/mIoU" and self.trainer.state.fn == "fit"
        log(self, name, torch.tensor(scores[self.global_step - 1]) if fitting else value, **kwargs)

    patch.setattr(SegmentationModule, "log", replaced)


@pytest.mark.parametrize(("scores", "best"), [((math.nan, 0.2, math.nan, 0.1), 2), ((math.nan,) * 4, 4)])
def test_c6_a_score_that_is_not_a_number_is_never_the_best(
    scores: tuple[float, ...],
    best: int,
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score(monkeypatch, scores)
    metrics = train(
        compose(*SMALL, "trainer.max_steps=4", "trainer.val_check_interval=1", f"run_dir={tmp_path}")
    )
    assert metrics["step"] == best, "of the best checkpoint; of the last if there is none"
    assert (tmp_path / "checkpoints" / "best.ckpt").exists() == (best == 2)


@pytest.mark.parametrize(("damaged", "best"), [(False, 1), (True, 4)])
def test_c3_the_score_to_beat_moves_with_the_folder_and_goes_with_its_checkpoint(
    damaged: bool,
    best: int,
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score(monkeypatch, (0.9, 0.1, 0.2, 0.3))
    words = [*SMALL, "trainer.val_check_interval=1", "optim.total_steps=4"]
    train(compose(*words, "trainer.max_steps=2", f"run_dir={tmp_path / 'here'}"))
    folder = (tmp_path / "here").rename(tmp_path / "there")
    if damaged:
        path = folder / "checkpoints" / "best.ckpt"
        path.write_bytes(path.read_bytes()[:-100])
    metrics = train(compose(*words, "trainer.max_steps=4", f"run_dir={folder}"))
    assert metrics["step"] == best
    files = ["best.ckpt", *(["best.ckpt.damaged"] if damaged else []), "last.ckpt"]
    assert sorted(os.listdir(folder / "checkpoints")) == files


def test_c2_a_real_limit_on_the_size_of_files_leaves_the_old_one(tmp_path: Path) -> None:
    """The write itself fails, not only the flush."""
    path = tmp_path / "last.ckpt"
    DurableCheckpointIO().save_checkpoint({"global_step": 1, "w": torch.zeros(10)}, path)
    larger = {"global_step": 2, "w": torch.zeros(10**6)}
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            DurableCheckpointIO(final_step=9).save_checkpoint(larger, path)
            try:
                DurableCheckpointIO(final_step=2).save_checkpoint(larger, path)
            except CheckpointError as error:
                code = 0 if "expected to write " in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert load_checkpoint(path)["global_step"] == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]
