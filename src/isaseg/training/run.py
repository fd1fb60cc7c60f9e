"""One training run, from a configuration to a folder with checkpoints, metrics and pictures."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from isaseg import config
from isaseg.checkpoints.loading import copy_weights
from isaseg.config.checks import check, prepare_devices
from isaseg.console import percent, quiet
from isaseg.data.adopted import Data
from isaseg.errors import ConfigError, OutOfMemory, is_out_of_memory
from isaseg.files import write_text
from isaseg.models.contract import check_one_sample
from isaseg.models.tensor_files import load_checkpoint
from isaseg.runs.facts import run_facts
from isaseg.runs.guarded_loggers import NeverFatalLogger
from isaseg.runs.history import begin_history
from isaseg.runs.loggers import build_loggers, finish_loggers
from isaseg.runs.pictures import save_pictures
from isaseg.runs.run_folder import read_metrics, report_if_complete, with_fresh_start, write_json
from isaseg.runs.scores import class_table, log_classes, plot_curves, run_metrics
from isaseg.runs.stale import origin
from isaseg.training import out_of_memory
from isaseg.training.build import begin_from, build_module
from isaseg.training.callbacks import StepTimer
from isaseg.training.memory import keep_freed_memory
from isaseg.training.module import SegmentationModule
from isaseg.training.resume import continued_facts, find_start, hand_over
from isaseg.training.trainer import build_trainer, compile_network

log = logging.getLogger(__name__)
console = Console(stderr=True)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, score the best or the last checkpoint, and leave everything in the run folder.

    A run that is complete already returns its metrics at once; an interrupted one continues.

    Returns:
        What metrics.json holds.

    Raises:
        IsasegError: For whatever the user can fix; if it is known before the first step, then before it.
    """
    cfg = config.shortened(cfg)
    check(cfg)
    folder = config.run_dir(cfg)
    finished = report_if_complete(cfg)
    if finished is not None:
        return finished
    prepare_devices(cfg.trainer)
    cfg = with_fresh_start(cfg, folder)
    keep_freed_memory()
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = _data(cfg)
    if cfg.check_data:
        datamodule.check()
    module = build_module(cfg, datamodule)
    start = find_start(cfg, folder)
    resume, resumed = start.path, start.checkpoint.get("global_step", 0)
    if resume is not None:
        # reports in one sentence that it is of another network
        copy_weights(module, start.checkpoint, resume)
    known = run_facts(cfg, module.segmenter) | origin(cfg, getattr(datamodule, "find", None))
    known |= begin_from(cfg, module.segmenter, datamodule, resume)
    known = continued_facts(cfg, folder, start, known)
    loggers = build_loggers(cfg, folder, known, resumed)
    try:
        with warnings.catch_warnings():
            quiet()
            trainer = build_trainer(cfg, folder, loggers)
            _check_batch(cfg, module, trainer.world_size)
            hand_over(start, trainer)
            del start  # what it holds is large, and Lightning's from here on
            before = read_metrics(folder) if resume is not None else None
            if cfg.compile:
                compile_network(module, trainer.strategy.root_device)
            _begin(cfg, folder, known)
            _fit(cfg, trainer, module, datamodule, resume)
            metrics, scores = _score(cfg, folder, trainer, module, datamodule, before or {})
            if trainer.is_global_zero:
                _write_results(cfg, folder, trainer, module, datamodule, metrics, scores)
            return metrics
    finally:
        finish_loggers(loggers)


def _data(cfg: DictConfig) -> Data:
    datamodule = config.build(cfg.data, "data")
    if not isinstance(datamodule, Data):
        raise ConfigError(
            f"expected data._target_ to be that of conf/data/_common.yaml or _module.yaml, got {cfg.data['_target_']}; "
            "give a LightningDataModule of your own as data.module, with defaults: [_module]"
        )
    return datamodule


def _check_batch(cfg: DictConfig, module: SegmentationModule, world_size: int) -> None:
    """Check that a norm that is not synchronised gets more than one value a channel."""
    samples = cfg.data.get("batch_size", 0) // (world_size * cfg.trainer.accumulate_grad_batches)
    synced = world_size > 1 and cfg.trainer.get("sync_batchnorm")
    if samples == 1 and not synced:
        check_one_sample(module.segmenter, *cfg.data.crop_size)


