"""Which checkpoint a run continues from: the newest that loads, or a clear word."""

import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from isaseg import config
from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.errors import CheckpointError
from isaseg.training.build import build_module
from isaseg.training.module import SegmentationModule
from isaseg.training.resume import find_resume
from isaseg.training.run import train
from tests.reliability.small import SMALL, equal, loaded, said, train_in_processes, weights


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


def test_a_resumed_run_reads_its_checkpoint_once_and_checks_each_once(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, "trainer.val_check_interval=1", "optim.total_steps=2", "data.num_workers=0"]
    train(compose(*words, "trainer.max_steps=1", f"run_dir={tmp_path}"))
    read: list[str] = []
    checked: list[str] = []
    before_the_first_step: list[list[str]] = []
    load, test, step = torch.load, zipfile.ZipFile.testzip, SegmentationModule.training_step

    def loading(path: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("mmap"):  # which reads only what is looked at
            read.append(Path(path).name)
        return load(path, *args, **kwargs)

    def testing(self: zipfile.ZipFile) -> str | None:
        checked.append(Path(str(self.filename)).name)
        return test(self)

    def stepping(self: SegmentationModule, *args: Any) -> Any:
        before_the_first_step[:] = [list(read), sorted(checked)]
        return step(self, *args)

    monkeypatch.setattr(torch, "load", loading)
    monkeypatch.setattr(zipfile.ZipFile, "testzip", testing)
    monkeypatch.setattr(SegmentationModule, "training_step", stepping)
    train(compose(*words, "trainer.max_steps=2", f"run_dir={tmp_path}"))
    assert before_the_first_step == [["best.ckpt"], ["best.ckpt", "last.ckpt"]]
    before_the_first_step.clear()
    read.clear()
    checked.clear()
    path = (tmp_path / "checkpoints" / "last.ckpt").rename(tmp_path / "mine.ckpt")
    path.write_bytes((tmp_path / "checkpoints" / "best.ckpt").read_bytes())
    words += ["trainer.max_steps=4", f"resume={path}", f"run_dir={tmp_path / 'other'}"]
    train(compose(*words))
    assert before_the_first_step == [["mine.ckpt"], ["mine.ckpt"]], "a named one too"


def test_what_was_handed_over_is_given_once_and_only_for_its_path(tmp_path: Path) -> None:
    path, other = (save(tmp_path / name, step) for name, step in (("a.ckpt", 1), ("b.ckpt", 2)))
    reader, content = DurableCheckpointIO(), {"global_step": 7}
    reader.hold(path, content)
    assert reader.load_checkpoint(str(path)) is content
    assert reader.load_checkpoint(path)["global_step"] == 1, "forgotten, so that its memory is free"
    reader.hold(path, content)
    assert reader.load_checkpoint(other)["global_step"] == 2


def test_a_checkpoint_of_a_torch_that_wrote_no_zip_is_resumed_too(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    content = {"global_step": 3, "w": torch.ones(4)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    found, checkpoint = find_resume(tmp_path, "auto")
    assert found == path and torch.equal(checkpoint["w"], content["w"])


def test_a_state_of_another_memory_layout_goes_on_all_the_same(tmp_path: Path) -> None:
    """On a GPU weights are channels last, on a CPU they are planar; fused kernels look at memory alone."""
    words = [*SMALL, "optim=adamw_one_cycle", "trainer.max_steps=4", "trainer.val_check_interval=4"]
    words += ["checkpoint_every_n_steps=2", "data.num_workers=0"]

    def at_two(step: int, rank: int) -> None:
        if step == 2:
            os._exit(9)

    assert train_in_processes(words, tmp_path / "changed", 1, at_two) == [9], said(tmp_path / "changed")
    path = tmp_path / "changed" / "checkpoints" / "last.ckpt"
    checkpoint = loaded(path)
    changed = 0
    for state in checkpoint["optimizer_states"][0]["state"].values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim == 4:
                state[key] = value.contiguous(memory_format=torch.channels_last)
                changed += state[key].stride() != value.stride()
    assert changed
    torch.save(checkpoint, path)
    for name in ("whole", "changed"):
        assert train_in_processes(words, tmp_path / name) == [0], said(tmp_path / name)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "changed"))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_weights_are_channels_last_on_a_gpu_alone(
    on_gpu: bool, compose: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    cfg = compose(*SMALL, "trainer.accelerator=auto")
    module = build_module(cfg, config.build(cfg.data, "data"))
    found = {
        part.weight.is_contiguous(memory_format=torch.channels_last)
        for part in module.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1) and part.in_channels > part.groups
    }
    assert found == {on_gpu}
