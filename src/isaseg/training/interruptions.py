"""Callbacks by which an interrupted run goes on exactly: checkpoints, random state, validation, signals."""

import logging
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

log = logging.getLogger(__name__)


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


class EndOnSignal(Callback):
    """Answer SIGTERM and Ctrl-C by a checkpoint and the end of the run, after the same step on all devices.

    A second Ctrl-C ends it at once. Lightning's handlers, which this replaces while a run trains, save nothing, and with
    several processes that of SIGTERM calls a collective wherever in a step the signal finds it.

    Args:
        path: The checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = 0  # the signal
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Listen; Lightning puts back what was there before when the run ends."""
        self._step = trainer.global_step
        signal.signal(signal.SIGTERM, self._ask)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell had it ignored
            signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save and end after an optimizer step if any process was asked to.

        Raises:
            SIGTERMException, KeyboardInterrupt: Then.
        """
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        if stepped and trainer.strategy.reduce_boolean_decision(bool(self._asked), all=False):
            # what Lightning does after this hook, which is left here: the row of this step
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            self._end(trainer)

    def on_train_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """End if it was asked since the last step, which is saved.

        Raises:
            SIGTERMException, KeyboardInterrupt: Then.
        """
        if trainer.strategy.reduce_boolean_decision(bool(self._asked), all=False):
            raise self._answer()

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save and end; several processes may not have as many batches and go on to a step. Resuming validates anew.

        Raises:
            SIGTERMException, KeyboardInterrupt: Then.
        """
        if self._asked and trainer.world_size == 1:
            self._end(trainer)

    def _end(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        raise self._answer()

    def _answer(self) -> BaseException:
        return KeyboardInterrupt() if self._asked == signal.SIGINT else SIGTERMException()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning("saves a checkpoint after this step and ends; Ctrl-C again ends at once")


def _set_rng(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
