"""From Hydra's sweep to jobs and back: shared by the launchers in `hydra_plugins.isaseg_sweeps`."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.types import Override
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console

from isaseg import config
from isaseg.console import say
from isaseg.errors import ConfigError
from isaseg.files import write_text
from isaseg.sweep.jobs import Job, plan
from isaseg.sweep.supervise import Outcome, Runner, ShouldStop, supervise
from isaseg.trust import VARIABLE, refuse_trust

# Runs combinations of overrides, as `launch` does
Launch = Callable[[Sequence[Sequence[str]], ShouldStop | None], list[tuple[Job, Outcome]]]

# Options of the sweep, not passed on to its jobs
_OF_THE_SWEEP = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweeper", "hydra.mode")


def launch(
    hydra_context: HydraContext,
    master: DictConfig,
    combinations: Sequence[Sequence[str]],
    make_runner: Callable[[Sequence[Job]], Runner],
    should_stop: ShouldStop | None = None,
) -> list[tuple[Job, Outcome]]:
    """Run the jobs of a sweep; return for each of `combinations` its job and how that ended.

    Args:
        hydra_context: Composes configurations.
        master: Configuration of the sweep, including the node `hydra`.
        combinations: Overrides of each job.
        make_runner: Called with the jobs; returns what starts them.
        should_stop: See `supervise`.
    """
    console = Console(stderr=True)
    planned = plan_sweep(hydra_context, master, combinations)
    twice = len(planned) - len(set(planned))
    if twice:
        say(console, f"{twice} of {len(planned)} combinations repeat another run")
    flags, name = config.command_flags(master.hydra), sweep_name(master)
    words = [text for text in master.hydra.overrides.hydra if not text.startswith(_OF_THE_SWEEP)]
    refuse_trust(words)
    if VARIABLE in str(OmegaConf.to_container(master.hydra.launcher)):  # its setup, or an option of sbatch
        raise ConfigError(f"expected no trust from a file, got {VARIABLE} in hydra.launcher; remove it")
    jobs = {
        job: replace(job, overrides=(*flags, *job.overrides, *group_words(job, name), *words))
        for job in planned
    }
    runner = make_runner(list(jobs.values()))
    write_members(list(jobs), master)
    outcomes = supervise(list(jobs.values()), runner, console, should_stop)
    return [(job, outcomes[jobs[job]]) for job in planned]


def plan_sweep(
    hydra_context: HydraContext, master: DictConfig, combinations: Sequence[Sequence[str]]
) -> list[Job]:
    """Return the jobs of a sweep, see `plan`, without starting any."""

    def compose(overrides: list[str]) -> DictConfig:
        cfg = hydra_context.config_loader.load_sweep_config(master, overrides)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return config.initialised(cfg, overrides)

    flags = config.command_flags(master.hydra)
    return plan([config.with_experiment(words, flags) for words in combinations], compose)


def check_one_sweep(override: Override) -> None:
    """Check that an override does not name several files of conf/sweep, of which Hydra would read none.

    Raises:
        ConfigError: If it does.
    """
    if override.get_key_element() == "sweep" and override.is_sweep_override():
        raise ConfigError(
            f"expected one file of conf/sweep, got {override.input_line}; run one after the other"
        )


def sweep_name(master: DictConfig) -> str:
    """Return the name of a sweep: that of its file in conf/sweep, or of the sweeper."""
    choices = master.hydra.runtime.choices
    return config.safe_name(str(choices.get("sweep") or choices["hydra/sweeper"]))


def members_file(folders: Sequence[Path], master: DictConfig) -> Path:
    """Return the path of the file that lists the runs of a sweep, in their deepest common folder.

    It is <sweep>.sweep, and <sweep>-<digest of the words>.sweep with other words than `sweep=`.
    """
    name = "-".join([sweep_name(master), *[config.digest(words) for words in [_words(master)] if words]])
    return Path(os.path.commonpath([folder.parent for folder in folders])) / f"{name}.sweep"


def _words(master: DictConfig) -> list[str]:
    """Return the words of a sweep that say what it runs, in any order, without that which chooses its file."""
    return sorted(word for word in master.hydra.overrides.task if not word.startswith("sweep="))


def write_members(jobs: Sequence[Job], master: DictConfig) -> None:
    """Write the run folders of a sweep to its `members_file`, one per line.

    The first line holds the overrides of the sweep. The same sweep again adds to the file.
    """
    path = members_file([job.folder for job in jobs], master)
    header = f"# {' '.join(master.hydra.overrides.task)}"
    held = path.read_text().splitlines()[1:] if path.is_file() else []
    members = dict.fromkeys([*held, *(os.path.relpath(job.folder, path.parent) for job in jobs)])
    write_text(path, "".join(f"{line}\n" for line in [header, *members]))


def group_words(job: Job, sweep: str) -> list[str]:
    """Return the overrides that make the runs of a sweep a group of a logger, unless the user has named a group."""
    group = config.safe_name(f"{job.cfg.name}-{sweep}")
    return [
        f"logger.{name}.{key}='{group}'"
        for name, node in job.cfg.get("logger", {}).items()
        for key in ("group", "experiment_name")
        if node.get(key) == job.cfg.name
    ]
