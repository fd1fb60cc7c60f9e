"""The LightningModule: which loss, which metric, which log key. The mathematics is elsewhere."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from isaseg.inference.metrics import MEANS, ConfusionMatrix, SplitScores, group_accuracy
from isaseg.models.contract import takes_align_corners
from isaseg.models.losses import Average, CrossEntropy, resize_logits
from isaseg.models.segmenter import Segmenter
from isaseg.training._compat import unscales_itself
from isaseg.training.optim import Optimization, reschedule

log = logging.getLogger(__name__)

Batch = dict[str, Any]

# What a validation logs, so that a callback may monitor it.
SCORES = ["val/loss", *(f"val/{name}" for name in MEANS)]
GROUP_SCORES = ["val/group_acc", "val/group_acc_far"]


class SegmentationModule(lightning.LightningModule):
    """Train and validate a `Segmenter`.

    Logs val/loss and the `metrics.MEANS` as val/mIoU and so on (fractions) every validation, with val/group_acc and
    val/group_acc_far if the data set has groups; and the same as test/... The losses of a training step are left in
    `step_losses`, by the key under which `watch.Watch` logs them with the rate; the speed is logged by
    `callbacks.StepTimer`.

    Args:
        segmenter: The network.
        loss: Takes logits (B, K, h, w), target (B, H, W) and `align_corners`, by which it resizes the logits; or only the
            first two, and gets logits (B, K, H, W).
        make_optimizer: Returns optimizer and schedule for the network.
        num_classes: K.
        ignore_index: Label of the pixels that do not count.
        aux_weight: Weight of the auxiliary cross-entropy; 0.4 in openseg and mmsegmentation.
        class_weights: Of the auxiliary cross-entropy; in openseg they are those of the main loss.
        average: Of the auxiliary cross-entropy; in mmsegmentation it is that of the main loss.
        groups: Groups of classes, for the group accuracy.
        description: Plain data from which `build_described` rebuilds the network; stored in each checkpoint as `isaseg`,
            so that the file alone suffices.
        config: What defines the run, plain data; stored in each checkpoint as `config`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        loss: Callable[..., Tensor],
        make_optimizer: Callable[[nn.Module], Optimization],
        num_classes: int,
        ignore_index: int = 255,
        aux_weight: float = 0.4,
        class_weights: Sequence[float] | None = None,
        average: Average = "labelled",
        groups: Sequence[Sequence[int]] | None = None,
        description: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.loss = loss
        self._resizes = takes_align_corners(loss)
        self.aux_loss = CrossEntropy(ignore_index, class_weights, average)
        self.aux_weight = aux_weight
        self.make_optimizer = make_optimizer
        self.groups = groups
        self.description, self.config = description, config
        self.confusion = SplitScores(num_classes, ignore_index)
        self.confusion_far = ConfusionMatrix(num_classes, ignore_index)
        # not by Lightning, which would wait for processes without a picture
        self.mean_loss = MeanMetric(nan_strategy="disable")
        self.step_losses: dict[str, Tensor] = {}
        self.gradient_norm = torch.zeros(())

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, K, H, W) for uint8 RGB (B, 3, H, W)."""
        logits: Tensor = self.segmenter(image)
        return logits

    def on_train_start(self) -> None:
        """Give optimizer state from a checkpoint the memory layout of its weights, as fused kernels need.

        Checkpoints written before the weights were channels-last have another.
        """
        for optimizer in self.trainer.optimizers:
            for weight, state in optimizer.state.items():
                for key, value in state.items():
                    if (
                        isinstance(value, Tensor)
                        and value.shape == weight.shape
                        and value.stride() != weight.stride()
                    ):
                        state[key] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch, including the auxiliary loss."""
        logits, aux_logits = self.segmenter.coarse_with_aux(batch["image"])
        mask = batch["mask"].long()
        loss = self._loss(logits, mask)
        parts = {}
        if aux_logits is not None:
            aux = self.aux_loss(aux_logits, mask, self.segmenter.align_corners)
            parts = {"train/loss_aux": aux.detach()}
            loss = loss + self.aux_weight * aux
        self.step_losses = {"train/loss": loss.detach(), **parts}
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients, by the norm that `Watch` has computed already if it is by norm."""
        if not gradient_clip_val or gradient_clip_algorithm == "value" or unscales_itself(optimizer):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)

    def validation_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Score batches, each with images of one size."""
        self._count(batches, "val")

    def test_step(self, batches: list[Batch], batch_idx: int) -> None:
        """Score batches, each with images of one size."""
        self._count(batches, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the split."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of the split."""
        self._score("test")

    def _loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        align_corners = self.segmenter.align_corners
        if self._resizes:
            return self.loss(logits, mask, align_corners=align_corners)
        return self.loss(resize_logits(logits.float(), mask, align_corners), mask)

    def _count(self, batches: list[Batch], split: str) -> None:
        if not batches:  # of a process without a picture: torchmetrics warns of metrics without an update
            nothing = torch.zeros(1, 0, 0, dtype=torch.int64, device=self.device)
            self.mean_loss.update(nothing.float(), 0)
            for metric in (self.confusion, self.confusion_far):
                metric.update(nothing, nothing)
        for batch in batches:
            mask = batch["mask"].long()
            logits = self.segmenter(batch["image"], mask.shape[-2:])
            self.mean_loss.update(self._loss(logits, mask), len(mask))
            prediction = logits.argmax(1)
            self.confusion.update(prediction, mask)
            if self.groups and "far" in batch:
                self.confusion_far.update(prediction, mask.where(batch["far"], self.confusion.ignore_index))

    def _score(self, split: str) -> None:
        self.log(f"{split}/loss", self.mean_loss.compute())
        self.last_scores = self.confusion.compute()
        if self.last_scores["aAcc"].isnan():
            log.warning("no pixel of the %s split has a label that counts, so its scores are NaN", split)
        for name in MEANS:
            self.log(f"{split}/{name}", self.last_scores[name].float(), prog_bar=name == "mIoU")
        if self.groups:
            self.log(f"{split}/group_acc", group_accuracy(self.last_scores["matrix"], self.groups).float())
            far = group_accuracy(self.confusion_far.compute()["matrix"], self.groups)
            if not far.isnan():
                self.log(f"{split}/group_acc_far", far.float())
        self.confusion.reset()
        self.confusion_far.reset()
        self.mean_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the network, the configuration and the number of processes."""
        if self.description is not None:
            checkpoint["isaseg"] = self.description
        checkpoint.update(config=self.config, world_size=self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Follow the schedule of this run if the checkpoint is of fewer steps; warn of another number of processes."""
        made_for = (checkpoint.get("config") or {}).get("trainer", {}).get("max_steps")
        if self.config is not None and made_for not in (None, self.config["trainer"]["max_steps"]):
            reschedule(checkpoint, *self.make_optimizer(self.segmenter))
        before, now = checkpoint.get("world_size", 1), self.trainer.world_size
        if before != now:
            log.warning(
                "continues with %s processes instead of %s: with the same samples, but not bit for bit",
                now,
                before,
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which advances every optimizer step."""
        optimizer, scheduler = self.make_optimizer(self.segmenter)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
