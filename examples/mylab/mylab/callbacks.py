"""A callback: any of Lightning's `Callback` classes."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback


class WorstClass(Callback):
    """Logs the lowest IoU of a class as val/worst_IoU after every validation, to metrics.csv and every other logger."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log it."""
        worst = pl_module.last_scores["iou"].nan_to_num(1.0).min()  # NaN: the class does not occur
        for logger in trainer.loggers:
            logger.log_metrics({"val/worst_IoU": float(worst)}, trainer.global_step - 1)
