"""From which checkpoint an interrupted run continues, and whether it may."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import lightning
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.errors import CheckpointError, ConfigError
from isaseg.models.tensor_files import load_checkpoint
from isaseg.runs.run_folder import read_facts
from isaseg.runs.stale import continued, staleness

log = logging.getLogger(__name__)

# Of two at the same step, best.ckpt is the later one: it is written after the validation and knows the best score.
_NAMES = ("best.ckpt", "last.ckpt")

# May differ when a run continues: how long it trains, what it scores at the end, where its files are.
_MAY_DIFFER = (
    "name",
    "score",
    "trainer.max_steps",
    "trainer.val_check_interval",
    "data.max_steps",
    "data.root",
    "data.source.root",
)
# May differ too, but numbers then round differently.
_ROUNDING = (
    "trainer.precision",
    "trainer.tf32",
    "trainer.deterministic",
    "trainer.benchmark",
    "trainer.sync_batchnorm",
)


class Start(NamedTuple):
    """Where a run starts.

    Attributes:
        path: The checkpoint that it continues from; None: from scratch.
        checkpoint: What the file holds, nothing from scratch.
        cfg: The configuration that the checkpoint has to be of.
    """

    path: Path | None
    checkpoint: dict[str, Any]
    cfg: DictConfig


def find_start(cfg: DictConfig, folder: Path) -> Start:
    """Return where a run starts: see `find_resume`, or with resume=extend, where it has no checkpoint, `find_shorter`.

    Raises:
        CheckpointError: If no checkpoint can be used that should, or one is of another configuration.
        ConfigError: If a run is to be extended in its own folder.
    """
    if cfg.resume == "extend" and _shorter(cfg, folder / "config.yaml") is not None:
        raise ConfigError(
            f"expected a new folder for resume=extend, which leaves the shorter run as it is, got run_dir='{folder}' of "
            "that run; leave run_dir out, or name another folder beside it"
        )
    start = Start(*find_resume(folder, cfg.resume), cfg)
    if cfg.resume == "extend" and start.path is None:
        start = find_shorter(cfg, folder)
    if start.path is not None:
        check_continues(start.cfg, start.checkpoint.get("config", {}), start.path)
    return start


def hand_over(start: Start, trainer: lightning.Trainer) -> None:
    """Let the trainer restore what `start` holds, instead of reading the file again."""
    reader = trainer.strategy.checkpoint_io
    if start.path is not None and isinstance(reader, DurableCheckpointIO):
        reader.hold(start.path, start.checkpoint)


def find_shorter(cfg: DictConfig, folder: Path) -> Start:
    """Return the newest checkpoint of the runs beside `folder` that are the same but for a lower trainer.max_steps.

    Whatever follows from trainer.max_steps in the configuration may differ with it, and trainer.val_check_interval. The
    files of these runs are left as they are.

    Raises:
        CheckpointError: If there is none.
    """
    found, step = Start(None, {}, cfg), -1
    for path in sorted(folder.parent.glob("*/config.yaml")):
        shorter = _shorter(cfg, path)
        if shorter is None or path.parent == folder:
            continue
        newest, other, _ = _newest(path.parent / "checkpoints")
        if newest is not None and other > step:
            found, step = Start(newest, {}, shorter), other
    if found.path is None:
        raise CheckpointError(
            f"expected a checkpoint of the same run of fewer steps than trainer.max_steps={cfg.trainer.max_steps} beside "
            f"'{folder}' because resume=extend, got none; use resume=auto to start from scratch"
        )
    log.info("extends %s from step %d", found.path.parent.parent, step)
    return found._replace(checkpoint=load_checkpoint(found.path, is_checked=True))


def _shorter(cfg: DictConfig, path: Path) -> DictConfig | None:
    """Return `cfg` with the steps of another run's configuration if that makes the two the same run, else None."""
    try:
        held = OmegaConf.load(path)
        steps = {key: held.trainer[key] for key in ("max_steps", "val_check_interval")}
        shorter = OmegaConf.merge(cfg, {"trainer": steps})
        assert isinstance(shorter, DictConfig) and isinstance(held, DictConfig)
        is_same = steps["max_steps"] < cfg.trainer.max_steps and config.run_name(shorter) == config.run_name(
            held
        )
    except Exception:  # cut short or of another version: YAML has many errors for it
        return None
    return shorter if is_same else None


def continued_facts(cfg: DictConfig, folder: Path, start: Start, known: dict[str, Any]) -> dict[str, Any]:
    """Return the facts `known` of a run with what holds of those of the run that it continues; warns if these differ."""
    if start.path is None:
        return known
    of = start.path.resolve().parent.parent
    before = read_facts(of)
    differs = staleness(cfg, before)
    if differs.changed or differs.gone:
        log.warning("continues with %s: the result will be of both", differs.changed or differs.gone)
    extends = before.get("extends")
    if cfg.resume == "extend" and of != folder.resolve():
        extends = {
            "run": of.name,
            "step": start.checkpoint["global_step"],
            "max_steps": start.cfg.trainer.max_steps,
        }
    return known | continued(known, before) | ({"extends": extends} if extends else {})


def find_resume(run_dir: Path, resume: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the checkpoint to continue from and what it holds, or None to start from scratch; logs which of the two.

    Temporary files that a killed run left in `run_dir` are removed. A checkpoint that does not load is renamed if another
    one loads, so that the run writes a new one in its place and does not try to beat the score of the old one.

    Args:
        run_dir: Run folder.
        resume: "auto" (the newest in the run folder that loads, if there is any), "must" (the same, but there has
            to be one), "extend" (as "auto"), "never", or the path of a checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none loads, there is none and there must be, or the path
            does not load. A run never silently starts from scratch.
    """
    folder = run_dir / "checkpoints"
    for stale in folder.glob(".*.tmp"):
        stale.unlink(missing_ok=True)
    if resume == "never":
        return None, {}
    if resume not in ("auto", "must", "extend"):
        checkpoint = _read(Path(resume))
        log.info("continues from %s at step %d", resume, checkpoint["global_step"])
        return Path(resume), checkpoint
    newest, step, rejected = _newest(folder)
    if newest is not None:
        checkpoint = load_checkpoint(newest, is_checked=True)
        for path in rejected:
            with suppress(FileNotFoundError):  # another process of this run was first
                path.replace(path.with_name(f"{path.name}.damaged"))
        log.info("continues from %s at step %d", newest, step)
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
    if resume == "auto":
        log.info("no checkpoint in %s: starts from scratch", folder)
    return None, {}


def _newest(folder: Path) -> tuple[Path | None, int, dict[Path, str]]:
    """Return the newest checkpoint that loads, its step, and those that do not load, each with why.

    Each is checked whole, and no tensor is kept: the one that is chosen is read afterwards, once.
    """
    newest: Path | None = None
    step = -1
    rejected: dict[Path, str] = {}
    for path in (folder / name for name in _NAMES if (folder / name).exists()):
        try:
            other = _read(path, mapped=True)["global_step"]
        except CheckpointError as error:
            log.warning("skipped: %s", error)
            rejected[path] = str(error)
            continue
        if other > step:
            newest, step = path, other
    return newest, step, rejected


def _read(path: Path, mapped: bool = False) -> dict[str, Any]:
    checkpoint = load_checkpoint(path, mapped=mapped)
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
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and k not in _MAY_DIFFER]
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
