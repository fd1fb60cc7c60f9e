"""The Lightning trainer of a run, and the compilation of its network."""

import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ProgressBar, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from isaseg import config
from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.config.values import suggest
from isaseg.errors import ConfigError
from isaseg.training import callbacks, interruptions
from isaseg.training.module import LOGGED, SegmentationModule

log = logging.getLogger(__name__)


def build_trainer(cfg: DictConfig, folder: Path, loggers: list[Logger]) -> lightning.Trainer:
    """Return the trainer of a configuration, with all callbacks; it writes to the run folder."""
    interval, max_steps = config.validation_interval(cfg), cfg.trainer.max_steps
    if left := max_steps % interval:
        log.warning(
            "the last %d steps are not validated; let trainer.val_check_interval divide max_steps", left
        )
    elif interval != min(cfg.trainer.val_check_interval, max_steps):
        log.info("validates every %d steps, so that the last one is validated", interval)
    options: dict[str, Any] = {}
    if cfg.trainer.strategy == "ddp":  # every step runs the same graph, and no gradient is copied
        # torch takes no batch without communication before the graph is known (pytorch#143580)
        static = cfg.trainer.accumulate_grad_batches == 1
        options["strategy"] = DDPStrategy(static_graph=static, gradient_as_bucket_view=True)
    hooks = _callbacks(cfg, folder, interval)
    plugins: list[Any] = [DurableCheckpointIO(max_steps)]
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        # Lightning's requeueing writes hpc_ckpt files, which would outrank newer checkpoints
        plugins.append(SLURMEnvironment(auto_requeue=False))
    trainer: lightning.Trainer = config.build(
        cfg.trainer,
        "trainer",
        **options,
        val_check_interval=interval * cfg.trainer.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        log_every_n_steps=min(cfg.trainer.log_every_n_steps, max_steps),
        use_distributed_sampler=False,
        default_root_dir=str(folder),
        logger=loggers,
        callbacks=hooks,
        enable_model_summary=False,  # it is the node callbacks.model_summary
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in hooks),
        plugins=plugins,
    )
    return trainer


def _callbacks(cfg: DictConfig, folder: Path, interval: int) -> list[Callback]:
    """Return those of the configuration between those that are always on; Lightning moves checkpoints to the end.

    What they draw follows the random state that is restored, and what they do to gradients is checked. An average of the
    weights comes last of them: the others see it at the end of a validation, before it is swapped back.
    """
    own = [_callback(node, f"callbacks.{name}") for name, node in cfg.get("callbacks", {}).items()]
    _check_monitors(own)
    own.sort(key=lambda callback: isinstance(callback, WeightAveraging))
    checkpoints = folder / "checkpoints"
    every = min(cfg.checkpoint_every_n_steps, cfg.trainer.max_steps)
    if every == cfg.trainer.val_check_interval:
        every = interval
    return [
        interruptions.RngState(),
        interruptions.RepeatValidation(interval),
        *own,
        callbacks.DivergenceGuard(),
        callbacks.StepTimer(),
        *([] if any(isinstance(callback, ProgressBar) for callback in own) else [callbacks.progress()]),
        interruptions.BestCheckpoint(checkpoints),
        interruptions.LastCheckpoint(checkpoints / "last.ckpt", every),
    ]


def _callback(node: DictConfig, key: str) -> Callback:
    built = config.build(node, key)
    if not isinstance(built, Callback):
        raise ConfigError(
            f"expected {key}._target_ to make a callback of Lightning, got {node._target_}; name a class that inherits "
            "from lightning.pytorch.Callback, without _partial_"
        )
    return built


def _check_monitors(own: list[Callback]) -> None:
    """Check what callbacks monitor, unless one is of another package: it may log more."""
    if any(type(callback).__module__.split(".")[0] not in ("isaseg", "lightning") for callback in own):
        return
    for callback in own:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in LOGGED:
            raise ConfigError(
                f"expected {type(callback).__name__} to monitor one of {', '.join(LOGGED)}, got monitor={monitor}; "
                f"{suggest(str(monitor), LOGGED) or 'name one of these'}"
            )


def compile_network(module: SegmentationModule, device: torch.device) -> None:
    """Compile the network as training calls it; scores and pictures come from the network as it is.

    Raises:
        ConfigError: If `device` is a CPU and there is no C++ compiler, which torch needs there.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"expected a C++ compiler for compile=true on a CPU, got no {compiler!r}; install it, name another "
            "one in the environment variable CXX, or set compile=false"
        )
    network: Any = module.segmenter
    network.coarse_with_aux = torch.compile(network.coarse_with_aux)
