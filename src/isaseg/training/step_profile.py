"""Where the time of a training step goes: `trainer=profile`."""

import gzip
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from isaseg.config import PROFILED
from isaseg.files import replace_file

log = logging.getLogger(__name__)

ACTIVE = 4
WAIT, WARM = 2, PROFILED - 2 - ACTIVE  # steps: not profiled, profiled and discarded
_NAMED = 5
_ROWS = 40


class Profile(Callback):
    """Profiles a few steps; logs the operations that take the most time, and writes all of them and a trace.

    Writes profile.txt, a table, and profile.json.gz, which chrome://tracing and ui.perfetto.dev open.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._profiler: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the profiler, which counts the steps."""
        if not trainer.is_global_zero:
            return
        on_gpu = pl_module.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._profiler = profile(
            activities=activities,
            schedule=schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1),
            on_trace_ready=lambda done: self._write(done, on_gpu),
        )
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

    def _write(self, done: Any, on_gpu: bool) -> None:
        events = done.key_averages()
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        with replace_file(self.folder / "profile.txt") as file:
            file.write(events.table(sort_by=key, row_limit=_ROWS).encode())
        with tempfile.TemporaryDirectory() as folder:  # torch chooses the format by the name
            done.export_chrome_trace(f"{folder}/trace.json")
            with replace_file(self.folder / "profile.json.gz") as file:
                file.write(gzip.compress(Path(folder, "trace.json").read_bytes()))
        if on_gpu:  # else an operation and its kernels would both count
            events = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
        for line in top(events, key):
            log.info("%s", line)
        log.info("all of them: %s; a trace for ui.perfetto.dev: profile.json.gz", self.folder / "profile.txt")


def top(events: Sequence[Any], key: str) -> list[str]:
    """Return a line for each of the operations that take the most time of their own, and one for the rest."""
    own = {event.key: getattr(event, key) for event in events if not event.key.startswith("ProfilerStep")}
    total = sum(own.values()) or 1
    first = sorted(own, key=own.__getitem__, reverse=True)[:_NAMED]
    named = [*((name, own[name]) for name in first), ("the rest", total - sum(own[name] for name in first))]
    return [f"{100 * us / total:5.1f} %  {us / 1e3 / ACTIVE:9.1f} ms a batch  {name}" for name, us in named]
