"""The jobs of a sweep: composed before anything starts, none twice, none that is complete."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.errors import ConfigError

Compose = Callable[[list[str]], DictConfig]


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        name: For people.
        folder: Run folder.
        overrides: What `train.py` is given.
        cfg: What it will compose of them.
    """

    name: str
    folder: Path
    overrides: tuple[str, ...]
    cfg: DictConfig = field(compare=False, repr=False)


@dataclass(frozen=True)
class Plan:
    """The jobs, each once, and for every combination that was asked for the number of its job."""

    jobs: list[Job]
    job_of: list[int]
    remarks: list[str]


def plan(combinations: Sequence[Sequence[str]], compose: Compose, fixed: Sequence[str] | None = None) -> Plan:
    """Return the jobs of a sweep.

    An override that the chosen option of its group does not know, but another option of the group does, is left out:
    a dense model has no group size. That holds where the override or the option is swept; where neither is, it is a
    mistake. Combinations that then describe the same run are one job.

    Args:
        combinations: Overrides of each job.
        compose: Gives the configuration of overrides.
        fixed: Those of the overrides that are not swept; None: what all combinations have in common.

    Raises:
        ConfigError: If jobs would share one `run_dir`.
        HydraException: If an override does not fit; `isaseg.config.explain` puts it into words.
    """
    jobs: list[Job] = []
    number_of: dict[Path, int] = {}
    job_of, remarks = [], []
    common = set.intersection(*map(set, combinations)) if fixed is None else set(fixed)
    for combination in combinations:
        overrides, cfg, dropped = _composed(list(combination), common, compose)
        remarks += [f"left out {text}" for text in dropped]
        folder = config.run_dir(cfg)
        if folder not in number_of:
            number_of[folder] = len(jobs)
            jobs.append(Job("", folder, tuple(overrides), cfg))
        elif cfg.run_dir is not None and config.run_name(jobs[number_of[folder]].cfg) != config.run_name(cfg):
            raise ConfigError(
                f"expected a folder for each job, got run_dir={cfg.run_dir} for several; give output_dir instead"
            )
        job_of.append(number_of[folder])
    jobs = [replace(job, name=name) for job, name in zip(jobs, _names(jobs), strict=True)]
    twice = len(combinations) - len(jobs)
    if twice:
        remarks.append(
            f"{twice} of {len(combinations)} combinations describe a run that another one describes too"
        )
    return Plan(jobs, job_of, list(dict.fromkeys(remarks)))


def command(job: Job, script: Path) -> list[str]:
    """Return what a process is started with that trains `job` on one device."""
    return [sys.executable, str(script), *job.overrides, "hydra.mode=RUN"]


def quoted(text: object) -> str:
    """Return a text as the value of an override, whatever is in it."""
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def processes(cfg: DictConfig) -> int | None:
    """Return how many processes a run takes on one machine; None: as many as it is given GPUs.

    Raises:
        ConfigError: If trainer.devices is neither a number nor a list.
    """
    devices = cfg.trainer.devices
    if OmegaConf.is_list(devices):
        return len(devices)
    if devices in ("auto", -1, "-1"):
        return None
    if isinstance(devices, int) and devices > 0:
        return devices
    if isinstance(devices, str) and devices.isdigit():
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
    """Tell whether any option of the group that `key` begins with knows the key."""
    group, _, rest = key.partition(".")
    options = (OmegaConf.load(path) for path in (config.conf_dir() / group).glob("*.yaml"))
    return bool(rest) and any(rest in option for option in options)


def _names(jobs: Sequence[Job]) -> list[str]:
    """Return `isa-8x8 tiny seed 0` and the like, with what is swept besides where that leaves two alike."""
    names = [f"{config.attention_label(j.cfg)} {j.cfg.backbone.name} seed {j.cfg.seed}" for j in jobs]
    common = set.intersection(*(set(job.overrides) for job in jobs))
    return [
        name if names.count(name) == 1 else " ".join([name, *(o for o in job.overrides if o not in common)])
        for name, job in zip(names, jobs, strict=True)
    ]
