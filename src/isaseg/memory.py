"""Memory: what glibc does with that of freed tensors, and what to do where there is too little."""

import ctypes
import os
import sys
from typing import Any

import torch
from omegaconf import DictConfig

_MIB = 2**20


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error says that memory is exhausted: of a GPU, or of the CPU, for which torch has no class."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def of_device(device: torch.device) -> int:
    """Return the bytes of memory that a device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def of_scores(cfg: DictConfig, known: dict[str, Any], world_size: int = 1) -> dict[str, float]:
    """Return the bytes of attention's scores in one training batch of a process, in the precision that it trains in.

    With `h w` positions and groups of P_h x P_w, dense attention has (h w)^2 scores, ISA about h w (h w / (P_h P_w) +
    P_h P_w) (paper, section 3.2). Fused kernels hold a part of them at a time.

    Args:
        cfg: The configuration.
        known: What `facts` returns.
        world_size: Number of processes.

    Returns:
        "this": of the configured module; "dense"; "isa": with groups of 8 x 8.
    """
    pictures = cfg.data.batch_size / (world_size * cfg.trainer.accumulate_grad_batches)
    of_one = pictures * (2 if str(cfg.trainer.precision).startswith(("16", "bf16")) else 4)
    positions = known["map_height"] * known["map_width"]
    return {
        "this": known["attention_score_mib"] * _MIB / 4 * of_one,
        "dense": positions**2 * of_one,
        "isa": positions * (positions / 64 + 64) * of_one,
    }


def advice(cfg: DictConfig, known: dict[str, Any], world_size: int = 1) -> str:
    """Return what attention takes of a step that needs too much memory, and what to change, the best first."""
    scores = {name: f"{size / _MIB:.0f} MiB" for name, size in of_scores(cfg, known, world_size).items()}
    share = 2 * world_size * cfg.trainer.accumulate_grad_batches
    knobs = []
    if cfg.data.batch_size % share == 0:
        knobs.append(
            f"trainer.accumulate_grad_batches={2 * cfg.trainer.accumulate_grad_batches} (the same samples a step)"
        )
    if str(cfg.trainer.precision).startswith("32"):
        knobs.append("trainer.precision=bf16-mixed")
    if known["attention_label"] == "dense":
        knobs.append("attention=isa")
    knobs.append(f"a data.crop_size below {list(cfg.data.crop_size)}")
    return (
        f"The scores of {known['attention_label']} on a map of {known['map_height']}x{known['map_width']} take "
        f"{scores['this']} of a batch where they are held (dense: {scores['dense']}, isa-8x8: {scores['isa']}). "
        f"In this order: {', '.join(knobs)}"
    )


def keep_freed_memory() -> None:
    """Ask glibc not to give freed tensors back to the kernel, which costs a tenth of a CPU step in page faults."""
    _mallopt((-3, 2**25), (-1, 2**31 - 1), (-2, 2**26))  # mmap threshold (at most), trim threshold, top pad


def map_every_tensor() -> None:
    """Ask glibc for pages of its own for every tensor, given back when it is freed: a peak then holds nothing freed."""
    _mallopt((-3, 2**16))


def _mallopt(*settings: tuple[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        for parameter, value in settings:
            mallopt(parameter, value)
