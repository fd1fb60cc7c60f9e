"""Write checkpoints so that a crash cannot spoil them: the file on disk is the old one or the new one, whole.

The only file of the project that calls `torch.save`. Reading needs no Lightning and is done in `loading.py`.
"""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from isaseg.errors import CheckpointError
from isaseg.files import replace_file
from isaseg.models.tensor_files import load_checkpoint, reason

log = logging.getLogger(__name__)


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint reader and writer, with atomic writes and safe reads.

    Args:
        final_step: A checkpoint of an earlier step that cannot be written costs a warning, not the run.
    """

    def __init__(self, final_step: int = 0) -> None:
        self.final_step = final_step
        self._held: tuple[Path, dict[str, Any]] | None = None

    def hold(self, path: Path, checkpoint: dict[str, Any]) -> None:
        """Give `checkpoint`, read from `path`, to the next `load_checkpoint` of that path, which then reads nothing."""
        self._held = path, checkpoint

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            CheckpointError: If the checkpoint of the final step cannot be written; an older file is left untouched.
        """
        path = Path(path)
        try:
            with replace_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # on a full disk torch raises RuntimeError
            free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
            message = (
                f"expected to write {path}, got {reason(error)}; {free / 2**20:.0f} MiB are free there and the older "
                "file is untouched. "
            )
            if checkpoint.get("global_step", self.final_step) < self.final_step:
                log.warning("%sTraining continues and tries again at the next checkpoint: make room", message)
                return
            raise CheckpointError(
                f"{message}Make room and run the same command again; it continues from the last checkpoint"
            ) from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`, on the CPU; `weights_only` is always on, whatever the caller passes.

        What `hold` was given is forgotten with it, since Lightning changes it and it is large.

        Raises:
            CheckpointError: If the file is missing, damaged, or holds anything but plain data.
        """
        held, self._held = self._held, None
        return held[1] if held is not None and held[0] == Path(path) else load_checkpoint(Path(path))
