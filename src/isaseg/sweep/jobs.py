"""The jobs of a sweep: all composed before anything starts, each only once."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.config.checks import check_sections
from isaseg.errors import ConfigError
from isaseg.trust import as_words, refuse_trust

Compose = Callable[[list[str]], DictConfig]

# A checkout runs its own script, and so its own code, even where another checkout is installed.
_SCRIPT = Path(__file__).parents[2] / "train.py"
_TRAIN = [str(_SCRIPT)] if _SCRIPT.is_file() and _SCRIPT.parent.name == "src" else ["-m", "isaseg.cli.train"]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: Shown to people: the overrides that only this job has, or the name of its run.
        folder: Run folder.
        overrides: Arguments of `train.py`.
        cfg: The configuration that they compose.
    """

    name: str
    folder: Path
    overrides: tuple[str, ...]
    cfg: DictConfig = field(compare=False, repr=False)


def plan(combinations: Sequence[Sequence[str]], compose: Compose) -> list[Job]:
    """Return the job of each combination; combinations that describe one run share a job.

    Args:
        combinations: Overrides of each job.
        compose: Returns the configuration that overrides describe.

    Raises:
        ConfigError: If jobs would share one `run_dir`, or a key or value cannot be right.
        HydraException: If an override does not fit; `isaseg.config.explain` words it.
    """
    found: dict[Path, Job] = {}
    jobs = []
    shared = set.intersection(*map(set, combinations))
    for overrides in combinations:
        refuse_trust(overrides)
        cfg = compose(list(overrides))
        check_sections(cfg)
        folder, run = config.run_dir(cfg), config.run_name(cfg)
        name = " ".join(text for text in overrides if text not in shared) or run
        job = found.setdefault(folder, Job(name, folder, tuple(overrides), cfg))
        if cfg.run_dir is not None and config.run_name(job.cfg) != run:
            raise ConfigError(
                f"expected a folder for each job, got run_dir={cfg.run_dir} for several; give output_dir instead"
            )
        jobs.append(job)
    return jobs


def command(job: Job) -> list[str]:
    """Return the command line that trains `job` on one device; it gives trust even where Slurm passes no environment."""
    return [sys.executable, *_TRAIN, *job.overrides, *as_words(), "hydra.mode=RUN"]


def processes(cfg: DictConfig) -> int | None:
    """Return the number of processes of a run on one machine; None: one for each GPU that it gets.

    Raises:
        ConfigError: If trainer.devices is neither a number nor a list.
    """
    devices = cfg.trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return None
    if str(devices).isdigit() and int(devices) > 0:
        return int(devices)
    raise ConfigError(f"expected trainer.devices as a number, a list, auto or -1, got {devices}")
