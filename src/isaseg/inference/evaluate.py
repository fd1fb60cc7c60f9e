"""Score a network on a split: the table, the confusion matrix, the worst pictures."""

import json
import logging
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, cast

import lightning
import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import NonNegativeInt
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from torch.distributed import all_gather_object, get_world_size, is_initialized

from isaseg import config
from isaseg.checkpoints.loading import Model
from isaseg.config.checks import check_nodes, prepare_devices
from isaseg.console import as_typed, counted, percent, quiet
from isaseg.data.adopted import Data, EvalBatches
from isaseg.data.dataset import Views
from isaseg.data.loader import EvalLoader
from isaseg.errors import CheckpointError, ConfigError
from isaseg.files import replace_file, save_figure
from isaseg.inference.apply import Inference, check_applies, labels_of_views, views
from isaseg.inference.metrics import MEANS, boundary_scores, count_boundary, count_each, known, scores
from isaseg.inference.protocol import inference_of
from isaseg.models.description import other_name
from isaseg.models.segmenter import Segmenter
from isaseg.runs.pictures import Sample, save_picture, stem
from isaseg.runs.scores import class_table, confusion_figure, finite_number

log = logging.getLogger(__name__)
console = Console(stderr=True)
_DRAWN = ("worst", "changed/better", "changed/worse")


class Evaluation(lightning.LightningModule):
    """Label the pictures of a split, and count.

    Args:
        how: How the network is applied.
        data: Has the split.
        stack: Closes the progress bar.

    Attributes:
        scores: At the end, on every process: what `metrics.SplitScores` computes of the whole split.
        pictures: At the end: mIoU and name of each picture, the worst first, and last those where no label counts (NaN).
        images_per_second: Of all processes.
    """

    scores: Mapping[str, Tensor]
    pictures: list[tuple[float, str]]
    images_per_second = math.nan

    def __init__(
        self, segmenter: Segmenter, how: Inference, data: Data, split: str, stack: ExitStack
    ) -> None:
        super().__init__()
        self.segmenter, self.how, self.data, self.split, self.stack = segmenter, how, data, split, stack
        source = data.source(split)
        self.num_classes, self.ignore_index = len(source.classes), source.ignore_index
        size = self.num_classes + 1
        self.matrix = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        self.boundary = torch.zeros(size, size, dtype=torch.int64)
        self.total, self.done = data.length(split), 0
        self.mine: list[tuple[float, str]] = []
        self.advance: Callable[[int], None] = lambda number: None

    def test_dataloader(self) -> EvalLoader | EvalBatches:
        """Return this process' pictures, at the sizes at which the network sees them."""
        place = self.trainer.global_rank, self.trainer.world_size
        number = len(self.how.scales) if self.how.scaling == "file" else 1
        return self.data.eval_loader(self.split, *place, Views(partial(views, how=self.how), number))

    def on_test_start(self) -> None:
        """Start the clock."""
        if self.trainer.is_global_zero:
            self.advance = self.stack.enter_context(counted("evaluate", self.total, "images"))
        self.start = time.perf_counter()

    def test_step(self, batches: list[dict[str, Any]], batch_idx: int) -> None:
        """Count batches, each of pictures of one size."""
        for batch in batches:
            labels = labels_of_views(self.segmenter, batch["views"], batch["size"], self.how)
            what = labels, batch["mask"], self.num_classes, self.ignore_index
            counts, boundary = count_each(*what), count_boundary(*what)
            self.boundary += boundary.cpu()
            counts = known(counts.cpu(), self.ignore_index, batch["mask"])
            self.matrix += counts.sum(0)
            self.mine += [
                (float(scores(c)["mIoU"]), name) for c, name in zip(counts, batch["id"], strict=True)
            ]
        # the other processes are assumed to be as far
        number = min(self.trainer.world_size * len(self.mine), self.total) - self.done
        self.done += number
        self.images_per_second = self.done / (time.perf_counter() - self.start)
        self.advance(number)

    def on_test_epoch_end(self) -> None:
        """Bring together what the processes have counted."""
        matrix, boundary = (
            cast(Tensor, self.trainer.strategy.reduce(counts.to(self.device), reduce_op="sum"))
            for counts in (self.matrix, self.boundary)
        )
        parts: list[list[tuple[float, str]]] = [self.mine]
        if is_initialized():
            parts = [[] for _ in range(get_world_size())]
            all_gather_object(parts, self.mine)
        every = [pair for part in parts for pair in part]
        self.pictures = sorted(every, key=lambda pair: (math.isnan(pair[0]), pair))
        labelled = [score for score, _ in every if not math.isnan(score)]
        each = torch.tensor(fmean(labelled) if labelled else math.nan, dtype=torch.float64)
        self.scores = {**scores(matrix), **boundary_scores(boundary), "image_mIoU": each}


