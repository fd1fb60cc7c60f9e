"""N: NaN and infinity end a run before they spoil it; the seed alone decides what is random."""

import math
import random
import signal
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from isaseg import config
from isaseg.errors import ConfigError, DivergenceError
from isaseg.models.attention_kernels import by_definition
from isaseg.models.losses import CrossEntropy, OhemCrossEntropy
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, equal, loaded, train_in_processes, weights

FOUR = [*SMALL, "trainer.max_steps=4", "trainer.val_check_interval=2"]


@pytest.mark.parametrize("where", ["image", "loss", "gradient"])
def test_n1_c5_a_run_that_diverges_keeps_its_last_good_checkpoint(
    where: str, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step is spoiled; the NaN of an image would also have entered the statistics of the normalisation."""
    step = SegmentationModule.training_step

    def spoiled(self: SegmentationModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step != 2:
            return step(self, batch, batch_idx)
        if where == "image":
            self.segmenter.backbone.mean.fill_(float("nan"))
        loss: Any = step(self, batch, batch_idx)
        if where == "loss":
            loss = loss / 0
            self.step_losses = {"train/loss": loss.detach()}
        if where == "gradient":  # of the root of 0
            loss = loss + (next(self.parameters()).sum() * 0).sqrt()
        return loss

    monkeypatch.setattr(SegmentationModule, "training_step", spoiled)
    with pytest.raises(DivergenceError, match=r"at step 2 \(lr=[\d.e-]+, samples .+\)") as caught:
        train(compose(*FOUR, f"run_dir={tmp_path}"))
    assert caught.value.exit_code == 3
    assert ("gradients" if where == "gradient" else "a loss") in str(caught.value)
    for name in ("last", "best"):
        assert all(tensor.isfinite().all() for tensor in weights(tmp_path, name).values())
    assert loaded(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert not (tmp_path / "metrics.json").exists()


def test_n1_all_processes_stop_where_one_diverges(tmp_path: Path) -> None:
    """Neither waits for the other: each would be ended by its alarm."""

    def spoil(step: int, rank: int) -> None:
        signal.alarm(30)
        if (step, rank) == (2, 1):
            forward = CrossEntropy.forward
            CrossEntropy.forward = lambda *args, **more: forward(*args, **more) * math.nan  # type: ignore[method-assign]

    words = [*FOUR, "data.num_workers=0"]
    assert train_in_processes(words, tmp_path, 2, spoil) == [3, 3]
    for rank in range(2):
        assert "got loss=nan" in (tmp_path / f"said.{rank}").read_text()
    assert loaded(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("option", sorted(p.stem for p in (config.conf_dir() / "attention").glob("*.yaml")))
def test_n3_large_activations_give_no_nan_in_half_precision(option: str, mode: str) -> None:
    torch.manual_seed(0)
    module = config.build(compose_overrides(f"attention={option}").attention, "attention")(32)
    module.train(mode == "train")
    for precision, scale in product(("bf16-mixed", "bf16-mixed, scores held", "bf16-true"), (1.0, 1e2, 1e4)):
        dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
        module.to(dtype)
        x = (torch.randn(2, 32, 17, 18) * scale).to(dtype).requires_grad_()
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=precision != "bf16-true"),
            by_definition() if "held" in precision else nullcontext(),
        ):
            out = module(x)
        out.float().square().mean().sqrt().backward()
        assert out.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_n4_the_same_seed_twice_is_the_same_run(compose: Callable[..., DictConfig], tmp_path: Path) -> None:
    """(By the default too: tests/reliability/test_interruptions.py.)"""
    words = [*FOUR, "trainer=deterministic", "trainer.accelerator=cpu", "head.dropout=0.5"]
    metrics = []
    try:
        for number, seed in enumerate((5, 5)):
            random.seed(number)  # whatever went before in the process
            torch.manual_seed(number)
            cfg = compose(*words, f"seed={seed}", f"run_dir={tmp_path}/{number}")
            metrics.append({**train(cfg), "seconds_per_step": 0})
    finally:
        torch.use_deterministic_algorithms(False)
    assert metrics[0] == metrics[1]
    assert equal(weights(tmp_path / "0"), weights(tmp_path / "1"))


def test_n4_what_cannot_repeat_ends_the_run_by_name(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With torch's message on a GPU; on a CPU all operations used here repeat exactly."""

    def refused(*args: Any) -> None:
        raise RuntimeError(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation."
        )

    monkeypatch.setattr(SegmentationModule, "training_step", refused)
    try:
        with pytest.raises(ConfigError, match="adaptive_avg_pool2d_backward_cuda does not have"):
            train(compose(*FOUR, "trainer=deterministic", "trainer.accelerator=cpu", f"run_dir={tmp_path}"))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("make", [CrossEntropy, OhemCrossEntropy])
@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0]])
def test_n4_the_kernel_that_repeats_gives_the_same_loss(make: Any, class_weights: Any) -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 5, 7))
    target[0, :2] = 255
    results = []
    for repeats in (False, True):
        logits = torch.linspace(-3, 3, 210).view(2, 3, 5, 7).requires_grad_()
        torch.use_deterministic_algorithms(repeats)
        try:
            loss = make(class_weights=class_weights)(logits, target)
            loss.backward()
        finally:
            torch.use_deterministic_algorithms(False)
        results.append((loss.detach(), logits.grad))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
