"""Checkpoint files: written so that a crash cannot spoil them, read so that they cannot run code.

The only file of the project that calls `torch.save` or `torch.load`.
"""

import logging
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from isaseg.errors import CheckpointError
from isaseg.files import replace_file

log = logging.getLogger(__name__)

# Of two at the same step, best.ckpt is the later: it is written after the validation and knows the best score.
_NAMES = ("best.ckpt", "last.ckpt")


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint reader and writer, durable and safe: the file is the old one or the new one, whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            CheckpointError: If it cannot be written; a file that was there before is untouched.
        """
        path = Path(path)
        try:
            with replace_file(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # on a full disk torch raises RuntimeError
            raise CheckpointError(
                f"expected to write {path}, got {_reason(error)}; {_free(path.parent)} are free there and the older "
                "file is untouched. Make room and run the same command again, it continues from the last checkpoint"
            ) from error

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Return the checkpoint at `path`, on the CPU; `weights_only` is always on, whatever the caller says.

        Raises:
            CheckpointError: If the file is missing, damaged, or holds anything but plain data.
        """
        return load_checkpoint(Path(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read tensors, numbers, strings, lists and dicts from a file; nothing in it is executed.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint file, got path='{path}', which does not exist; check the path"
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch itself does not compare the checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"expected a whole checkpoint that holds only plain data, got '{path}': {_reason(error)}; "
            "use another file, or export its state dict with torch.save where it was made"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"expected a dict in '{path}', got {type(checkpoint).__name__}; use another file"
        )
    return checkpoint


def find_resume(run_dir: Path, resume: str) -> Path | None:
    """Return the checkpoint to continue from, or None to start afresh; which of both is logged.

    Temporary files that a killed run left in `run_dir` are removed.

    Args:
        run_dir: Run folder.
        resume: "auto" (the newest in the run folder that loads, if there is any), "must" (the same, but there has
            to be one), "never", or the path of a checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none loads, there is none and there must be, or the path
            does not load. A run never starts from scratch unsaid.
    """
    folder = run_dir / "checkpoints"
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    if resume == "never":
        return None
    if resume not in ("auto", "must"):
        path = Path(resume)
        log.info("continues from %s at step %d", path, _step(path))
        return path
    steps: dict[Path, int] = {}
    rejected = []
    for path in (folder / name for name in _NAMES if (folder / name).exists()):
        try:
            steps[path] = _step(path)
        except CheckpointError as error:
            log.warning("passed over: %s", error)
            rejected.append(str(error))
    if steps:
        newest = max(steps, key=steps.__getitem__)  # the first of equals
        log.info("continues from %s at step %d", newest, steps[newest])
        return newest
    if rejected:
        raise CheckpointError(
            f"expected a checkpoint that loads in '{folder}', got {len(rejected)} that do not ({'; '.join(rejected)}). "
            "Restore one, or start over with resume=never"
        )
    if resume == "must":
        raise CheckpointError(
            f"expected a checkpoint in '{folder}' because resume=must, got none; use resume=auto to start afresh"
        )
    return None


def load_weights(module: nn.Module, path: Path, prefix: str = "") -> dict[str, Any]:
    """Copy weights from a file into `module`, all of them or none.

    Args:
        module: Takes the weights.
        path: A checkpoint with a `state_dict`, or a bare state dict.
        prefix: Only entries whose names begin so are used, without it; "segmenter." takes the network out of a
            training checkpoint.

    Returns:
        The whole checkpoint.

    Raises:
        CheckpointError: If the file does not load, or names or shapes differ; lists all that differ.
    """
    checkpoint = load_checkpoint(path)
    weights = checkpoint.get("state_dict", checkpoint)
    theirs = {
        k.removeprefix(prefix): v
        for k, v in weights.items()
        if k.startswith(prefix) and isinstance(v, Tensor)
    }
    ours = module.state_dict()
    faults = {
        "missing": [k for k in ours if k not in theirs],
        "unexpected": [k for k in theirs if k not in ours],
        "mismatched (file -> model)": [
            f"{k} {tuple(theirs[k].shape)} -> {tuple(v.shape)}"
            for k, v in ours.items()
            if k in theirs and theirs[k].shape != v.shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise CheckpointError(
            f"expected the weights of this model in '{path}', got others. {listed}. "
            "Build the model with the configuration that the file was made with"
        )
    module.load_state_dict(theirs)
    return checkpoint


def _step(path: Path) -> int:
    step = load_checkpoint(path).get("global_step")
    if not isinstance(step, int):
        raise CheckpointError(f"expected a training checkpoint, got '{path}', which holds no global_step")
    return step


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB" if folder.is_dir() else "0 MiB"
