"""The smallest run that has every part."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STRESS = bool(os.environ.get("ISASEG_STRESS"))  # of `make test-stress`: as often as it takes

SMALL = [
    "backbone=tiny_d8",
    "data.crop_size=[32,32]",
    "data.batch_size=4",
    "data.val_length=2",
    "data.val_batch_size=2",
    "head.channels=16",
    "head.aux_channels=8",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "logger=csv",
    "score_test=false",
    "check_data=false",
    "callbacks.pictures=0",
]


def loaded(path: Path) -> dict[str, Any]:
    """Return a checkpoint."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    """Return the weights of a run's checkpoint."""
    state: dict[str, Tensor] = loaded(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return state


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Tell whether two networks are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
