"""The private API that this room uses, each with the issue upstream; tests/training/test_optim.py names the versions."""

from torch.optim import Optimizer


def unscaled_by_lightning(optimizer: Optimizer) -> Optimizer:
    """Let Lightning unscale the gradients of a fused optimizer; else it refuses to clip them in mixed precision.

    It refuses even in bf16, which needs no scaling (lightning#21435, since lightning#15555).
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
