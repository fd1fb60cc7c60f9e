"""What training steps have computed, read from the device for several steps together: logged, and checked."""

import math
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from isaseg.errors import DivergenceError
from isaseg.training._compat import unscales_itself

_MOST = 10  # steps between two readings, so that several processes answer a signal soon


class _Step(NamedTuple):
    """A step that is not read yet: the losses by name, the norm of the gradients and the stop flag are in `numbers`."""

    step: int
    lr: float
    ids: list[str]
    names: list[str]
    numbers: Tensor


class Watch(Callback):
    """Logs the losses and the learning rate, and stops a diverging run with the weights as they were before the bad step.

    A GPU is never waited for between two readings. These are made whenever training logs, but at least every ten steps,
    and before a validation and a checkpoint. Until then it is the device that keeps the weights: the fused optimizers
    of torch take no step while their `found_inf` is 1, which is set by the first loss or gradient that is not finite,
    and stays. Other optimizers have no such switch, and a step of theirs waits for the numbers.

    All processes read the same numbers, so they stop together: one all-reduce per step adds up the losses and the stop
    flags. The norm of the gradients is left in `pl_module.gradient_norm` for their clipping.

    Attributes:
        stop: Set to True where this process is to stop; `stops` becomes True at a reading if any process is.
        read: Whether the step that ends has been read.
    """

    def __init__(self) -> None:
        self.stop = self.stops = self.read = False
        self._ids: list[str] = []
        self._losses: list[dict[str, Tensor]] = []
        self._steps: list[_Step] = []
        self._latest: tuple[_Step, list[float]] | None = None  # that was read
        self._found: Tensor | None = None  # 1 from the step that diverged, else 0
        self._clip: float | None = None
        self._last = 0  # step whose end was handled

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Begin at the step of the checkpoint."""
        self._last, self._clip = trainer.global_step, trainer.gradient_clip_val

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the samples of the batch."""
        self.read = False
        self._ids += batch["id"]

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Note the losses of the batch: `loss` itself is divided by accumulated batches, and scaled in float16."""
        self._losses.append(pl_module.step_losses)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: Any, optimizer: Optimizer
    ) -> None:
        """Note the step, and keep it from the weights unless loss and gradients are finite.

        Raises:
            DivergenceError: At once, if the optimizer cannot be kept from its step on the device.
        """
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        pl_module.gradient_norm = norm = torch.nn.utils.get_total_norm(grads)
        names = list(self._losses[0])
        batches = torch.stack([torch.stack([losses[name] for name in names]) for losses in self._losses])
        numbers = batches.float().mean(0)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # a gradient scaler produces infinity by design, and skips the step
        norm = torch.zeros_like(numbers[0]) if scaler is not None else norm.to(numbers)
        numbers = torch.cat((numbers, norm[None], torch.full_like(norm[None], self.stop)))
        if trainer.world_size > 1:
            torch.distributed.all_reduce(numbers)
            numbers /= trainer.world_size
        ids, self._ids, self._losses = self._ids, [], []
        lr = optimizer.param_groups[-1]["lr"]
        self._steps.append(_Step(trainer.global_step, lr, ids, names, numbers))
        if not _skips(optimizer, numbers.device):
            self._read()
            return
        diverged = (~numbers.isfinite().all()).float()
        self._found = diverged if self._found is None else torch.maximum(self._found, diverged)
        optimizer.found_inf = self._found  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Read and log if it is due."""
        step = trainer.global_step
        if step == self._last:  # of accumulated batches only the last one ends a step
            return
        self._last = step
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        logs = step % every == 0 or step == trainer.max_steps
        if not logs and step % min(every, _MOST):
            return
        self._read()
        if logs and self._latest is not None:
            last, values = self._latest
            # tensors on the CPU: a number would become one on the device, of which the logger would have to read it
            for name, value in zip(last.names, values, strict=False):
                pl_module.log(name, torch.tensor(value), prog_bar=name == "train/loss")
            pl_module.log("train/lr", torch.tensor(last.lr))

    def on_validation_start(self, *args: Any) -> None:
        """Read: weights that have diverged are not worth scoring."""
        self._read()

    def on_save_checkpoint(self, *args: Any) -> None:
        """Read: no checkpoint is written of a run that has diverged."""
        self._read()

    def on_train_end(self, *args: Any) -> None:
        """Read the last steps."""
        self._read()

    def _read(self) -> None:
        """Read the steps that are not read yet.

        Raises:
            DivergenceError: Names the first step that diverged, its learning rate, loss, gradients and samples.
        """
        if self._steps:
            steps, self._steps = self._steps, []
            # here the host waits for the device
            rows = torch.stack([step.numbers for step in steps]).tolist()
            self.read = True
            for step, (*numbers, _) in zip(steps, rows, strict=True):
                if not all(math.isfinite(number) for number in numbers):
                    raise DivergenceError(self._message(step, loss=numbers[0], norm=numbers[-1]))
            self.stops = any(row[-1] > 0 for row in rows)
            self._latest = steps[-1], rows[-1]

    def _message(self, step: _Step, loss: float, norm: float) -> str:
        what = "gradients" if math.isfinite(loss) else "a loss"
        smaller = ", or set trainer.gradient_clip_val=1" if self._clip is None or self._clip > 1 else ""
        return (
            f"expected {what} without NaN or infinity, got loss={loss:g}, gradient norm={norm:g} at "
            f"step {step.step} (lr={step.lr:g}, samples {', '.join(step.ids)}). "
            f"The weights and the last checkpoint are untouched; lower optim.lr{smaller}"
        )


def _skips(optimizer: Optimizer, device: torch.device) -> bool:
    """Return whether an optimizer takes no step on a device while its `found_inf` is 1 there."""
    is_fused = type(optimizer) in (SGD, Adam, AdamW) and all(
        group["fused"] for group in optimizer.param_groups
    )
    # where it unscales float16 by itself, the gradient scaler sets and removes `found_inf`
    return is_fused and not unscales_itself(optimizer) and device.type in ("cpu", "cuda")
