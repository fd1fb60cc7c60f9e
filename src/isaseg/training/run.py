"""One training run, from a configuration to a folder with checkpoints, metrics and pictures."""

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, RichModelSummary
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from isaseg import config
from isaseg.checkpoints.loading import load_weights
from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.console import quiet
from isaseg.data.module import SegmentationDataModule
from isaseg.errors import ConfigError, OutOfMemory
from isaseg.files import replace_file
from isaseg.models import context_modules
from isaseg.models.backbone import Backbone
from isaseg.models.segmenter import build_segmenter
from isaseg.models.tensor_files import load_checkpoint
from isaseg.runs import loggers
from isaseg.runs import pictures as report
from isaseg.runs.facts import facts
from isaseg.runs.run_folder import read_metrics, told_complete
from isaseg.training import callbacks, interruptions, out_of_memory
from isaseg.training.memory import keep_freed_memory
from isaseg.training.module import SegmentationModule
from isaseg.training.resume import check_continues, find_resume
from isaseg.training.step_profile import Profile

log = logging.getLogger(__name__)
console = Console(stderr=True)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, validate the best checkpoint, and leave everything in the run folder.

    A run that is complete already returns its metrics at once; one that was interrupted goes on.

    Returns:
        What metrics.json holds.

    Raises:
        IsasegError: For whatever the user can mend, before the first step.
    """
    cfg = config.shortened(cfg)
    config.check(cfg)
    folder = config.run_dir(cfg)
    finished = told_complete(cfg)
    if finished is not None:
        return finished
    keep_freed_memory()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule: SegmentationDataModule = config.build(cfg.data, "data")
    datamodule.bad_samples_file = folder / "bad_samples.txt"
    if cfg.check_data:
        datamodule.check()
    module = build_module(cfg, datamodule)
    resume = find_resume(folder, cfg.resume)
    if resume is not None:
        check_continues(cfg, load_checkpoint(resume).get("config"), resume)
        load_weights(module, resume)  # of another network: told here in one sentence
    known = facts(cfg, module.segmenter)
    run_loggers = config.build(cfg.logger, "logger")(
        run_dir=folder,
        group=cfg.logger.get("group") or cfg.name,
        name=cfg.logger.get("name") or config.run_name(cfg),
        tags=[cfg.data.name, config.attention_label(cfg), cfg.backbone.name],
        config={**_plain(cfg), **{k: v for k, v in known.items() if k not in cfg}},
    )
    try:
        with warnings.catch_warnings():
            quiet()
            trainer = _build_trainer(cfg, folder, run_loggers)
            before = read_metrics(folder) if resume is not None else None
            if cfg.compile:
                _compile(module, trainer)
            _begin(cfg, folder, known)
            _fit(cfg, known, trainer, module, datamodule, resume)
            return _finish(cfg, folder, trainer, module, datamodule, before or {})
    finally:
        loggers.finish_loggers(run_loggers)


def build_module(cfg: DictConfig, datamodule: SegmentationDataModule) -> SegmentationModule:
    """Return the LightningModule for a configuration.

    Raises:
        ConfigError: If a part refuses its arguments.
    """
    backbone: Backbone = config.build(cfg.backbone, "backbone")
    try:
        segmenter = build_segmenter(
            backbone, cfg.data.num_classes, config.build(cfg.attention, "attention"), **_plain(cfg.head)
        )
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"attention or head cannot be built: {error}") from error
    module = SegmentationModule(
        segmenter,
        config.build(cfg.loss, "loss"),
        config.build(cfg.optim, "optim"),
        cfg.data.num_classes,
        cfg.data.ignore_index,
        cfg.aux_weight,
        _plain(cfg.loss)["class_weights"],
        datamodule.groups,
        describe(cfg, datamodule),
        config.identity(cfg),
    )
    # with it the model summary counts FLOPs
    module.example_input_array = torch.zeros(1, 3, *cfg.data.crop_size, dtype=torch.uint8)
    return module


def describe(cfg: DictConfig, datamodule: SegmentationDataModule) -> dict[str, Any] | None:
    """Return what `build_described` takes; None for a network with a part that it would not build."""
    backbone, attention, head = (_plain(node) for node in (cfg.backbone, cfg.attention, cfg.head))
    library, _, name = str(attention["_target_"]).rpartition(".")
    kind = context_modules().get(name)
    if (
        backbone["_target_"] != "isaseg.models.backbone.Backbone"
        or kind is None
        or kind.__module__ != library
    ):
        return None
    for key in ("pretrained", "weights", "weights_sha256"):  # the checkpoint itself has the weights
        backbone.pop(key, None)
    return {
        "backbone": {k: v for k, v in backbone.items() if not k.startswith("_")},
        "attention": {"name": name, **{k: v for k, v in attention.items() if not k.startswith("_")}},
        "num_classes": cfg.data.num_classes,
        "negative_slope": head.pop("negative_slope", 0.0),
        "head": head,
        "data": cfg.data.name,
        "protocol": cfg.recipe.protocol,
        "classes": list(datamodule.classes),
        "palette": datamodule.palette,
    }


def _build_trainer(cfg: DictConfig, folder: Path, run_loggers: list[Any]) -> lightning.Trainer:
    checkpoints = folder / "checkpoints"
    interval = config.validation_interval(cfg)
    left = cfg.trainer.max_steps % interval
    if left:
        log.warning(
            "the last %d steps end in no validation; let trainer.val_check_interval divide max_steps", left
        )
    elif interval != min(cfg.trainer.val_check_interval, cfg.trainer.max_steps):
        log.info("validates every %d steps, so that the last one is validated", interval)
    every = min(cfg.checkpoint_every_n_steps, cfg.trainer.max_steps)
    run_callbacks: list[Callback] = [
        interruptions.RunCheckpoint(checkpoints),
        interruptions.RunCheckpoint(
            checkpoints, interval if every == cfg.trainer.val_check_interval else every
        ),
        interruptions.RngState(),
        interruptions.RepeatValidation(interval),
        callbacks.DivergenceGuard(),
        callbacks.StepTimer(),
        callbacks.progress(),
        RichModelSummary(max_depth=2),
        callbacks.WandbPictures(cfg.callbacks.wandb_pictures),
        interruptions.EndOnSignal(checkpoints / "last.ckpt"),
    ]
    plugins: list[Any] = [DurableCheckpointIO(cfg.trainer.max_steps)]
    if "SLURM_NTASKS" in os.environ and SLURMEnvironment.detect():
        plugins.append(
            SLURMEnvironment(auto_requeue=False)
        )  # its hpc_ckpt files would outrank newer checkpoints
    if cfg.callbacks.profile:
        run_callbacks.append(Profile(folder))
    more: dict[str, Any] = {}
    if cfg.trainer.strategy == "ddp":  # every step runs the same graph, and no gradient is copied
        # torch takes no batch without communication before the graph is known (pytorch#143580)
        static = cfg.trainer.accumulate_grad_batches == 1
        more["strategy"] = DDPStrategy(static_graph=static, gradient_as_bucket_view=True)
    trainer: lightning.Trainer = config.build(
        cfg.trainer,
        "trainer",
        **more,
        val_check_interval=interval * cfg.trainer.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        log_every_n_steps=min(cfg.trainer.log_every_n_steps, cfg.trainer.max_steps),
        use_distributed_sampler=False,
        default_root_dir=str(folder),
        logger=run_loggers,
        callbacks=run_callbacks,
        plugins=plugins,
    )
    return trainer


def _compile(module: SegmentationModule, trainer: lightning.Trainer) -> None:
    """Compile the network as training calls it; scores and pictures come from the network as it is.

    Raises:
        ConfigError: If there is no C++ compiler, which a CPU needs.
    """
    if trainer.strategy.root_device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ConfigError(
                "expected a C++ compiler for compile=true on a CPU, found none; install g++, or set "
                "compile=false"
            ) from error
    network: Any = module.segmenter
    network.coarse_with_aux = torch.compile(network.coarse_with_aux)


def _fit(
    cfg: DictConfig,
    known: dict[str, Any],
    trainer: lightning.Trainer,
    module: SegmentationModule,
    datamodule: SegmentationDataModule,
    resume: Path | None,
) -> None:
    has = out_of_memory.memory_of(trainer.strategy.root_device)
    advice = out_of_memory.advice(cfg, known, trainer.world_size)
    if out_of_memory.memory_of_scores(cfg, known, trainer.world_size)["this"] > has:
        log.warning("the device has %d MiB of memory. %s", has / 2**20, advice)
    try:
        trainer.fit(module, datamodule, ckpt_path=resume)
    except (RuntimeError, MemoryError) as error:
        if "deterministic" in str(error) and cfg.trainer.deterministic is True:
            first = str(error).split(". ")[0]
            raise ConfigError(
                f"expected operations that repeat exactly because trainer.deterministic=true, got: {first}. "
                "Replace the part that uses it, or set trainer.deterministic=warn, which says so and goes on"
            ) from error
        if not out_of_memory.is_exhausted(error):
            raise
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise OutOfMemory(
            f"expected a step to fit into memory, got none left at step {trainer.global_step} ({first}). {advice}"
        ) from error


def _finish(
    cfg: DictConfig,
    folder: Path,
    trainer: lightning.Trainer,
    module: SegmentationModule,
    datamodule: SegmentationDataModule,
    before: dict[str, Any],
) -> dict[str, Any]:
    """Score the best checkpoint and write metrics.json, confusion.json, the pictures and the table.

    `before` is the metrics.json of a run that was complete already and is continued, with no step or with more.
    """
    on_gpu = module.device.type == "cuda"
    peak = {"peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20} if on_gpu else {}
    best = folder / "checkpoints" / "best.ckpt"
    if not best.exists():  # cut between the last step and the first validation, or its score was always NaN
        best = folder / "checkpoints" / "last.ckpt"
    step = load_weights(module, best)["global_step"]
    timer = next(c for c in trainer.callbacks if isinstance(c, callbacks.StepTimer))  # type: ignore[attr-defined]
    (values,) = trainer.validate(module, datamodule, verbose=False)
    scores = module.last_scores
    if cfg.score_test and datamodule.has_test:
        values = {**values, **trainer.test(module, datamodule, verbose=False)[0]}
    seconds = timer.seconds_per_step
    if math.isnan(seconds):  # no step was left to train
        seconds = before.get("seconds_per_step") or seconds
    speed = {"seconds_per_step": seconds, **peak}
    metrics = report.metrics({**values, "step": step, **speed}, datamodule.classes, scores)
    if not trainer.is_global_zero:
        return metrics
    table = report.class_table(datamodule.classes, scores)
    report.save_pictures(module.segmenter, datamodule, folder / "pictures", cfg.callbacks.pictures)
    report.plot_curves(folder / "metrics.csv", folder / "curves.png")
    report.log_classes(trainer.loggers, datamodule.classes, scores)
    for logger in trainer.loggers:
        logger.log_metrics({"best/step": step, **speed})
    report.write_confusion(folder / "confusion.json", datamodule.classes, scores["matrix"])
    report.write_json(folder / "metrics.json", metrics)  # last: with it the run counts as finished
    console.print(table)
    console.print(
        f"mIoU [bold]{values['val/mIoU']:.4f}[/] on validation"
        + (f", {values['test/mIoU']:.4f} on test" if "test/mIoU" in values else "")
        + f" (best checkpoint, step {step}). Everything is in [bold]{folder}[/]"
    )
    return metrics


def _begin(cfg: DictConfig, folder: Path, known: dict[str, Any]) -> None:
    """Write what is known and remove what could be taken for a part of this run; nothing can be refused any more."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # another run of this process
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("metrics.json", "confusion.json", "failed.txt"):  # of fewer steps, or without the test split
        (folder / name).unlink(missing_ok=True)
    if cfg.resume == "never":
        for path in (
            *folder.glob("checkpoints/*.ckpt*"),
            folder / "metrics.csv",
            folder / "wandb_id.txt",
            folder / "bad_samples.txt",
        ):
            path.unlink(missing_ok=True)
    with replace_file(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(cfg, resolve=True).encode())
    report.write_json(folder / "facts.json", known)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
