"""From which checkpoint an interrupted run continues, and whether it may."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from isaseg import config
from isaseg.errors import CheckpointError
from isaseg.models.tensor_files import load_checkpoint

log = logging.getLogger(__name__)

# Of two at the same step, best.ckpt is the later one: it is written after the validation and knows the best score.
_NAMES = ("best.ckpt", "last.ckpt")

# These keys change how far a run goes and where its files are, not what its steps compute,
_LONGER = (
    "name",
    "trainer.max_steps",
    "trainer.val_check_interval",
    "data.max_steps",
    "data.root",
    "data.source.root",
)
# and these change how numbers are rounded.
_ROUNDING = (
    "trainer.precision",
    "trainer.deterministic",
    "trainer.benchmark",
    "trainer.sync_batchnorm",
)


def find_resume(run_dir: Path, resume: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint to continue from and what it holds, or None to start from scratch; logs which of the two.

    Temporary files that a killed run left in `run_dir` are removed. A checkpoint that does not load is renamed if another
    one loads, so that the run writes a new one in its place and does not try to beat the score of the old one.

    Args:
        run_dir: Run folder.
        resume: "auto" (the newest in the run folder that loads, if there is any), "must" (the same, but there has
            to be one), "never", or the path of a checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none loads, there is none and there must be, or the path
            does not load. A run never silently starts from scratch.
    """
    folder = run_dir / "checkpoints"
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    if resume == "never":
        return None, {}
    if resume not in ("auto", "must"):
        checkpoint = _read(Path(resume))
        log.info("continues from %s at step %d", resume, checkpoint["global_step"])
        return Path(resume), checkpoint
    newest: Path | None = None
    checkpoint = {}
    rejected: dict[Path, str] = {}
    for path in (folder / name for name in _NAMES if (folder / name).exists()):
        try:
            other = _read(path)
        except CheckpointError as error:
            log.warning("skipped: %s", error)
            rejected[path] = str(error)
            continue
        if newest is None or other["global_step"] > checkpoint["global_step"]:
            newest, checkpoint = path, other
    if newest is not None:
        for path in rejected:
            with suppress(FileNotFoundError):  # another process of this run was first
                path.replace(path.with_name(f"{path.name}.damaged"))
        log.info("continues from %s at step %d", newest, checkpoint["global_step"])
        return newest, checkpoint
    aside = [str(path) for path in folder.glob("*.damaged")]
    if rejected or aside:
        raise CheckpointError(
            f"expected a checkpoint that loads in '{folder}', got {len(rejected) + len(aside)} that do not "
            f"({'; '.join([*rejected.values(), *aside])}); restore one, or start over with resume=never"
        )
    if resume == "must":
        raise CheckpointError(
            f"expected a checkpoint in '{folder}' because resume=must, got none; use resume=auto to start from scratch"
        )
    log.info("no checkpoint in %s: starts from scratch", folder)
    return None, {}


def _read(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint.get("global_step"), int):
        raise CheckpointError(f"expected a training checkpoint, got '{path}', which holds no global_step")
    return checkpoint


def check_continues(cfg: DictConfig, made_with: Any, path: Path) -> None:
    """Check that a checkpoint belongs to the run that `cfg` describes; how long and where it trains may differ.

    Args:
        cfg: The configuration.
        made_with: What `config.identity` returned when the checkpoint was made, as stored in it.
        path: The checkpoint, for the message.

    Raises:
        CheckpointError: Lists each key that differs.
    """
    # as text, since foreign objects may define `==` as they like
    old, new = (
        {key: repr(value) for key, value in config.leaves(plain).items()}
        for plain in (made_with, config.identity(cfg))
    )
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and k not in _LONGER]
    said = {k: f"{k}: {old.get(k, 'nothing')[:80]} -> {new.get(k, 'nothing')[:80]}" for k in changed}
    wrong = [said[key] for key in changed if key not in _ROUNDING]
    if wrong:
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise CheckpointError(
            f"expected the configuration with which '{path}' was made, got other values (old -> new): "
            f"{', '.join(wrong[:20])}{more}; give the old ones, or start over with resume=never"
        )
    if changed:
        log.warning("continues, but not bit for bit: %s", ", ".join(said.values()))
