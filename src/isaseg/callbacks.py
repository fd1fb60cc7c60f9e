"""What happens beside the training loop: random state, divergence, timing, progress, W&B pictures."""

import logging
import math
import random
import signal
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from isaseg import report
from isaseg.errors import DivergenceError
from isaseg.logging import NeverFatalWandbLogger

log = logging.getLogger(__name__)


class RngState(Callback):
    """Keep the random state in the checkpoint, so that a resumed run draws what it would have drawn.

    What validation draws is undone: how often a run validates does not change how it trains. NumPy's global
    generator is not kept because nothing here uses it. Every rank gets the state of rank 0: all are seeded alike.
    """

    def __init__(self) -> None:
        self._pending: dict[str, Any] | None = None
        self._after_batch: dict[str, Any] | None = None
        self._validating = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch (CPU and current GPU) and of `random`, as plain data; in validation that before."""
        if self._pending is not None:  # resumed, no batch yet
            return self._pending
        if self._validating and self._after_batch is not None:
            return self._after_batch
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the state until the first batch: making the loaders draws numbers too."""
        self._pending = state_dict

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Apply the state that was loaded."""
        if self._pending is not None:
            _set_rng(self._pending)
            self._pending = None

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Set the state aside; on_validation_start would be too late, the loader has drawn its seed by then."""
        self._after_batch = self.state_dict()

    def on_validation_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Hold on to the training state."""
        self._validating = True

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Put the training state back, before the checkpoint of this validation is written."""
        self._validating = False
        if self._after_batch is not None:
            _set_rng(self._after_batch)


