"""The ablation over context modules: which rows, and which runs.

One run is one fresh process of `train.py`, as in any sweep: no random state, cache, thread pool or half-finished logger
of one run can then reach the next, and a run that dies takes nobody with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich.console import Console

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.sweep import jobs as jobs_of_a_sweep
from isaseg.sweep.jobs import quoted
from isaseg.sweep.local import local
from isaseg.sweep.supervise import supervise


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        name: Folder and command-line name.
        label: Name for people.
        panel: Title of the panel of the figure in which it is drawn.
        milliseconds: About how long a step takes on one core: orders the runs and steers the progress bar.
        overrides: What it changes in the experiment.
        times: How many times as long it is trained as ISA: 2 for the rows that do not solve Lamps in the steps that
            ISA needs, 3 where a seed had not settled after 2.
    """

    name: str
    label: str
    panel: str
    milliseconds: int
    overrides: tuple[str, ...]
    times: int = 1


def _isa(group_size: int, order: str = "long_short") -> tuple[str, ...]:
    return ("attention=isa", f"attention.group_size=[{group_size},{group_size}]", f"attention.order={order}")


PANELS = _WHOLE, _STAGE, _CROSS, _OTHER = (
    "dense and ISA",
    "one stage of ISA alone",
    "criss-cross",
    "no attention",
)
ROWS = (
    Row("none", "none", _OTHER, 80, ("attention=none",), 2),
    Row("pyramid", "pyramid pooling", _OTHER, 90, ("attention=pyramid_pooling",), 2),
    Row("short-8", "short-range alone, 8", _STAGE, 120, _isa(8, "short"), 3),
    Row("long-8", "long-range alone, 8", _STAGE, 122, _isa(8, "long"), 2),
    Row("short-16", "short-range alone, 16", _STAGE, 136, _isa(16, "short"), 2),
    Row("long-16", "long-range alone, 16", _STAGE, 120, _isa(16, "long"), 2),
    Row(
        "criss-cross-1",
        "criss-cross, 1 pass",
        _CROSS,
        125,
        ("attention=criss_cross_plain", "attention.passes=1"),
        2,
    ),
    Row(
        "criss-cross-2",
        "criss-cross, 2 passes",
        _CROSS,
        163,
        ("attention=criss_cross_plain", "attention.passes=2"),
    ),
    Row(
        "ccnet-1",
        "CCNet's module, R = 1",
        _CROSS,
        107,
        ("attention=criss_cross", "attention.recurrence=1"),
        2,
    ),
    Row(
        "ccnet-2",
        "CCNet's module, R = 2",
        _CROSS,
        143,
        ("attention=criss_cross", "attention.recurrence=2"),
        2,
    ),
    Row("isa-4", "ISA 4", _WHOLE, 155, _isa(4)),
    Row("isa-8", "ISA 8", _WHOLE, 157, _isa(8)),
    Row("isa-16", "ISA 16", _WHOLE, 164, _isa(16)),
    Row("dense", "dense", _WHOLE, 190, ("attention=dense",)),
)
STEPS = {"lamps": 300, "cards": 2000}  # of a row with times=1
DEFAULT_ROWS = {
    "lamps": tuple(row.name for row in ROWS if row.name != "isa-4"),
    "cards": ("isa-8", "dense"),
}
_VALIDATIONS = {"lamps": 6, "cards": 10}  # of a run, if its steps divide so
DRY_ROWS = ("none", "isa-8")
DRY_STEPS = 10
DRY_OVERRIDES = ("data.val_length=8", "data.batch_size=2")


@dataclass(frozen=True)
class Job:
    """One run: a row with a seed.

    Attributes:
        row: Row of the table.
        seed: Seed.
        steps: Optimizer steps.
        folder: Run folder.
        overrides: All that it changes in the configuration.
    """

    row: Row
    seed: int
    steps: int
    folder: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.row.name} seed {self.seed}"

    @property
    def expected_seconds(self) -> float:
        """How long it may take on one core."""
        return self.row.milliseconds / 1000 * self.steps + 30  # 30: start-up, validations, pictures


def default_rows(data: str, dry: bool) -> tuple[str, ...]:
    """Return the names of the rows that are trained if nobody says which."""
    return DRY_ROWS if dry else DEFAULT_ROWS[data]


def select_rows(names: Sequence[str]) -> list[Row]:
    """Return the rows of these names, in the order of the table.

    Raises:
        ConfigError: If there is no such row.
    """
    known = [row.name for row in ROWS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"expected --rows to be some of {', '.join(known)}, got {unknown[0]}")
    return [row for row in ROWS if row.name in names]


def make_jobs(
    data: str, rows: Sequence[Row], seeds: Sequence[int], steps: int, output: Path, extra: Sequence[str] = ()
) -> list[Job]:
    """Return all the runs, `steps` times `row.times` long, `output`/<row>/seed<seed> their folders."""
    jobs = []
    for row in rows:
        length = steps * row.times
        shortest = max(length // _VALIDATIONS[data], 1)
        # so that the last step is validated
        interval = next(i for i in range(shortest, length + 1) if length % i == 0)
        for seed in seeds:
            folder = output / row.name / f"seed{seed}"
            overrides = (
                f"experiment={data}_isa",
                *row.overrides,
                "logger=csv",
                "score_test=false",  # the table is made of validation alone
                f"trainer.val_check_interval={interval}",
                *extra,  # of two overrides of one key the later holds
                f"seed={seed}",
                f"trainer.max_steps={length}",
                f"run_dir={quoted(folder)}",
                f"output_dir={quoted(output)}",  # Hydra makes this folder
            )
            jobs.append(Job(row, seed, length, folder, overrides))
    return jobs


def compose_job(job: Job) -> DictConfig:
    """Return the configuration that `train.py` will compose for this run.

    Raises:
        HydraException: If an override does not fit; `isaseg.config.explain` puts it into words.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(job.overrides))


def is_finished(job: Job) -> bool:
    """Tell whether the folder holds the metrics of exactly this run: steps, learning rate, everything."""
    if not (job.folder / "metrics.json").is_file():
        return False
    return config.same_run(compose_job(job), job.folder)


def run_jobs(jobs: Sequence[Job], train: Path, parallel: int, console: Console) -> list[Job]:
    """Train what is not finished yet, `parallel` processes at a time, the longest first.

    Args:
        jobs: All the runs.
        train: The script `train.py`.
        parallel: Processes at a time, which share the cores.
        console: Where progress and failures are told.

    Returns:
        The runs that failed.
    """
    longest_first = sorted(jobs, key=lambda job: -job.expected_seconds)
    runs = [_as_run(job) for job in longest_first]
    outcomes = supervise(runs, local(runs, train, slots=parallel), console)
    return [job for job, run in zip(longest_first, runs, strict=True) if outcomes[run].state != "finished"]


def _as_run(job: Job) -> jobs_of_a_sweep.Job:
    """Return the run; what another configuration left in its folder is neither resumed nor its result."""
    cfg = compose_job(job)
    fresh: tuple[str, ...] = ()
    if not config.same_run(cfg, job.folder):
        (job.folder / "metrics.json").unlink(missing_ok=True)
        fresh = ("resume=never",)
    return jobs_of_a_sweep.Job(job.name, job.folder, (*job.overrides, *fresh), cfg)
