"""What is known of a run before its first step: size, cost, code version, machine. Flat, so that runs can be compared."""

import os
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isaseg import config
from isaseg.models.segmenter import Segmenter

_ROOT = Path(__file__).resolve().parents[3]


def facts(cfg: DictConfig, segmenter: Segmenter) -> dict[str, Any]:
    """Return the contents of facts.json; nothing is run, drawn or changed.

    Multiply-adds are of one image of data.crop_size, forward, in evaluation (without the auxiliary head); of the
    score matrices in float32. What cannot be known is None.

    Args:
        cfg: The configuration.
        segmenter: What was built from it.
    """
    attention = segmenter.head.attention
    outside, height, width = _outside(segmenter, cfg.data.crop_size)
    cost = attention.cost(height, width)  # type: ignore[operator]
    group = cfg.attention.get("group_size") or (None, None)
    return {
        "attention_label": config.attention_label(cfg),
        "data": cfg.data.name,
        "backbone": cfg.backbone.name,
        "seed": cfg.seed,
        "parameters": sum(p.numel() for p in segmenter.parameters()),
        "attention_parameters": sum(p.numel() for p in attention.parameters()),
        "mult_adds": None if outside is None else outside + cost.mult_adds,
        "context_mult_adds": cost.mult_adds,
        "attention_mult_adds": cost.attention_mult_adds,
        "attention_score_mib": cost.score_entries * 4 / 2**20,
        "map_height": height,
        "map_width": width,
        "group_height": group[0],
        "group_width": group[1],
        "git_commit": git_commit(_ROOT),
        "torch": torch.__version__,
        "device": _device_name(cfg),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit of the checkout whose top is `folder`, "+dirty" after it if a file is changed; None outside."""
    if not (folder / ".git").exists():  # a folder in a worktree; an installed package is in nobody's
        return None
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    # `describe --dirty` would lock and write the index, beside what its owner does meanwhile
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not head or changed is None:
        return None
    return f"{head}+dirty" if changed else head


def _git(folder: Path, *words: str) -> str | None:
    """Return what git says in `folder`, None if it fails; it runs nothing that the repository asks for."""
    # a hook of git, or another tool, may have pointed git elsewhere
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", *words],
            cwd=folder,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _outside(segmenter: Segmenter, crop_size: Sequence[int]) -> tuple[int | None, int, int]:
    """Return the multiply-adds outside the context module, None if they cannot be counted, and the size of its map.

    What a kernel does inside depends on the machine (it may pad queries and keys); the module's `cost` does not.
    """
    counter = FlopCounterMode(display=False)
    height, width = (-(-side // segmenter.backbone.strides[-1]) for side in crop_size)
    inside = 0

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal height, width, inside
        height, width = inputs[0].shape[-2:]
        inside -= counter.get_total_flops()

    def leave(*_: Any) -> None:
        nonlocal inside
        inside += counter.get_total_flops()

    attention = segmenter.head.attention
    hooks = [attention.register_forward_pre_hook(enter), attention.register_forward_hook(leave)]
    tensors = {**dict(segmenter.named_parameters()), **dict(segmenter.named_buffers())}
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    image = torch.zeros(1, 3, *crop_size, dtype=torch.uint8, device="meta")
    modes = [(part, part.training) for part in segmenter.modules()]
    try:
        with torch.no_grad(), counter:
            torch.func.functional_call(segmenter.eval(), on_meta, (image,))
        found = (counter.get_total_flops() - inside) // 2
    except Exception:  # a part of somebody's own that looks at values: no run fails for a figure
        return None, height, width
    finally:
        for hook in hooks:
            hook.remove()
        for part, mode in modes:
            part.training = mode
    return found, height, width


def _device_name(cfg: DictConfig) -> str:
    accelerator = cfg.trainer.accelerator
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"
