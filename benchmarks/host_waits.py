"""A callback that counts how often the steps of a training run wait for the GPU, and where."""

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from isaseg.files import write_text

_WAIT = "called a synchronizing CUDA operation"  # torch's warning where set_sync_debug_mode asks for it
KINDS = {True: "a step that logs", False: "a step that does not log"}


class HostWaits(Callback):
    """Counts the waits of each step from its first hook to that of the next step, so with the transfer of a batch.

    Counted is what torch.cuda.set_sync_debug_mode reports: a value that is read, a copy that is not asynchronous, an
    operation whose result has a size that depends on values. Not counted are torch.cuda.synchronize and what other
    libraries wait for. The last step is left out, because a validation follows it.

    Args:
        path: File to write: for each of `KINDS` the number of `steps`, and in `waits` how often each line of code waited.
        skip: Steps before counting begins.
    """

    def __init__(self, path: str, skip: int = 10) -> None:
        self.path, self.skip = Path(path), skip
        self._steps: Counter[str] = Counter()
        self._waits: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS.values()}
        self._places: list[str] = []  # of the waits since the last step began
        self._show = warnings.showwarning

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        """Count the step that has ended; begin to watch, or end it and write."""
        done = trainer.global_step
        if done > self.skip:
            kind = KINDS[done % trainer.log_every_n_steps == 0]  # type: ignore[attr-defined]
            self._steps[kind] += 1
            self._waits[kind].update(self._places)
        self._places.clear()
        on_gpu = pl_module.device.type == "cuda"
        if done == self.skip:
            warnings.filterwarnings("always", message=_WAIT)  # each time, not once a line
            self._show, warnings.showwarning = warnings.showwarning, self._note
            if on_gpu:
                torch.cuda.set_sync_debug_mode("warn")
        elif done == trainer.max_steps - 1:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
            warnings.showwarning = self._show
            found = {k: {"steps": self._steps[k], "waits": self._waits[k]} for k in KINDS.values()}
            write_text(self.path, json.dumps(found))

    def _note(self, message: Any, *args: Any, **more: Any) -> None:
        if _WAIT in str(message):
            self._places.append(_place(sys._getframe(1)))
        else:
            self._show(message, *args, **more)


def _place(frame: FrameType | None) -> str:
    """Return the line of code that waits, the innermost outside torch and the standard library's warnings."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("torch", "warnings"):
            return f"{'/'.join(file.parts[-3:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "unknown"
