"""What to change if a training step does not fit into memory, computed from its configuration."""

import os
from typing import Any

import torch
from omegaconf import DictConfig

from isaseg.models.attention import InterlacedSparseAttention, SelfAttention2d

_MIB = 2**20


def is_exhausted(error: BaseException) -> bool:
    """Return whether the memory of a GPU or of the CPU is exhausted; torch has no class of error for the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def memory_of(device: torch.device) -> int:
    """Return the memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_of_scores(cfg: DictConfig, known: dict[str, Any], world_size: int = 1) -> dict[str, float]:
    """Return the bytes of the attention scores of one training batch of a process, in the precision of the run.

    Args:
        cfg: The configuration.
        known: What `run_facts` returns.
        world_size: Number of processes.

    Returns:
        "this": of the configured module; "dense": of dense attention; "isa": with groups of 8 x 8.
    """
    pictures = cfg.data.batch_size / (world_size * cfg.trainer.accumulate_grad_batches)
    of_one = pictures * (2 if str(cfg.trainer.precision).startswith(("16", "bf16")) else 4)
    size = known["map_height"], known["map_width"]
    with torch.device("meta"):  # the number of scores does not depend on the channels
        dense, isa = SelfAttention2d(8), InterlacedSparseAttention(8, group_size=(8, 8))
    return {
        "this": known["attention_score_mib"] * _MIB / 4 * of_one,  # of float32
        "dense": dense.cost(*size).score_entries * of_one,
        "isa": isa.cost(*size).score_entries * of_one,
    }


def advice(cfg: DictConfig, known: dict[str, Any], world_size: int = 1) -> str:
    """Return what attention takes of a step that needs too much memory, and what to change, the best first, as text."""
    scores = {n: f"{size / _MIB:.0f} MiB" for n, size in memory_of_scores(cfg, known, world_size).items()}
    twice = 2 * cfg.trainer.accumulate_grad_batches
    knobs = []
    if cfg.data.batch_size % (world_size * twice) == 0:
        knobs.append(f"trainer.accumulate_grad_batches={twice} (the same samples a step)")
    if str(cfg.trainer.precision).startswith("32"):
        knobs.append("trainer.precision=bf16-mixed")
    if cfg.attention.get("recompute") is False:
        knobs.append("attention.recompute=true")
    if known["attention_label"] == "dense":
        knobs.append("attention=isa")
    knobs.append(f"a data.crop_size below {list(cfg.data.crop_size)}")
    return (
        f"The scores of {known['attention_label']} on a map of {known['map_height']}x{known['map_width']} take "
        f"{scores['this']} for a batch if they are held (dense: {scores['dense']}, isa-8x8: {scores['isa']}). "
        f"Change, in this order: {', '.join(knobs)}"
    )
