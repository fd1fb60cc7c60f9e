"""What is known of a run before its first step: size, cost, code version, machine. Flat, so that runs compare."""

import copy
import os
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from isaseg import config
from isaseg.models.segmenter import Segmenter
from isaseg.trust import as_words as trust_as_words

_ROOT = Path(__file__).resolve().parents[3]


def run_facts(cfg: DictConfig, segmenter: Segmenter) -> dict[str, Any]:
    """Return the contents of facts.json; `segmenter`, built from `cfg`, is neither run nor changed.

    Nothing random is drawn. Multiply-adds are those of the forward pass of one image of data.crop_size in evaluation,
    without the auxiliary head; the memory of the scores is that of float32. What cannot be known is None.
    """
    attention = segmenter.head.attention
    outside, size = _outside(segmenter, cfg.data.crop_size)
    cost = attention.cost(*size) if size and hasattr(attention, "cost") else None  # type: ignore[operator]
    return {
        "attention_label": config.attention_label(cfg),
        "data": cfg.data.name,
        "backbone": config.backbone_label(cfg),
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in segmenter.parameters()),
        "mult_adds": None if outside is None or cost is None else outside + cost.mult_adds,
        "attention_mult_adds": cost and cost.attention_mult_adds,
        "attention_score_mib": cost and cost.score_entries * 4 / 2**20,
        "git_commit": git_commit(_ROOT),
        "torch": torch.__version__,
        "device": _device_name(cfg),
        "command": _command(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _command() -> str | None:
    """Return the command of this process, with its own folder and its trust; None for a run that Hydra did not start."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    return shlex.join(
        ["isaseg", "train", *config.command_flags(hydra), *hydra.overrides.task, *trust_as_words()]
    )


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout whose top is `folder`, with "+dirty" if a file is changed; None outside one.

    Nothing is locked or written, and no hook or program that the repository names is run.
    """
    if not (folder / ".git").exists():  # a file in a worktree; an installed package has none
        return None
    # git hooks and other tools set GIT_DIR and the like
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = (
        "git -c core.fsmonitor=false --no-optional-locks status --porcelain=v2 --branch --untracked-files=no"
    )
    try:
        text = subprocess.run(
            command.split(), cwd=folder, env=environment, capture_output=True, text=True, timeout=5
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    first, *rest = text.splitlines() or [""]
    commit = first.removeprefix("# branch.oid ")
    if commit in ("", "(initial)"):
        return None
    return commit + ("" if all(line.startswith("#") for line in rest) else "+dirty")


def _outside(segmenter: Segmenter, crop_size: Sequence[int]) -> tuple[int | None, tuple[int, int] | None]:
    """Return the multiply-adds outside the context module and the size of its map; None for what cannot be known.

    Those of the context module are left to its `cost`: what a kernel really does depends on the machine.
    """
    network = copy.deepcopy(segmenter).to("meta").eval()
    strides = getattr(segmenter.backbone, "strides", None)  # a backbone of the user's own need not have them
    sizes: list[Any] = [strides and tuple(-(-side // strides[-1]) for side in crop_size)]
    network.head.attention.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            network(torch.zeros(1, 3, *crop_size, dtype=torch.uint8, device="meta"))
    except Exception:  # a part of the user's own may look at values: no run fails for this number
        return None, sizes[-1]
    inside = counter.get_flop_counts().get(f"{type(network).__name__}.head.attention", {})
    return (counter.get_total_flops() - sum(inside.values())) // 2, sizes[-1]


def _device_name(cfg: DictConfig) -> str:
    accelerator = cfg.trainer.accelerator
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
