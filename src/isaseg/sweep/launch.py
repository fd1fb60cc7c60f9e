"""From Hydra's sweep to jobs and back: shared by the launchers in `hydra_plugins.isaseg_sweeps`."""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict, read_write
from rich.console import Console

from isaseg import config
from isaseg.errors import JobError
from isaseg.files import replace_file
from isaseg.sweep.jobs import Job, Plan, plan, quoted
from isaseg.sweep.supervise import Outcome, Start, Watch, supervise

# Options of the sweep, not passed on to its jobs
_OF_THE_SWEEP = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweeper", "hydra.mode")


def launch(
    hydra_context: HydraContext,
    master: DictConfig,
    combinations: Sequence[Sequence[str]],
    make_start: Callable[[Sequence[Job]], Start],
    watch: Watch | None = None,
) -> list[JobReturn]:
    """Run the jobs of a sweep and return one result for each of `combinations`.

    Args:
        hydra_context: Composes configurations.
        master: Configuration of the sweep, including the node `hydra`.
        combinations: Overrides of each job.
        make_start: Called with the jobs; returns what starts them.
        watch: See `supervise`.
    """
    console = Console(stderr=True)
    words = [text for text in master.hydra.overrides.hydra if not text.startswith(_OF_THE_SWEEP)]
    found = planned(hydra_context, master, combinations)
    for remark in found.remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    flags, name = command_flags(master), sweep_name(master)
    jobs = [
        replace(job, overrides=(*flags, *job.overrides, *_in_wandb(job, name), *words)) for job in found.jobs
    ]
    start = make_start(jobs)
    write_members(jobs, master)
    outcomes = supervise(jobs, start, console, watch)
    return _returns(Plan(jobs, found.job_of, []), combinations, list(outcomes.values()))


def planned(
    hydra_context: HydraContext,
    master: DictConfig,
    combinations: Sequence[Sequence[str]],
    fixed: Sequence[str] | None = None,
) -> Plan:
    """Return the jobs of a sweep, see `plan`, without starting any."""

    def compose(overrides: list[str]) -> DictConfig:
        return _task_config(hydra_context.config_loader.load_sweep_config(master, overrides))

    return plan(combinations, compose, fixed)


def sweep_name(master: DictConfig) -> str:
    """Return the name of a sweep: that of its study, of its file in conf/sweep, or of the sweeper."""
    choices = master.hydra.runtime.choices
    name = master.hydra.sweeper.get("study") or choices.get("sweep") or choices["hydra/sweeper"]
    return config.safe_name(str(name))


def members_file(folders: Sequence[Path], master: DictConfig) -> Path:
    """Return the path of the file that lists the runs of a sweep: <sweep>.sweep, in their deepest common folder."""
    return Path(os.path.commonpath([folder.parent for folder in folders])) / f"{sweep_name(master)}.sweep"


def write_members(jobs: Sequence[Job], master: DictConfig) -> None:
    """Write the run folders of a sweep to its `members_file`, one per line.

    The first line holds the overrides of the sweep. Repeating the same sweep adds to the file, another sweep replaces it.
    """
    path = members_file([job.folder for job in jobs], master)
    header = f"# {' '.join(master.hydra.overrides.task)}"
    lines = path.read_text().splitlines() if path.is_file() else []
    held = lines[1:] if lines[:1] == [header] else []
    members = dict.fromkeys([*held, *(os.path.relpath(job.folder, path.parent) for job in jobs)])
    with replace_file(path) as file:
        file.write("".join(f"{line}\n" for line in [header, *members]).encode())


def _returns(
    found: Plan, combinations: Sequence[Sequence[str]], outcomes: Sequence[Outcome]
) -> list[JobReturn]:
    returns = []
    for combination, number in zip(combinations, found.job_of, strict=True):
        job, outcome = found.jobs[number], outcomes[number]
        result = JobReturn(
            overrides=combination, cfg=job.cfg, working_dir=str(job.folder), task_name=job.name
        )
        if outcome.state == "finished":
            result.status = JobStatus.COMPLETED
            result.return_value = (outcome.metrics or {}).get("val/mIoU")
        else:
            result.status = JobStatus.FAILED
            result.return_value = JobError(f"{job.name}: {outcome.state}, see {job.folder}", outcome.state)
        returns.append(result)
    return returns


def _task_config(full: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(full)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg


def _in_wandb(job: Job, sweep: str) -> list[str]:
    """Return the overrides that name a job in W&B and group the runs of a sweep, unless the user has set them."""
    wanted = {"group": f"{job.cfg.name}-{sweep}", "name": job.name}
    logger = job.cfg.logger
    return [
        f"logger.{key}={quoted(text)}"
        for key, text in wanted.items()
        if key in logger and logger[key] is None
    ]


def command_flags(master: DictConfig) -> list[str]:
    """Return the --config-dir and --config-name that this process was started with."""
    flags = [
        f"--config-dir={source.path}"
        for source in master.hydra.runtime.config_sources
        if source.provider == "command-line"
    ]
    return flags + (
        [] if master.hydra.job.config_name == "train" else [f"--config-name={master.hydra.job.config_name}"]
    )