def evaluate_model(cfg: DictConfig, model: Model, other: Model | None = None) -> dict[str, Any]:
    """Score a network on a labelled split, and write everything into the folder of results.

    Args:
        cfg: Of conf/evaluate.yaml.
        model: The network and its description.
        other: A network to compare it with, of the same classes, as cfg.against names it.

    Returns:
        What metrics.json holds; nothing on any process but the first.

    Raises:
        IsasegError: For whatever the user can fix.
    """
    models = [model] if other is None else [model, other]
    _check(cfg, models)
    # the protocol resizes by itself
    own_size = {"val_resize": None} if "val_resize" in cfg.data else {}
    datamodule: Data = config.build(cfg.data, "data", **own_size)
    source = datamodule.source(cfg.split)
    how = inference_of(cfg, source.flip_pairs)
    for each in models:
        check_applies(each.segmenter, how)
    if not datamodule.is_labelled(cfg.split):
        raise ConfigError(
            f"expected a split with labels, got split={cfg.split}, whose labels are not public; "
            f"`{as_typed('isaseg predict')}` writes what is sent to the server"
        )
    for each in models:
        _compare_names(each, source.classes)
    folder = _folder(cfg)
    with warnings.catch_warnings():
        quiet()
        trainer: lightning.Trainer = config.build(
            cfg.trainer,
            "trainer",
            use_distributed_sampler=False,
            default_root_dir=str(folder),
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            # cuDNN would try its algorithms anew for each size of picture; windows have the same
            benchmark=cfg.trainer.get("benchmark") and how.crop_size is not None,
        )
        datamodule.trainer = trainer  # from which its loaders learn the device
        modules = [_tested(each.segmenter, how, datamodule, cfg.split, trainer) for each in models]
    if not trainer.is_global_zero:
        return {}
    for module in modules:
        module.to(trainer.strategy.root_device)  # Lightning took it off the device at the end
    with trainer.precision_plugin.test_step_context():
        return _report(cfg, model, modules, folder)


def _tested(
    segmenter: Segmenter, how: Inference, data: Data, split: str, trainer: lightning.Trainer
) -> Evaluation:
    with ExitStack() as stack:
        module = Evaluation(segmenter.fuse(), how, data, split, stack)
        try:
            trainer.test(module, verbose=False)
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
    return module


def _check(cfg: DictConfig, models: Sequence[Model]) -> None:
    check_nodes(cfg)
    prepare_devices(cfg.trainer)
    config.check_value("split", cfg.split, Literal["train", "val", "test"])
    config.check_value("worst", cfg.worst, NonNegativeInt)
    for model, path in zip(models, (cfg.checkpoint, cfg.against), strict=False):
        classes = model.description["num_classes"]
        if classes != cfg.data.num_classes:
            raise CheckpointError(
                f"expected a network of {cfg.data.num_classes} classes for data={cfg.data.name}, got {classes} in "
                f"'{path}'; set data= to the data set it was trained on"
            )


def _compare_names(model: Model, classes: Sequence[str]) -> None:
    """Warn if the checkpoint and the data set have different names for a class: their order may differ."""
    theirs = model.description.get("classes") or classes
    if (found := other_name(theirs, classes)) is not None:
        log.warning("class %d is '%s' in the checkpoint and '%s' in the data set; are they the same?", *found)


def _folder(cfg: DictConfig) -> Path:
    if cfg.output is not None:
        return Path(str(cfg.output))
    checkpoint = Path(str(cfg.checkpoint)).resolve()
    parents = [checkpoint.parent.parent.name] if checkpoint.parent.name == "checkpoints" else []
    test = OmegaConf.to_container(cfg.test, resolve=True)
    root = cfg.data.get("root") and str(Path(str(cfg.data.root)).expanduser().resolve())
    what = [str(checkpoint), root, cfg.data.get("val_length"), str(cfg.trainer.precision), test]
    name = "_".join([*parents, checkpoint.stem, config.digest(what)])
    return Path(cfg.output_dir) / "evaluate" / f"{cfg.data.name}_{cfg.split}" / config.safe_name(name)


