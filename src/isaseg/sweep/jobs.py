"""The jobs of a sweep: all composed before anything starts, each only once."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.config.checks import check_sections
from isaseg.errors import ConfigError

Compose = Callable[[list[str]], DictConfig]

_TRAIN = ["-m", "isaseg.cli.train"]


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


def plan(
    combinations: Sequence[Sequence[str]], compose: Compose, fixed: Sequence[str] | None = None
) -> tuple[list[Job], list[str]]:
    """Return the job of each combination, and remarks for the user; combinations that describe one run share a job.

    An override is left out where the chosen option of its group does not know the key but another option does: a dense
    model has no group size. This applies only if the override or the option is swept; otherwise it is a mistake.

    Args:
        combinations: Overrides of each job.
        compose: Returns the configuration that overrides describe.
        fixed: The overrides that are not swept; None: those that all combinations share.

    Raises:
        ConfigError: If jobs would share one `run_dir`, or a key or value cannot be right.
        HydraException: If an override does not fit; `isaseg.config.explain` words it.
    """
    found: dict[Path, Job] = {}
    jobs, remarks = [], []
    shared = set.intersection(*map(set, combinations))
    for combination in combinations:
        overrides, cfg, dropped = _composed(
            list(combination), shared if fixed is None else set(fixed), compose
        )
        check_sections(cfg)
        remarks += [f"left out {text}" for text in dropped]
        folder, run = config.run_dir(cfg), config.run_name(cfg)
        name = " ".join(text for text in overrides if text not in shared) or run
        job = found.setdefault(folder, Job(name, folder, tuple(overrides), cfg))
        if cfg.run_dir is not None and config.run_name(job.cfg) != run:
            raise ConfigError(
                f"expected a folder for each job, got run_dir={cfg.run_dir} for several; give output_dir instead"
            )
        jobs.append(job)
    twice = len(jobs) - len(found)
    if twice:
        remarks.append(f"{twice} of {len(jobs)} combinations describe the same run as another one")
    return jobs, list(dict.fromkeys(remarks))


def command(job: Job) -> list[str]:
    """Return the command line that trains `job` on one device."""
    return [sys.executable, *_TRAIN, *job.overrides, "hydra.mode=RUN"]


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


def _composed(
    overrides: list[str], common: set[str], compose: Compose
) -> tuple[list[str], DictConfig, list[str]]:
    dropped: list[str] = []
    while True:
        try:
            return overrides, compose(overrides), dropped
        except ConfigCompositionException as error:
            missing = re.search(r"Could not override '([^']+)'", str(error))
            found = [text for text in overrides if missing and _key(text) == missing.group(1)]
            if not found or not _known_elsewhere(_key(found[0])):
                raise
            group = _key(found[0]).split(".")[0]
            choice = [text for text in overrides if _key(text) == group]
            if common.issuperset([*found, *choice]):  # neither is swept
                raise
            dropped.append(
                f"{found[0]} where it has no meaning, with {', '.join(choice) or f'the {group} given'}"
            )
            overrides = [text for text in overrides if text not in found]


def _key(override: str) -> str:
    (parsed,) = OverridesParser.create().parse_overrides([override])
    return parsed.key_or_group if not parsed.is_add() else ""


def _known_elsewhere(key: str) -> bool:
    """Return whether any option of the group that `key` begins with knows the key."""
    group, _, rest = key.partition(".")
    options = (OmegaConf.load(path) for path in (config.conf_dir() / group).glob("*.yaml"))
    return bool(rest) and any(rest in option for option in options)