def _begin(cfg: DictConfig, folder: Path, known: dict[str, Any]) -> None:
    """Write what is known and remove what could be taken for a part of this run; from here on nothing is refused."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of an earlier run in this process
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return
    folder.mkdir(parents=True, exist_ok=True)
    old = [folder / name for name in ("confusion.json", "failed.txt")]
    old += folder.glob("pictures/*.png")
    if cfg.resume == "never":
        old += folder.glob("checkpoints/*.ckpt*")
        old += [folder / name for name in ("metrics.csv", "wandb_id.txt", "mlflow_id.txt")]
    # metrics.json last: without it, other processes of the run would continue from the checkpoints
    for path in (*old, folder / "metrics.json"):
        path.unlink(missing_ok=True)
    if extends := known.get("extends"):
        begin_history(folder, folder.parent / extends["run"], extends["step"])
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_json(folder / "facts.json", known)


def _fit(
    cfg: DictConfig,
    trainer: lightning.Trainer,
    module: SegmentationModule,
    datamodule: Data,
    resume: Path | None,
) -> None:
    try:
        trainer.fit(module, datamodule, ckpt_path=resume)
    except (RuntimeError, MemoryError) as error:
        if "deterministic" in str(error) and cfg.trainer.deterministic is True:
            first = str(error).split(". ")[0]
            raise ConfigError(
                f"expected operations that repeat exactly because trainer.deterministic=true, got: {first}. "
                "Replace the part that uses it, or set trainer.deterministic=warn, which warns and goes on"
            ) from error
        if not is_out_of_memory(error):
            raise
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise OutOfMemory(
            f"expected a step to fit into memory, got none left at step {trainer.global_step} ({first}). "
            f"{out_of_memory.advice(cfg, trainer.world_size)}"
        ) from error


def _score(
    cfg: DictConfig,
    folder: Path,
    trainer: lightning.Trainer,
    module: SegmentationModule,
    datamodule: Data,
    before: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load and score a checkpoint; return the contents of metrics.json and the scores of the validation split.

    It is the one that `cfg.score` names, or the other if there is none, which metrics.json says.

    `before` is the metrics.json of a run that was complete and is continued: there may be no step left to time.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    timer = next(c for c in callbacks if isinstance(c, StepTimer))
    speed = {"seconds_per_step": timer.seconds_per_step}
    if math.isnan(timer.seconds_per_step):
        speed |= {key: before[key] for key in ("seconds_per_step", "peak_memory_mib") if before.get(key)}
    elif trainer.strategy.root_device.type == "cuda":  # Lightning has taken the network off it
        speed["peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    # there is no best one if the run was cut before its first validation, or its score was always NaN
    held = [folder / "checkpoints" / f"{name}.ckpt" for name in (cfg.score, "last", "best")]
    chosen = next((path for path in held if path.exists()), held[0])
    checkpoint = load_checkpoint(chosen)
    copy_weights(module, checkpoint, chosen)
    step = checkpoint["global_step"]
    del checkpoint  # validation needs its memory
    for logger in trainer.loggers:
        if isinstance(logger, NeverFatalLogger):
            logger.scored = chosen.stem
    # an average of the weights would take the place of what was loaded
    trainer.callbacks = [c for c in callbacks if not isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
    (values,) = trainer.validate(module, datamodule, verbose=False)
    scores = {"val": module.last_scores}
    if cfg.score_test and datamodule.is_labelled("test"):
        values = {**values, **trainer.test(module, datamodule, verbose=False)[0]}
        scores["test"] = module.last_scores
    metrics = run_metrics({**values, "step": step, **speed}, datamodule.classes, scores)
    return {"checkpoint": chosen.stem, **metrics}, scores["val"]


def _write_results(
    cfg: DictConfig,
    folder: Path,
    trainer: lightning.Trainer,
    module: SegmentationModule,
    datamodule: Data,
    metrics: dict[str, Any],
    scores: dict[str, Tensor],
) -> None:
    """Write pictures, curves, confusion.json and metrics.json, and print the table of classes."""
    classes = datamodule.classes
    module.to(trainer.strategy.root_device)  # Lightning has taken it off
    with trainer.precision_plugin.val_step_context():
        save_pictures(module.segmenter, datamodule, folder / "pictures", cfg.pictures)
    plot_curves(folder)
    confusion = {"classes": list(classes), "matrix": scores["matrix"].long().tolist()}  # rows are targets
    write_json(folder / "confusion.json", confusion, indent=None)
    write_json(folder / "metrics.json", metrics)  # last: with it the run counts as finished
    log_classes(trainer.loggers, classes, scores)
    more = {key: metrics.get(key) for key in ("seconds_per_step", "peak_memory_mib")}
    scored, step = metrics["checkpoint"], metrics["step"]
    for logger in trainer.loggers:
        logger.log_metrics({f"{scored}/step": step, **{k: v for k, v in more.items() if v is not None}})
    console.print(class_table(classes, scores, f"validation, {scored} checkpoint"))
    on_test = f", {percent(metrics['test/mIoU'])} % on test" if metrics.get("test/mIoU") is not None else ""
    console.print(
        f"mIoU [bold]{percent(scores['mIoU'])}[/] % on validation{on_test} ({scored} checkpoint, step {step}). "
        f"Everything is in [bold]{escape(str(folder))}[/]"
    )
