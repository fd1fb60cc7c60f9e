"""What differs between versions of libraries, and the private API that this room uses, each with the issue upstream.

tests/training/test_optim.py names the versions.
"""

import inspect
from typing import Any

import lightning
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer


def unscaled_by_lightning(optimizer: Optimizer) -> Optimizer:
    """Let Lightning unscale the gradients of a fused optimizer; else it refuses to clip them in mixed precision.

    It refuses even in bf16, which needs no scaling (lightning#21435, since lightning#15555).
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def unscales_itself(optimizer: Optimizer) -> bool:
    """Return whether the step of an optimizer unscales float16 gradients, as it tells torch's gradient scaler."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def without_broadcast_of_signals(trainer: lightning.Trainer) -> None:
    """Let several processes not wait for each other before every batch, to ask whether SIGTERM was received.

    Lightning broadcasts that and reads it from the device (lightning#21487, since lightning#20825); here it is
    `interruptions.LastCheckpoint` that handles signals.
    """
    assert hasattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor")
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def sends_buffers(wanted: bool) -> dict[str, Any]:
    """Return the argument of DistributedDataParallel by which the first process sends its buffers before each batch."""
    parameters = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers": wanted}
