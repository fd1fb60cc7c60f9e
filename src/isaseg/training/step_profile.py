"""Where the time of a training step goes: `trainer=profile`."""

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch.profiler import profile, schedule

from isaseg.config import PROFILED
from isaseg.files import write_text

log = logging.getLogger(__name__)

ACTIVE = 4
WAIT, WARM = 2, PROFILED - 2 - ACTIVE  # steps: not profiled, profiled and discarded


class Profile(Callback):
    """Profiles a few steps.

    Writes profile.txt, a table of the operations that take the most time of their own, and profile.json.gz, a trace that
    chrome://tracing and ui.perfetto.dev open, to the trainer's root folder.
    """

    def __init__(self) -> None:
        self._folder = Path()
        self._profiler: Any = None
        self._key = "self_cpu_time_total"

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the profiler, which counts the steps."""
        if trainer.is_global_zero:
            self._folder = Path(trainer.default_root_dir)
            if pl_module.device.type == "cuda":
                self._key = "self_device_time_total"
            steps = schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1)
            self._profiler = profile(schedule=steps, on_trace_ready=self._write)
            self._profiler.start()

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a step."""
        if self._profiler is not None:
            self._profiler.step()

    def on_train_end(self, *_: Any) -> None:
        """Stop; there may have been fewer steps than planned."""
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def on_exception(self, *_: Any) -> None:
        """Stop."""
        self.on_train_end()

    def _write(self, done: Any) -> None:
        write_text(self._folder / "profile.txt", done.key_averages().table(sort_by=self._key, row_limit=40))
        partial = self._folder / ".profile.json.gz"  # torch chooses the format by the name
        done.export_chrome_trace(str(partial))
        partial.replace(self._folder / "profile.json.gz")
        log.info(
            "what takes the time: %s; a trace for ui.perfetto.dev: profile.json.gz",
            self._folder / "profile.txt",
        )