class RepeatValidation(Callback):
    """Let a run that continues from a checkpoint of a step not validated yet begin with that validation.

    Lightning takes a validation that was due after a checkpoint for done, and one that was cut for done in part.

    Args:
        every_n_steps: How often the run validates.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._validated = self._lent = 0

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Note the step."""
        self._validated = trainer.global_step
        trainer.fit_loop.epoch_loop.max_steps -= self._lent
        self._lent = 0

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run of which only the last validation is left begin: Lightning would take it for complete."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        if checkpoint["global_step"] == trainer.max_steps and progress["ready"] > progress["completed"]:
            self._lent = 1
            trainer.fit_loop.epoch_loop.max_steps += self._lent

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write that the batch is complete, and that of its validation no batch is."""
        step = trainer.global_step
        if step == self._validated or step % self.every_n_steps:
            return
        loop = checkpoint["loops"]["fit_loop"]
        for counts in (loop["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            counts["completed"] = counts["processed"]
        validation = loop["epoch_loop.val_loop.batch_progress"]
        done = validation["total"]["completed"]
        for which, before in (("total", done), ("current", 0)):
            validation[which] = {
                "ready": before + 1,
                "started": before + 1,
                "processed": before,
                "completed": before,
            }


class DivergenceGuard(Callback):
    """Stop before the optimizer step that would spoil the weights, so that the last checkpoint stays good.

    Loss and gradients are checked together, once per optimizer step: one wait for the GPU.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the samples of the batch."""
        self._ids += batch["id"]

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Note the loss."""
        self._losses.append(loss.detach().float())

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the losses since the last step and the gradients.

        Raises:
            DivergenceError: If one is not finite; names step, learning rate, loss and samples.
        """
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        loss = torch.stack(self._losses).mean()
        norm = torch.nn.utils.get_total_norm(grads).to(loss) if grads else torch.zeros_like(loss)
        if trainer.precision == "16-mixed":
            norm = torch.zeros_like(loss)  # the gradient scaler meets infinity by design and skips the step
        loss_value, norm_value = torch.stack((loss, norm)).tolist()
        ids, self._ids, self._losses = self._ids, [], []
        if math.isfinite(loss_value) and math.isfinite(norm_value):
            return
        what = "gradients" if math.isfinite(loss_value) else "a loss"
        raise DivergenceError(
            f"expected {what} without NaN or infinity, got loss={loss_value:g}, gradient norm={norm_value:g} at "
            f"step {trainer.global_step} (lr={optimizer.param_groups[-1]['lr']:g}, samples {', '.join(ids)}). "
            "The weights and the last checkpoint are untouched; lower optim.lr, or set trainer.gradient_clip_val=1"
        )


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint of the run folder: best.ckpt, of the highest val/mIoU, or last.ckpt, written after the last step too.

    A score that is NaN is never the highest. The score to beat is kept if the folder is moved, and forgotten if
    best.ckpt is gone. No path that a checkpoint names is ever used.

    Args:
        folder: Where it is written.
        every_n_steps: How often last.ckpt is written; None: it is best.ckpt.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        super().__init__(
            folder,
            "last" if every_n_steps else "best",
            monitor=None if every_n_steps else "val/mIoU",
            mode="max",
            every_n_train_steps=every_n_steps,
            save_on_exception=False,
            enable_version_counter=False,
        )

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save last.ckpt if it is due."""
        every = self._every_n_train_steps
        if self.monitor is None and trainer.global_step == trainer.max_steps:
            self._every_n_train_steps = 1
        super().on_train_batch_end(trainer, *args)
        self._every_n_train_steps = every

    def check_monitor_top_k(self, trainer: lightning.Trainer, current: Tensor | None = None) -> bool:
        """Tell whether to save."""
        if current is not None and not torch.isfinite(current):
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the score to beat, where its checkpoint is in this folder."""
        assert self.dirpath is not None
        best, score = Path(self.dirpath) / "best.ckpt", state_dict.get("best_model_score")
        if self.monitor is not None and isinstance(score, Tensor) and best.is_file():
            self.best_model_path = self.kth_best_model_path = str(best)
            self.best_model_score = self.kth_value = score
            self.best_k_models = {str(best): score}


class EndOnSigterm(Callback):
    """Answer SIGTERM by a checkpoint and the end of the run, after the same step on all devices.

    Lightning's handler, which this replaces while a run trains, saves nothing, and with several processes it calls a
    collective wherever in a step the signal finds it.

    Args:
        path: The checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = False
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Listen; Lightning puts back what was there before when the run ends."""
        self._step = trainer.global_step
        signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save and end after an optimizer step if any process was asked to.

        Raises:
            SIGTERMException: Then.
        """
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            trainer.save_checkpoint(self.path)
            raise SIGTERMException

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save and end; several processes may not have as many batches and go on to a step. Resuming validates anew.

        Raises:
            SIGTERMException: Then.
        """
        if self._asked and trainer.world_size == 1:
            trainer.save_checkpoint(self.path)
            raise SIGTERMException

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


class StepTimer(Callback):
    """Measure the seconds from one optimizer step to the next, data included, validation left out.

    Logs train/images_per_second, of all devices, and on a GPU train/gpu_memory_mib, the most that was allocated so
    far, whenever training logs; without waiting for the GPU.

    Attributes:
        seconds_per_step: The median of the last 1000, which start-up does not move; NaN before two.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._batches: deque[float] = deque(maxlen=1000)
        self._accumulate = 1
        self._images, self._seconds, self._logged = 0, 0.0, 0  # since the last log, and its step

    @property
    def seconds_per_step(self) -> float:
        """Median seconds of the last steps, NaN before the first."""
        return statistics.median(self._batches) * self._accumulate if self._batches else math.nan

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        """Take the time; log if training does now."""
        now = time.perf_counter()
        if self._last is not None:
            self._batches.append(now - self._last)
            self._seconds += now - self._last
            self._images += len(batch["id"]) * trainer.world_size
        self._last, self._accumulate = now, trainer.accumulate_grad_batches
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._logged and step % every == 0 and self._seconds:
            self._logged = step
            pl_module.log("train/images_per_second", self._images / self._seconds)
            self._images, self._seconds = 0, 0.0
            if pl_module.device.type == "cuda":
                pl_module.log(
                    "train/gpu_memory_mib", torch.cuda.max_memory_allocated(pl_module.device) / 2**20
                )

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Let the clock go on from here."""
        self._last = None if self._last is None else time.perf_counter()


class PlainProgress(ProgressBar):
    """Log a line about every 5 % of the steps, for files and pipes.

    `step 100/1000  loss 0.531  val/mIoU 0.4120  12.3 steps/s`
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._mark = (0, 0.0)

    def disable(self) -> None:
        """Stay silent (Lightning calls this on every rank but 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Speak again."""
        self._enabled = True

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Start the clock."""
        self._mark = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Log a line if one is due."""
        step, total = trainer.global_step, trainer.max_steps
        every = max(total // 20, 1)
        if self._enabled and step != self._mark[0] and (step % every == 0 or step == total):
            self._line(trainer, step, total)

    def _line(self, trainer: lightning.Trainer, step: int, total: int) -> None:
        now = time.perf_counter()
        rate = (step - self._mark[0]) / max(now - self._mark[1], 1e-9)
        self._mark = (step, now)
        parts = [f"step {step}/{total}"]
        for key, text in (("train/loss", "loss {:.3f}"), ("val/mIoU", "val/mIoU {:.4f}")):
            if key in trainer.callback_metrics:
                parts.append(text.format(float(trainer.callback_metrics[key])))
        log.info("%s", "  ".join([*parts, f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"]))


def progress() -> ProgressBar:
    """Return a moving bar for a terminal, sparse lines for anything else; both on standard error."""
    return RichProgressBar(console_kwargs={"stderr": True}) if sys.stderr.isatty() else PlainProgress()


class WandbPictures(Callback):
    """Send the same few validation images to W&B after every validation, with truth and prediction laid over.

    Args:
        count: How many; 0 for none.
    """

    def __init__(self, count: int = 4) -> None:
        self.count = count
        self._samples: list[report.Sample] | None = None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Predict and send, on rank 0, if there is a W&B logger."""
        loggers = [x for x in trainer.loggers if isinstance(x, NeverFatalWandbLogger)]
        if not loggers or self.count < 1 or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not trainer.is_global_zero:
            return
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._samples is None:
            self._samples = report.samples(datamodule, self.count)
        segmenter: Any = pl_module.segmenter
        images = [
            report.wandb_image(s, report.predict(segmenter, s), datamodule.classes, datamodule.ignore_index)
            for s in self._samples
        ]
        for logger in loggers:
            logger.log_payload({"val/pictures": images}, trainer.global_step)


def _set_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
