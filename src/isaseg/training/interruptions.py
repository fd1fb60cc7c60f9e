"""Callbacks that let an interrupted run continue exactly: checkpoints, random state, validation, signals."""

import logging
import random
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from isaseg.training.watch import Watch

log = logging.getLogger(__name__)


class BestCheckpoint(ModelCheckpoint):
    """Keeps best.ckpt, of the highest val/mIoU.

    A NaN is never the highest. The score to beat is kept if the folder is moved, and forgotten if best.ckpt is gone. No
    path that a checkpoint names is ever used.

    Args:
        folder: Where it is written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder,
            "best",
            monitor="val/mIoU",
            mode="max",
            save_on_exception=False,
            enable_version_counter=False,
        )

    def check_monitor_top_k(self, trainer: lightning.Trainer, current: Tensor | None = None) -> bool:
        """Return whether to save."""
        if current is not None and not torch.isfinite(current):
            return False
        return super().check_monitor_top_k(trainer, current)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the score to beat if its checkpoint is in this folder."""
        assert self.dirpath is not None
        best, score = Path(self.dirpath) / "best.ckpt", state_dict.get("best_model_score")
        if isinstance(score, Tensor) and best.is_file():
            self.best_model_path = self.kth_best_model_path = str(best)
            self.best_model_score = self.kth_value = score
            self.best_k_models = {str(best): score}


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt every so many steps and after the last one, before the validation of that step.

    If a validation ends the run (early stopping), it is written once more. A run that continues from it ends at once;
    Lightning's trainer would forget that it had stopped (lightning#8278).

    On SIGTERM or Ctrl-C the run saves last.ckpt and ends: a single process after the current step, several after the same
    step, at most ten steps later. A second Ctrl-C ends it at once. During training this replaces Lightning's handlers,
    which save nothing and, with several processes, call a collective wherever in a step SIGTERM arrives.

    Args:
        path: The file.
        every_n_steps: How often.
        watch: Tells several processes that one of them has received a signal.
    """

    def __init__(self, path: Path, every_n_steps: int, watch: Watch) -> None:
        self.path, self.every_n_steps, self.watch = path, every_n_steps, watch
        self._step = 0
        self._signal = 0  # that was received
        self._ending = False
        self._stopped = False  # by a callback, before the run was interrupted

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Note whether a callback has stopped the run."""
        checkpoint["stopped"] = trainer.should_stop

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Take that over."""
        self._stopped = checkpoint.get("stopped", False)

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Install the handlers; Lightning restores the former ones when the run ends."""
        trainer.should_stop |= self._stopped
        self._step = trainer.global_step
        signal.signal(signal.SIGTERM, self._receive)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
            signal.signal(signal.SIGINT, self._receive)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save if it is due, or if any process has received a signal."""
        step = trainer.global_step
        if step == self._step:  # of accumulated batches only the last one ends a step
            return
        self._step = step
        # the run ends at the next hook below: first, Lightning logs the row of this step
        self._ending = self.watch.stops if trainer.world_size > 1 else bool(self._signal)
        if self._ending or step % self.every_n_steps == 0 or step == trainer.max_steps:
            trainer.save_checkpoint(self.path)

    def on_train_batch_start(self, *args: Any) -> None:
        """End the run if it was saved for that.

        Raises:
            SIGTERMException, KeyboardInterrupt: To end it.
        """
        if self._ending:
            self._end()

    def on_validation_start(self, *args: Any) -> None:
        """End the run likewise: a validation may be due at the step that was saved."""
        self.on_train_batch_start()

    def on_train_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """End the run also if the signal came after its last step, which is saved.

        Raises:
            SIGTERMException, KeyboardInterrupt: To end it.
        """
        if trainer.strategy.reduce_boolean_decision(self._ending or bool(self._signal), all=False):
            self._end()

    def on_validation_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Save if the validation ends the run."""
        if trainer.should_stop and trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path)

    def on_validation_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Save and end; the resumed run validates anew.

        Several processes go on to the next step, since they may not have equally many batches.

        Raises:
            SIGTERMException, KeyboardInterrupt: To end it.
        """
        if self._signal and trainer.world_size == 1:
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                # meanwhile it holds the weights of training, which would be saved as the average
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            trainer.save_checkpoint(self.path)
            self._end()

    def _end(self) -> None:
        raise KeyboardInterrupt() if self._signal == signal.SIGINT else SIGTERMException()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signal, self.watch.stop = number, True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning("saving a checkpoint after this step, then ending; Ctrl-C again ends at once")


class RngState(Callback):
    """Lets each training batch draw from the random state that the one before it left, and keeps it in checkpoints.

    So a resumed run draws what it would have drawn, and how often a run validates does not change how it trains. NumPy's
    global generator is not kept because nothing here uses it. All processes are seeded alike, so all but the first begin
    with a state of their own; otherwise their dropout masks would be the same.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._loaded: list[dict[str, Any]] = []  # of each process

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch (CPU and GPU) and of `random` after the last batch, with those of other processes."""
        if not torch.distributed.is_initialized():
            return self._state
        states: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, self._state)
        return {**states[0], "others": states[1:]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the states of the run that is continued."""
        first = {key: value for key, value in state_dict.items() if key != "others"}
        self._loaded = [first, *state_dict.get("others", [])]

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Begin with the state of this process in the checkpoint, if it had one."""
        if trainer.global_rank < len(self._loaded):
            self._state = self._loaded[trainer.global_rank]

    def on_train_batch_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Restore the state: making loaders and validating draw numbers too."""
        if self._state:
            torch.set_rng_state(self._state["torch"].cpu())
            if self._state["cuda"] is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(self._state["cuda"].cpu())
            version, internal, gauss = self._state["python"]
            random.setstate((version, tuple(internal), gauss))
        elif trainer.global_rank:
            own = np.random.SeedSequence((torch.initial_seed(), trainer.global_rank, trainer.global_step))
            seed = int(own.generate_state(1, np.uint64)[0])
            torch.manual_seed(seed)
            random.seed(seed)

    def on_train_batch_end(self, *args: Any) -> None:
        """Note the state."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        self._state = {"torch": torch.get_rng_state(), "cuda": cuda, "python": random.getstate()}


class RepeatValidation(Callback):
    """Lets a run that resumes from a checkpoint written before or during a validation begin with that validation.

    Lightning would take a validation that was due after the checkpoint for done, and one that was cut for partly done.

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
        self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """If only the last validation is left, lend the run a step: Lightning would take it for complete."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        if checkpoint["global_step"] == trainer.max_steps and progress["ready"] > progress["completed"]:
            self._lent = 1
            trainer.fit_loop.epoch_loop.max_steps += self._lent

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Record the training batch as complete, and every batch of its validation as not begun."""
        step = trainer.global_step
        if step == self._validated or step % self.every_n_steps:
            return
        loop = checkpoint["loops"]["fit_loop"]
        for counts in (loop["epoch_loop.batch_progress"][which] for which in ("total", "current")):
            counts["completed"] = counts["processed"]
        validation = loop["epoch_loop.val_loop.batch_progress"]
        for which, done in (("total", validation["total"]["completed"]), ("current", 0)):
            validation[which] = {"ready": done + 1, "started": done + 1, "processed": done, "completed": done}
