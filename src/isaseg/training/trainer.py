"""The Lightning trainer of a run, and the compilation of its network."""

import logging
import os
import shutil
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import get_object
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from isaseg import config
from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.config.values import suggest
from isaseg.errors import ConfigError
from isaseg.models.norms import is_absolute, make_absolute, make_plain
from isaseg.training import callbacks, interruptions
from isaseg.training._compat import sends_buffers, without_broadcast_of_signals
from isaseg.training.module import GROUP_SCORES, SCORES, SegmentationModule
from isaseg.training.watch import Watch

log = logging.getLogger(__name__)

# Callbacks that would change what the run has already built and checked, and the key that does the same.
_INSTEAD: dict[type[Callback], str] = {
    BatchSizeFinder: "data.batch_size",
    LearningRateFinder: "optim.lr",
    BaseFinetuning: "backbone.freeze",
    StochasticWeightAveraging: "callbacks=[default,ema]",
    GradientAccumulationScheduler: "trainer.accumulate_grad_batches",
}


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
        # synchronised norms have the same statistics everywhere; what buffers an own part has is not known
        equal = cfg.trainer.get("sync_batchnorm") and all(
            str(cfg[key]["_target_"]).startswith("isaseg.") for key in ("backbone", "attention")
        )
        options["strategy"] = DDPStrategy(
            static_graph=static, gradient_as_bucket_view=True, **sends_buffers(not equal)
        )
    hooks = _callbacks(cfg, folder, interval)
    plugins: list[Any] = [DurableCheckpointIO(max_steps)]
    if cfg.trainer.get("sync_batchnorm"):
        plugins.append(SyncedNorms())
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
    without_broadcast_of_signals(trainer)
    return trainer


class SyncedNorms(TorchSyncBatchNorm):
    """Synchronises batch norms for trainer.sync_batchnorm, and puts the original modules back at the end.

    timm's norms hold an activation too, which torch's own conversion would silently drop. The factor |weight| + eps,
    which neither of them knows, is put back after the conversion.
    """

    def __init__(self) -> None:
        self._own: dict[str, nn.Module] = {}
        self._is_absolute = False

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with synchronised norms."""
        self._own = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
        }
        self._is_absolute = is_absolute(model)
        make_plain(model)
        synced: nn.Module = convert_sync_batchnorm(model)
        if self._is_absolute:
            make_absolute(synced)
        return synced

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model with its own norms, which take over the statistics."""
        for name, own in self._own.items():
            synced = model.get_submodule(name)
            own.train(synced.training)
            for key, value in synced.named_buffers(recurse=False):
                setattr(own, key, value)
            model.set_submodule(name, own)
        if self._is_absolute:
            make_absolute(model)
        self._own = {}
        return model


def _callbacks(cfg: DictConfig, folder: Path, interval: int) -> list[Callback]:
    """Return those of the configuration between those that are always on; Lightning moves checkpoints to the end.

    What they draw follows the random state that is restored, and what they do to gradients is checked. An average of the
    weights comes last of them: the others see it at the end of a validation, before it is swapped back.
    """
    checkpoints = folder / "checkpoints"
    own = [_callback(cfg, name, checkpoints) for name in cfg.get("callbacks", {})]
    _check_monitors(own, _scores(cfg))
    own.sort(key=lambda callback: isinstance(callback, WeightAveraging))
    every = min(cfg.checkpoint_every_n_steps, cfg.trainer.max_steps)
    if every == cfg.trainer.val_check_interval:
        every = interval
    watch = Watch()
    return [
        interruptions.RngState(),
        interruptions.RepeatValidation(interval),
        *own,
        watch,
        callbacks.StepTimer(watch),
        callbacks.EvaluationKernels(),
        *([] if any(isinstance(callback, ProgressBar) for callback in own) else [callbacks.progress()]),
        interruptions.BestCheckpoint(checkpoints),
        interruptions.LastCheckpoint(checkpoints / "last.ckpt", every, watch),
    ]


def _callback(cfg: DictConfig, name: str, checkpoints: Path) -> Callback:
    """Return a callback of the configuration; one that saves checkpoints does so beside those of the run."""
    node, key = cfg.callbacks[name], f"callbacks.{name}"
    built: Callback = config.build(node, key)
    if not isinstance(built, Callback):
        raise ConfigError(
            f"expected {key}._target_ to make a callback of Lightning, got {node._target_}; name a class that inherits "
            "from lightning.pytorch.Callback, without _partial_"
        )
    for kind, instead in _INSTEAD.items():
        if isinstance(built, kind):
            raise ConfigError(
                f"expected {key} to leave the run as it is configured, got {type(built).__name__}; use {instead}"
            )
    if isinstance(built, ModelCheckpoint):
        built.dirpath = built.dirpath or str(checkpoints)  # Lightning would take it from the first logger
        taken = built.filename in ("best", "last") or built.save_last
        if taken and Path(built.dirpath).resolve() == checkpoints.resolve():
            raise ConfigError(
                f"expected {key} to write other files than best.ckpt and last.ckpt, which are the run's own, got "
                f"filename={built.filename}, save_last={built.save_last}; change them, or set {key}.dirpath"
            )
    return built


def _scores(cfg: DictConfig) -> list[str]:
    """Return what a validation logs; those of groups unless it is known that the data set has none."""
    source = OmegaConf.select(cfg, "data.source._target_")
    own = source is not None and not source.startswith("isaseg.")  # it may have them
    return SCORES + GROUP_SCORES if own or getattr(source and get_object(source), "groups", None) else SCORES


def _check_monitors(own: list[Callback], scores: list[str]) -> None:
    """Check what is monitored: a run may begin with a validation, so a callback must monitor what a validation logs.

    A callback of another package may log more, but hardly what is almost the name of a score.
    """
    foreign = any(type(callback).__module__.split(".")[0] not in ("isaseg", "lightning") for callback in own)
    for callback in own:
        monitor = getattr(callback, "monitor", None)
        if not isinstance(callback, EarlyStopping | ModelCheckpoint) or monitor is None or monitor in scores:
            continue
        longer = any(str(monitor).startswith(score) for score in scores)
        near = get_close_matches(str(monitor).lower(), [score.lower() for score in scores], cutoff=0.8)
        if foreign and str(monitor).startswith("val/") and (longer or not near):
            continue
        also = ", or another name of val/... that a callback logs" if foreign else ""
        raise ConfigError(
            f"expected {type(callback).__name__} to monitor one of {', '.join(scores)}{also}, got monitor={monitor}; "
            f"{suggest(str(monitor), scores) or 'name one of these'}"
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
    network.coarse_with_aux = torch.compile(network.coarse_with_aux, dynamic=False)  # crops have one size
