"""What a step waits for, and what is left of a run that diverges, also where it is noticed some steps later."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from omegaconf import DictConfig
from torch import Tensor

from isaseg.errors import DivergenceError
from isaseg.models import losses
from isaseg.runs.history import read_history
from isaseg.training import run
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests.pretend_gpu import PretendGPU
from tests.reliability.small import SMALL, equal, loaded, weights

SIX = [*SMALL, "trainer.log_every_n_steps=3", "trainer.max_steps=6", "trainer.val_check_interval=6"]
SIX += ["data.num_workers=0"]
TEN = [*SIX, "trainer.log_every_n_steps=5", "trainer.max_steps=10", "trainer.val_check_interval=10"]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "loss=ohem loss.min_kept_per_crop=50 trainer.gradient_clip_val=1",
        "optim=sgd_poly attention=dense trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=2",
    ],
)
def test_a_step_waits_for_nothing_and_a_step_that_logs_once(
    words: str, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    uploads: list[int] = []
    step = SegmentationModule.training_step

    def counted(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> Tensor:
        gpu.put([*self.parameters(), *self.buffers(), *batch.values()])
        reads.append(len(gpu.reads))
        uploads.append(gpu.uploads)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(SegmentationModule, "training_step", counted)
    only = losses._only
    monkeypatch.setattr(losses, "_only", lambda values, kept, device: only(values, kept, "cuda"))
    with PretendGPU() as gpu:
        train(compose(*SIX, *words.split(), f"run_dir={tmp_path}"))
    batches = 2 if "accumulate" in words else 1
    each = [
        later - earlier for earlier, later in zip(reads[::batches], reads[batches::batches], strict=False)
    ]
    assert each == [0, 0, 1, 0, 0]
    assert set(uploads) == {uploads[0]}
    assert sorted(read_history(tmp_path).curves["train/loss"]) == [3, 6]


def spoiled(monkeypatch: pytest.MonkeyPatch, at: int, value: float) -> dict[str, Any]:
    """Let the loss of one step be `value`; return a dict that gets the module, and weights and loss of that step."""
    seen: dict[str, Any] = {}
    step = SegmentationModule.training_step

    def spoil(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> Tensor:
        seen["module"] = self
        loss = step(self, batch, batch_idx)
        if self.global_step == at:
            seen.setdefault("before", [p.detach().clone() for p in self.parameters()])
            loss = loss * value
            self.step_losses["train/loss"] = loss.detach()
        return loss

    monkeypatch.setattr(SegmentationModule, "training_step", spoil)
    return seen


@pytest.mark.parametrize("optim", ["adamw_one_cycle", "sgd_poly", "muon"])
def test_a_step_that_diverges_is_noticed_later_and_leaves_the_weights(
    optim: str, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps after it are as good as any, and are not taken either; no checkpoint is written."""
    seen = spoiled(monkeypatch, 1, float("nan"))
    with pytest.raises(DivergenceError, match=r"expected a loss .* loss=nan, .* at step 1 \(lr="):
        train(compose(*SIX, f"optim={optim}", f"run_dir={tmp_path}"))
    assert seen["module"].global_step == (1 if optim == "muon" else 3)
    now = seen["module"].parameters()
    assert all(torch.equal(a, b) for a, b in zip(now, seen["before"], strict=True))
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("when", ["checkpoint_every_n_steps=3", "trainer.val_check_interval=3"])
def test_nothing_is_saved_or_scored_of_a_run_that_has_diverged(
    when: str, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spoiled(monkeypatch, 2, float("inf"))
    monkeypatch.setattr(SegmentationModule, "validation_step", lambda *_: pytest.fail("was validated"))
    with pytest.raises(DivergenceError, match=r"loss=inf, .* at step 2 \("):
        train(compose(*TEN, "trainer.max_steps=9", when, f"run_dir={tmp_path}"))
    assert seen["module"].global_step == 3
    assert not list(tmp_path.rglob("*.ckpt"))


def scaled(monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    """Train in float16 with a gradient scaler, which on a CPU Lightning would replace by bfloat16."""
    build = run.build_trainer

    def built(*args: Any) -> Any:
        trainer = build(*args)
        scaler = torch.amp.GradScaler("cpu", **how)
        trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)  # type: ignore[arg-type]
        return trainer

    monkeypatch.setattr(run, "build_trainer", built)


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
def test_float16_skips_steps_that_overflow_and_goes_on_bit_for_bit(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled(monkeypatch, init_scale=2.0**22, growth_interval=3)
    words = [*TEN, "checkpoint_every_n_steps=5", "trainer.gradient_clip_val=1"]
    taken: list[int] = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    train(compose(*words, f"run_dir={tmp_path / 'whole'}"))
    assert 0 < len(taken) < 10, "some steps overflow, some do not"
    whole = loaded(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert whole["MixedPrecision"]["scale"] < 2.0**22
    with monkeypatch.context() as patch:
        spoiled(patch, 6, float("nan"))
        with pytest.raises(DivergenceError, match=r"loss=nan, .* at step 6 \("):
            train(compose(*words, f"run_dir={tmp_path / 'cut'}"))
    train(compose(*words, f"run_dir={tmp_path / 'cut'}"))
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert loaded(tmp_path / "cut" / "checkpoints" / "last.ckpt")["MixedPrecision"] == whole["MixedPrecision"]


@pytest.mark.parametrize("half", [False, True])
def test_the_message_has_the_loss_itself(
    half: bool, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither divided by the accumulated batches nor multiplied by the scale; here the gradients diverge alone."""
    if half:
        scaled(monkeypatch, init_scale=1024.0)
    seen = spoiled(monkeypatch, 1, 1.0)
    step = SegmentationModule.training_step
    values = []

    def noted(self: SegmentationModule, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = step(self, batch, batch_idx)
        if self.global_step == 1:
            values.append(float(loss.detach()))
            self.step_losses["train/loss_aux"] = loss.detach() * float("nan")
        return loss

    monkeypatch.setattr(SegmentationModule, "training_step", noted)
    with pytest.raises(DivergenceError) as caught:
        train(compose(*SIX, "trainer.accumulate_grad_batches=2", f"run_dir={tmp_path}"))
    assert seen and len(values) == 2
    assert "gradient_clip_val" not in str(caught.value), "which the experiment has"
    shown = re.search(r"loss=([\d.]+), ", str(caught.value))
    assert shown and float(shown[1]) == pytest.approx(sum(values) / 2, rel=1e-4)
