"""Callbacks that show a run (speed, progress, pictures), and one that averages its weights."""

import logging
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar, WeightAveraging
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from isaseg.console import is_share, percent
from isaseg.runs import pictures
from isaseg.runs.guarded_loggers import NeverFatalLogger
from isaseg.training.watch import Watch

log = logging.getLogger(__name__)


class StepTimer(Callback):
    """Measures the seconds per optimizer step, including the data but not validation.

    Logs train/images_per_second (of all devices) and, on a GPU, train/gpu_memory_mib (the peak so far) whenever training
    logs. A GPU runs behind the host until its numbers are read, so the clock is read at that moment.

    Args:
        watch: Reads them.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._last: float | None = None
        self._spans: deque[float] = deque(maxlen=1000)  # seconds per batch
        self._accumulate = 1
        self._batches = self._loaded = 0  # since the clock was read
        self._images, self._seconds, self._logged = 0, 0.0, 0  # since the last log, and its step

    @property
    def seconds_per_step(self) -> float:
        """Median of the last 1000 spans, which a slow start does not move; NaN before the second."""
        return statistics.median(self._spans) * self._accumulate if self._spans else math.nan

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Take the time; log if training does at this step."""
        self._batches += 1
        self._loaded += len(batch["id"]) * trainer.world_size
        self._accumulate = trainer.accumulate_grad_batches
        if self.watch.read or pl_module.device.type == "cpu":
            self._take()
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step != self._logged and step % every == 0 and self._seconds:
            self._logged = step
            speed = torch.tensor(self._images / self._seconds)  # on the CPU: nothing to wait for
            pl_module.log("train/images_per_second", speed, prog_bar=True)
            self._images, self._seconds = 0, 0.0
            if pl_module.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(pl_module.device) / 2**20
                pl_module.log("train/gpu_memory_mib", torch.tensor(peak))

    def on_validation_start(self, *args: Any) -> None:
        """Take the time of the batches before it."""
        if self._batches:
            self._take()

    def on_validation_end(self, *args: Any) -> None:
        """Restart the clock, so that the validation is left out."""
        self._last = None if self._last is None else time.perf_counter()

    def _take(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self._spans.append((now - self._last) / self._batches)
            self._seconds += now - self._last
            self._images += self._loaded
        self._last, self._batches, self._loaded = now, 0, 0


class EvaluationKernels(Callback):
    """Switches cuDNN's search for the fastest kernel off while pictures are scored: it would search for each size."""

    def __init__(self) -> None:
        self._searches = False

    def on_validation_start(self, *args: Any) -> None:
        """Switch it off."""
        self._searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False

    def on_validation_end(self, *args: Any) -> None:
        """Switch it back."""
        torch.backends.cudnn.benchmark = self._searches

    def on_test_start(self, *args: Any) -> None:
        """Switch it off."""
        self.on_validation_start()

    def on_test_end(self, *args: Any) -> None:
        """Switch it back."""
        self.on_validation_end()


class PlainProgress(Callback):
    """Logs what a progress bar would show about every 5 % of the steps, for files and pipes.

    `step 100/1000  train/loss 0.531  val/mIoU 41.2 %`
    """

    def __init__(self) -> None:
        self._step = 0  # of the last line

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Log a line if one is due."""
        step, total = trainer.global_step, trainer.max_steps
        due = step % max(total // 20, 1) == 0 or step == total
        if trainer.is_global_zero and step != self._step and due:
            self._step = step
            shown = [f"{key} {text}" for key, text in _readable(trainer.progress_bar_metrics).items()]
            log.info("%s", "  ".join([f"step {step}/{total}", *shown]))


class BarProgress(RichProgressBar):
    """Lightning's moving bar, with scores in per cent."""

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Return what stands beside the bar."""
        return _readable(super().get_metrics(trainer, pl_module))


def _readable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return metrics as text, fractions in per cent."""
    return {
        key: value
        if isinstance(value, str)
        else f"{percent(value, 1)} %"
        if is_share(key)
        else f"{value:.3g}"
        for key, value in metrics.items()
    }


def progress() -> Callback:
    """Return a moving bar for a terminal, and sparse lines for anything else; both on standard error."""
    return BarProgress(console_kwargs={"stderr": True}) if sys.stderr.isatty() else PlainProgress()


class ValidationPictures(Callback):
    """Sends the same few validation images with truth and prediction to the loggers after every validation.

    Args:
        count: How many; 0 for none.
    """

    def __init__(self, count: NonNegativeInt = 4) -> None:
        self.count = count
        self._samples: list[pictures.Sample] | None = None

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Predict and send, in the first process, if a logger may take them; the weights are still those validated."""
        loggers = [x for x in trainer.loggers if isinstance(x, NeverFatalLogger)]
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not (loggers and self.count and fitting and trainer.is_global_zero):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        network = pl_module.segmenter
        if self._samples is None:
            self._samples = pictures.validation_samples(data, self.count)
        predictions = [pictures.predict_sample(network, sample) for sample in self._samples]
        pictures.log_pictures(loggers, self._samples, predictions, data.source("val"), trainer.global_step)


class EMA(WeightAveraging):
    """Keeps an exponential moving average of the weights, which is what is validated, exported and kept in checkpoints.

    Lightning's EMAWeightAveraging would average integers as fractions and cut these off, so that an index of 3 becomes 2
    (with a decay of 0.9 or 0.9999), and on a GPU it would keep the average in the memory of the CPU. It does not warm up
    either: the average of a short run is mostly of its first weights.

    Args:
        decay: Share of the average that stays at each update; after n updates no more than (1 + n) / (10 + n).
        update_every_n_steps: How often it is updated.
    """

    def __init__(
        self, decay: Annotated[float, Field(ge=0, lt=1)] = 0.999, update_every_n_steps: PositiveInt = 1
    ) -> None:
        def average(averages: list[Tensor], values: list[Tensor], count: Any) -> None:
            """Take a step with tensors of one type."""
            if averages[0].is_floating_point():
                # as TensorFlow's ExponentialMovingAverage(num_updates) warms up; a checkpoint has the count
                now = min(decay, (1 + int(count)) / (10 + int(count)))
                get_ema_multi_avg_fn(now)(averages, values, count)  # type: ignore[no-untyped-call]
            else:
                for old, new in zip(averages, values, strict=True):
                    old.copy_(new)

        super().__init__(multi_avg_fn=average)
        self.update_every_n_steps = update_every_n_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to update after a step; the first one begins the average."""
        return step_idx is not None and step_idx % self.update_every_n_steps == 0

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Make the average where the network will be; Lightning would move that later."""
        pl_module.to(trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)
