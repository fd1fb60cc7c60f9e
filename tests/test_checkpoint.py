"""Checkpoint files survive crashes, damage and malice."""

import errno
import logging
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isaseg.checkpoint import DurableCheckpointIO, find_resume, load_checkpoint, load_weights
from isaseg.errors import CheckpointError


def save(path: Path, step: int) -> Path:
    DurableCheckpointIO().save_checkpoint({"global_step": step, "w": torch.full((5000,), float(step))}, path)
    return path


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "last.ckpt", 3)
    loaded = DurableCheckpointIO().load_checkpoint(path, weights_only=False)
    assert loaded["global_step"] == 3
    assert torch.equal(loaded["w"], torch.full((5000,), 3.0))


def test_a_failed_save_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "last.ckpt", 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*MiB are free"):
        save(path, 2)
    assert load_checkpoint(path)["global_step"] == 1
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_temporary_file_is_a_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((str(a), str(b))), replace(a, b)))
    path = save(tmp_path / "last.ckpt", 1)
    ((temporary, target),) = seen
    assert target == str(path)
    assert Path(temporary).parent == path.parent


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_while_saving_never_spoils_the_file(moment: str, tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints" / "last.ckpt", 1)
    child = os.fork()
    if child == 0:
        setattr(os, moment, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        save(path, 2)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(os.listdir(path.parent)) == 2, "killed in the middle of a save"
    assert load_checkpoint(path)["global_step"] == 1
    assert find_resume(tmp_path, "auto") == path
    assert os.listdir(path.parent) == ["last.ckpt"], "what was left is swept"


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [True, False])
def test_a_hostile_file_is_refused_and_not_run(legacy: bool, tmp_path: Path) -> None:
    path, sentinel = tmp_path / "evil.ckpt", tmp_path / "sentinel"
    if legacy:
        path.write_bytes(pickle.dumps(Evil(sentinel), protocol=2))
    else:
        torch.save({"state_dict": Evil(sentinel)}, path)
    for load in (
        load_checkpoint,
        DurableCheckpointIO().load_checkpoint,
        lambda p: find_resume(tmp_path, str(p)),
    ):
        with pytest.raises(CheckpointError, match="plain data"):
            load(path)
    with pytest.raises(CheckpointError, match="plain data"):
        load_weights(nn.Linear(1, 1), path)
    assert not sentinel.exists()


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    else:
        path.write_bytes(content[: int(len(content) * float(how))])


@pytest.mark.parametrize("how", ["0", "0.1", "0.5", "0.99", "flip"])
def test_a_damaged_last_gives_way_to_an_older_good_one(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    last, best = (save(tmp_path / "checkpoints" / n, s) for n, s in (("last.ckpt", 9), ("best.ckpt", 6)))
    assert find_resume(tmp_path, "auto") == last
    damage(last, how)
    caplog.clear()
    assert find_resume(tmp_path, "auto") == best
    assert "passed over" in caplog.text
    assert "last.ckpt" in caplog.text
    assert "at step 6" in caplog.text
    damage(best, how)
    for resume in ("auto", "must"):
        with pytest.raises(CheckpointError, match="2 that do not"):
            find_resume(tmp_path, resume)


def test_the_newest_step_wins_and_among_equals_the_one_written_after_validation(tmp_path: Path) -> None:
    last, best = (save(tmp_path / "checkpoints" / n, 6) for n in ("last.ckpt", "best.ckpt"))
    assert find_resume(tmp_path, "auto") == best
    save(last, 8)
    assert find_resume(tmp_path, "auto") == last


def test_resume_never_and_nothing_to_resume(tmp_path: Path) -> None:
    assert find_resume(tmp_path, "auto") is None
    with pytest.raises(CheckpointError, match="resume=must"):
        find_resume(tmp_path, "must")
    with pytest.raises(CheckpointError, match="does not exist"):
        find_resume(tmp_path, str(tmp_path / "missing.ckpt"))
    path = save(tmp_path / "checkpoints" / "last.ckpt", 2)
    assert find_resume(tmp_path, "never") is None
    assert find_resume(tmp_path / "elsewhere", str(path)) == path


def test_a_bare_state_dict_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match="no global_step"):
        find_resume(tmp_path, str(path))


def test_load_weights_takes_a_part_by_prefix(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = {f"net.{k}": v for k, v in source.state_dict().items()} | {"other.weight": torch.zeros(1)}
    torch.save({"state_dict": state, "global_step": 4}, tmp_path / "a.ckpt")
    assert load_weights(target, tmp_path / "a.ckpt", "net.")["global_step"] == 4
    assert torch.equal(source.weight, target.weight)


def test_load_weights_lists_every_difference_and_changes_nothing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {
        "0.weight": torch.zeros(5, 3),
        "1.weight": torch.zeros(2, 2),
        "1.bias": torch.zeros(2),
        "x": torch.zeros(1),
    }
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "a.pt")
    for part in ("missing: 0.bias", "unexpected: x", "0.weight (5, 3) -> (2, 3)"):
        assert part in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_only_one_file_loads_or_saves() -> None:
    source = Path(__file__).parents[1] / "src"
    risky = ("torch.load(", "torch.save(", "pickle", "joblib", "yaml.load(", "allow_pickle=True")
    found = {p.name for p in source.rglob("*.py") if any(r in p.read_text() for r in risky)}
    assert found == {"checkpoint.py"}
