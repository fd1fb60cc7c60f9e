"""S: what is outside the program, and what it has too little of."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from isaseg import out_of_memory
from isaseg.attention import InterlacedSparseAttention, SelfAttention2d
from isaseg.errors import OutOfMemory
from isaseg.module import SegmentationModule
from isaseg.training import train
from tests.reliability.small import SMALL

ONE = [*SMALL, "trainer.max_steps=1"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_s6_too_little_memory_is_told_with_what_to_change(
    error: Exception,
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(SegmentationModule, "training_step", fails)
    with pytest.raises(OutOfMemory) as caught:
        train(compose(*ONE, "attention=dense", "data.crop_size=[512,512]", f"run_dir={tmp_path}"))
    assert caught.value.exit_code == 4
    told = str(caught.value)
    # 64 x 64 positions at stride 8, 4 pictures, 4 bytes
    assert "on a map of 64x64 take 256 MiB of a batch" in told
    assert "(dense: 256 MiB, isa-8x8: 8 MiB)" in told
    order = (
        "accumulate_grad_batches=2",
        "precision=bf16-mixed",
        "attention=isa",
        "data.crop_size below [512, 512]",
    )
    assert [told.index(word) for word in order] == sorted(told.index(word) for word in order)


@pytest.mark.parametrize("attention", ["isa", "dense"])
def test_s6_the_scores_that_are_told_are_those_there_are(
    attention: str, compose: Callable[..., DictConfig]
) -> None:
    """Of a map of 16x16, by the shapes of the matrices that softmax gives."""
    cfg = compose(*ONE, f"attention={attention}", "data.crop_size=[128,128]", "data.batch_size=2")
    module = InterlacedSparseAttention(16, group_size=(8, 8)) if attention == "isa" else SelfAttention2d(16)
    known = {
        "map_height": 16,
        "map_width": 16,
        "attention_score_mib": module.cost(16, 16).score_entries * 4 / 2**20,
    }
    said = out_of_memory.memory_of_scores(cfg, known)
    assert said["this"] == said[attention]
    positions = 256
    held = {"isa": positions * 4 + positions * 64, "dense": positions**2}[attention]
    assert said["this"] == 2 * held * 4


def test_s6_more_than_the_device_has_is_told_before_the_first_step(
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(out_of_memory, "memory_of", lambda device: 2**10)
    train(compose(*ONE, f"run_dir={tmp_path}"))
    assert re.search(r"the device has 0 MiB of memory\. The scores of isa-8x8", caplog.text)