def _report(cfg: DictConfig, model: Model, modules: Sequence[Evaluation], folder: Path) -> dict[str, Any]:
    module, *others = modules
    scores, classes = module.scores, module.data.source(cfg.split).classes
    matrix = scores["matrix"].long()
    for stale in (path for part in _DRAWN for path in (folder / part).glob("*.png")):
        stale.unlink()
    save_figure(confusion_figure(matrix, classes), folder / "confusion.png")
    worst = [pair for pair in module.pictures[: cfg.worst] if not math.isnan(pair[0])]
    _draw(module, [name for _, name in worst], folder / "worst")
    metrics = {
        "checkpoint": str(cfg.checkpoint),
        "kind": model.kind,
        "data": cfg.data.name,
        "split": cfg.split,
        "images": len(module.pictures),
        "images_per_second": module.images_per_second,
        "test": OmegaConf.to_container(cfg.test, resolve=True),
        **{key: finite_number(scores[key]) for key in MEANS},
        **{
            key: {name: finite_number(x) for name, x in zip(classes, scores[key.lower()], strict=True)}
            for key in ("IoU", "acc", "boundary_IoU")
        },
        "worst": [{"id": name, "mIoU": score} for score, name in worst],
        **({"against": _compare(cfg, module, others[0], folder / "changed")} if others else {}),
        "confusion": matrix.tolist(),
    }
    text = json.dumps(metrics, indent=2, allow_nan=False)
    # each row of the confusion matrix on one line
    text = re.sub(r"\[[\d,\s]+\]", lambda row: re.sub(r"\s+", " ", row.group()), text)
    with replace_file(folder / "metrics.json") as file:
        file.write((text + "\n").encode())
    console.print(class_table(classes, scores, f"{cfg.data.name} {cfg.split}"))
    miou, macc, aacc, boundary, each = (percent(metrics[key]) for key in MEANS)
    console.print(
        f"mIoU [bold]{miou}[/] %, mAcc {macc} %, aAcc {aacc} %, boundary mIoU {boundary} %, image mIoU {each} % on "
        f"{metrics['images']} images, {module.images_per_second:.2f} images/s. All is in [bold]{escape(str(folder))}[/]"
        if metrics["mIoU"] is not None
        else "no pixel of the split has a label that counts"
    )
    return metrics


def _compare(cfg: DictConfig, module: Evaluation, other: Evaluation, folder: Path) -> dict[str, Any]:
    """Draw the images that gained and that lost most from `other` to `module`; return both scores of these."""
    before, now = ({name: score for score, name in each.pictures} for each in (other, module))
    gains = sorted((score - before[name], name) for name, score in now.items() if not math.isnan(score))
    kinds = {
        "better": [name for gain, name in reversed(gains) if gain > 0],
        "worse": [name for gain, name in gains if gain < 0],
    }
    found: dict[str, Any] = {"checkpoint": str(cfg.against)}
    found |= {key: finite_number(other.scores[key]) for key in MEANS}
    for kind, names in kinds.items():
        _draw(module, names[: cfg.worst], folder / kind, other.segmenter)
        shown = [{"id": n, "mIoU": now[n], "against": before[n]} for n in names[: cfg.worst]]
        found[kind] = {"images": len(names), "most": shown}
    better, worse = (found[kind]["images"] for kind in kinds)
    console.print(
        f"against '{escape(str(cfg.against))}' (mIoU {percent(found['mIoU'])} %): better on {better} images, worse on "
        f"{worse}; those that changed most are in [bold]{escape(str(folder))}[/]"
    )
    return found


def _draw(module: Evaluation, names: Sequence[str], folder: Path, other: Segmenter | None = None) -> None:
    """Draw images beside truth and prediction, and that of `other` with what changed from wrong to right or back."""
    source = module.data.source(module.split)
    for rank, sample in enumerate(module.data.samples(module.split, names)):
        networks = [module.segmenter] if other is None else [module.segmenter, other]
        images, size = views(sample["image"][None], module.how), tuple(sample["mask"].shape)
        labels = [labels_of_views(n, images, size, module.how)[0].cpu() for n in networks]
        shown = Sample(sample["image"], sample["mask"], sample["id"])
        save_picture(folder / f"{rank:02d}_{stem(shown.id)}.png", shown, labels[0], source, *labels[1:])
