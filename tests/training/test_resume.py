"""Which checkpoint a run continues from: the newest that loads, or a clear word."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.errors import CheckpointError
from isaseg.training.resume import find_resume


def save(path: Path, step: int) -> Path:
    DurableCheckpointIO().save_checkpoint({"global_step": step, "w": torch.full((5000,), float(step))}, path)
    return path


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.write_bytes(content[: int(len(content) * float(how))])


@pytest.mark.parametrize("how", ["0", "0.1", "0.5", "0.99", "flip"])
def test_c3_a_damaged_last_gives_way_to_an_older_good_one(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    last, best = (save(tmp_path / "checkpoints" / n, s) for n, s in (("last.ckpt", 9), ("best.ckpt", 6)))
    assert find_resume(tmp_path, "auto")[0] == last
    damage(last, how)
    caplog.clear()
    assert find_resume(tmp_path, "auto")[0] == best
    assert "skipped" in caplog.text
    assert "last.ckpt" in caplog.text
    assert "at step 6" in caplog.text
    assert not last.exists(), "renamed: a new one will take its place"
    damage(best, how)
    for resume in ("auto", "must"):
        with pytest.raises(CheckpointError, match="2 that do not"):
            find_resume(tmp_path, resume)


def test_the_newest_step_wins_and_among_equals_the_one_written_after_validation(tmp_path: Path) -> None:
    last, best = (save(tmp_path / "checkpoints" / n, 6) for n in ("last.ckpt", "best.ckpt"))
    assert find_resume(tmp_path, "auto")[0] == best
    save(last, 8)
    path, checkpoint = find_resume(tmp_path, "auto")
    assert path == last and checkpoint["global_step"] == 8


def test_r6_never_from_scratch_unsaid(tmp_path: Path) -> None:
    assert find_resume(tmp_path, "auto") == (None, {})
    with pytest.raises(CheckpointError, match="resume=must"):
        find_resume(tmp_path, "must")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_resume(tmp_path, str(tmp_path / "missing.ckpt"))
    path = save(tmp_path / "checkpoints" / "last.ckpt", 2)
    assert find_resume(tmp_path, "never") == (None, {})
    assert find_resume(tmp_path / "elsewhere", str(path))[0] == path


def test_a_bare_state_dict_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match="no global_step"):
        find_resume(tmp_path, str(path))
