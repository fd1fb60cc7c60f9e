"""Callbacks, each in a real Trainer on a tiny regression."""

import logging
import random
import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.errors import DivergenceError
from isaseg.models.tensor_files import load_checkpoint
from isaseg.training import callbacks
from isaseg.training.callbacks import EMA, PlainProgress, StepTimer
from isaseg.training.interruptions import BestCheckpoint, RngState
from isaseg.training.watch import Watch


class Points(Dataset[dict[str, Any]]):
    """All alike: a plain loader starts over when resumed, which is not what is tested here."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.ones(4), "id": f"s{index}"}


class Net(lightning.LightningModule):
    """Draws from torch and from `random` in every step, in training and in validation."""

    def __init__(self, spoil_step: int = -1) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.spoil_step = spoil_step
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = (self.layer(batch["x"]) - random.random()).pow(2).mean()
        if self.global_step == self.spoil_step:
            loss = loss * float("nan")
        self.step_losses = {"train/loss": loss.detach()}
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        torch.rand(3)
        random.random()
        self.log("val/mIoU", 0.25, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(
    net: Net, folder: Path, *extra: Callback, steps: int = 8, resume: Path | None = None, **kwargs: Any
) -> Any:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=kwargs.pop("logger", False),
        callbacks=list(extra),
        enable_model_summary=False,
        enable_progress_bar=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in extra),
        num_sanity_val_steps=0,
        default_root_dir=folder,
        plugins=[DurableCheckpointIO()],
        **{"val_check_interval": 4, **kwargs},
    )
    loader = DataLoader(Points(), batch_size=2)
    trainer.fit(net, loader, DataLoader(Points(), batch_size=8), ckpt_path=resume)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_after_a_validation_draws_the_same_numbers(tmp_path: Path) -> None:
    """(Of torch and `random`. Before a validation, and with loaders: tests/reliability/test_interruptions.py.)"""
    lightning.seed_everything(0, verbose=False)
    whole = Net()
    at_four = tmp_path / "four.ckpt"

    class Copy(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                at_four.write_bytes((tmp_path / "best.ckpt").read_bytes())

    fit(whole, tmp_path, RngState(), Copy(), BestCheckpoint(tmp_path))
    assert load_checkpoint(at_four)["global_step"] == 4
    lightning.seed_everything(999, verbose=False)
    resumed = Net()
    fit(resumed, tmp_path, RngState(), resume=at_four)
    assert resumed.losses == whole.losses[4:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_validation_does_not_change_what_training_draws(tmp_path: Path) -> None:
    losses = []
    for interval in (2, 8):
        lightning.seed_everything(0, verbose=False)
        net = Net()
        fit(net, tmp_path, RngState(), val_check_interval=interval)
        losses.append(net.losses)
    assert losses[0] == losses[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("batches", "samples"), [(1, "s2, s3"), (2, "s4, s5, s6, s7")])
def test_divergence_names_the_samples_of_all_accumulated_batches(
    batches: int, samples: str, tmp_path: Path
) -> None:
    with pytest.raises(DivergenceError, match=rf"samples {samples}\)"):
        fit(
            Net(spoil_step=1),
            tmp_path,
            Watch(),
            accumulate_grad_batches=batches,
            val_check_interval=8,
            steps=4,
        )


class Kept(CSVLogger):
    """Keeps all rows in memory."""

    def save(self) -> None:
        pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("accumulate", "first"), [(1, 2 / 3), (2, 6 / 7)])
def test_the_speed_is_logged_without_the_time_of_validation(
    accumulate: int, first: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of two images take a second and three in turns, a validation a thousand; the first is not timed."""
    now = 0.0

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            nonlocal now
            now += 1 + 2 * (batch_idx % 2)

        def on_validation_start(self, *args: Any) -> None:
            nonlocal now
            now += 1000

    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now)
    watch = Watch()
    logger, timer = Kept(tmp_path), StepTimer(watch)
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 4, "log_every_n_steps": 2}
    fit(Net(), tmp_path, Clock(), watch, timer, steps=8, logger=logger, **options)
    key = "train/images_per_second"
    rows = [row for row in logger.experiment.metrics if key in row]
    speeds = [(row["step"] + 1, row[key]) for row in rows]
    assert speeds == [(2, pytest.approx(first)), (4, 1.0), (6, 1.0), (8, 1.0)]
    assert all("train/loss" in row and "train/gpu_memory_mib" not in row for row in rows)
    assert timer.seconds_per_step == 3 * accumulate


@pytest.mark.filterwarnings("ignore")
def test_plain_progress_is_sparse_and_says_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="isaseg.training.callbacks")
    fit(Net(), tmp_path, Watch(), PlainProgress(), steps=60, log_every_n_steps=3)
    lines = [r.message for r in caplog.records if r.name == "isaseg.training.callbacks"]
    assert len(lines) == 20
    assert re.fullmatch(r"step 60/60  train/loss [\d.e-]+  val/mIoU 25\.0 %", lines[-1])


def test_the_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, name in ((True, "BarProgress"), (False, "PlainProgress")):
        monkeypatch.setattr("sys.stderr.isatty", lambda answer=terminal: answer)
        assert type(callbacks.progress()).__name__ == name


@pytest.mark.filterwarnings("ignore")
def test_an_average_moves_fractions_and_copies_integers(tmp_path: Path) -> None:
    """Over two validations, warmed up; when training ends the network has the average."""
    net, weight = Net(), []
    net.register_buffer("index", torch.arange(20))
    net.register_buffer("std", torch.tensor([57.12, 57.375]))

    class Noted(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            weight.append(net.layer[0].weight.detach().clone())

    fit(net, tmp_path, EMA(0.3), Noted())
    expected = weight[0]
    for count, value in enumerate(weight[1:], 1):
        decay = min(0.3, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(net.layer[0].weight, expected, rtol=1e-5)
    assert net.index.tolist() == list(range(20))
    assert net.std.equal(torch.tensor([57.12, 57.375]))
