"""Jobs on a Slurm cluster: one job array that outlives this process.

Slurm starts one task per device; isaseg.sweep.slurm_task is what a task does.
"""

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import submitit
from omegaconf import DictConfig
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from isaseg import config
from isaseg.config.values import check_keys
from isaseg.errors import ConfigError, one_line
from isaseg.files import write_text
from isaseg.runs.run_folder import read_metrics, write_failure
from isaseg.sweep.jobs import Job, command, processes
from isaseg.sweep.slurm_task import JOB_FILE, Train
from isaseg.sweep.supervise import Process

_ASK_EVERY = 10.0  # seconds between two calls of squeue, however many jobs there are
# the states of jobs that have ended; in any other state a job may still run
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
_REMEDY = {
    "OUT_OF_MEMORY": "raise hydra.launcher.mem_gb",
    "TIMEOUT": "it could not save in time; raise hydra.launcher.signal_delay_s",
}


@dataclass(frozen=True)
class Options:
    """The keys of conf/hydra/launcher/slurm.yaml, which explains them.

    Raises:
        ConfigError: For an invalid value.
    """

    partition: str | None
    account: str | None
    qos: str | None
    timeout_min: PositiveInt
    max_num_timeout: NonNegativeInt
    signal_delay_s: PositiveInt
    cpus_per_task: PositiveInt
    mem_gb: PositiveFloat | None
    array_parallelism: PositiveInt
    setup: list[str]
    additional_parameters: dict[str, Any]

    def __post_init__(self) -> None:
        check_keys("hydra.launcher", vars(self), get_type_hints(Options, include_extras=True), "")
        if self.signal_delay_s >= 60 * self.timeout_min:
            raise ConfigError(
                f"expected hydra.launcher.signal_delay_s below timeout_min ({60 * self.timeout_min} s), "
                f"got {self.signal_delay_s}"
            )


class Slurm:
    """Submits all jobs at once, except those that an earlier sweep submitted and that still run.

    Raises:
        ConfigError: If Slurm is missing, or the configuration does not say how many devices a job needs.
    """

    def __init__(self, jobs: Sequence[Job], options: Options) -> None:
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "hydra/launcher=slurm needs Slurm's sbatch, which was not found; run it on a machine of the cluster"
            )
        self._options = options
        self._needs = {job: need(job) for job in jobs}
        self._queue = _Queue()

    def start(self, waiting: Sequence[Job]) -> dict[Job, Process]:
        """Submit the jobs as arrays, each of jobs with equal needs."""
        numbers = {job: _slurm_job(job.folder) for job in waiting}
        found = {job: number for job, number in numbers.items() if number and self._queue.holds(number)}
        if found:
            print(f"found in Slurm, submitted before: {', '.join(found.values())}", file=sys.stderr)
        new = [job for job in waiting if job not in found]
        for needs in dict.fromkeys(self._needs[job] for job in new):
            found |= self._submit([job for job in new if self._needs[job] == needs], needs)
            self._queue.forget()
        return {job: _SlurmProcess(job, number, self._queue) for job, number in found.items()}

    def interrupt(self, running: Mapping[Job, Process]) -> None:
        """Leave the jobs in the queue."""
        arrays = dict.fromkeys((_slurm_job(job.folder) or "").split("_")[0] for job in running)
        if arrays:
            print(
                "the jobs stay in Slurm; the same command finds them again, "
                f"scancel {' '.join(arrays)} ends them",
                file=sys.stderr,
            )

    def _submit(self, jobs: Sequence[Job], needs: tuple[int, int, int]) -> dict[Job, str]:
        """Submit jobs as one array, write the id of each into its folder, and return the ids."""
        for job in jobs:
            job.folder.mkdir(parents=True, exist_ok=True)
            for name in (JOB_FILE, "failed.txt"):
                (job.folder / name).unlink(missing_ok=True)
        name = config.safe_name(jobs[0].cfg.name)
        executor = submitit.SlurmExecutor(
            Path(jobs[0].cfg.output_dir).resolve() / name / "slurm",
            max_num_timeout=self._options.max_num_timeout,
        )
        executor.update_parameters(job_name=f"isaseg-{name}", **self._parameters(needs))
        devices = f"trainer.devices={needs[1]}"  # replaces "auto" and the ids of another machine
        grace = 0.8 * self._options.signal_delay_s
        tasks = [Train([*command(job), devices], job.folder.resolve(), grace) for job in jobs]
        try:
            submitted = executor.submit_array(tasks)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise ConfigError(
                f"Slurm refused the jobs: {one_line(error)}; correct hydra.launcher.*"
            ) from error
        for job, handle in zip(jobs, submitted, strict=True):
            write_text(job.folder / JOB_FILE, handle.job_id)
            with (job.folder / "log.txt").open("a") as log:
                log.write(f"Slurm job {handle.job_id}, further output is in {handle.paths.stderr}\n")
        array, count = submitted[0].job_id.split("_")[0], f"{len(jobs)} run{'s' * (len(jobs) > 1)}"
        print(f"submitted as Slurm job {array}: {count}; Ctrl-C leaves it in the queue", file=sys.stderr)
        return {job: handle.job_id for job, handle in zip(jobs, submitted, strict=True)}

    def _parameters(self, needs: tuple[int, int, int]) -> dict[str, Any]:
        """Return what submitit asks Slurm for."""
        asked, (nodes, tasks, gpus) = self._options, needs
        wanted = {
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "mem": None if asked.mem_gb is None else f"{round(asked.mem_gb * 1024)}MB",
            "gpus_per_node": gpus or None,
            "nodes": nodes,
            "ntasks_per_node": tasks,
            "time": asked.timeout_min,
            "signal_delay_s": asked.signal_delay_s,
            "cpus_per_task": asked.cpus_per_task,
            "array_parallelism": asked.array_parallelism,
            "setup": asked.setup or None,
            # since Slurm 22.05 srun does not inherit cpus-per-task from sbatch; a failed task ends the others
            "srun_args": [f"--cpus-per-task={asked.cpus_per_task}", "--kill-on-bad-exit=1"],
            "additional_parameters": {"requeue": True, **asked.additional_parameters},
        }
        return {name: value for name, value in wanted.items() if value is not None}


def need(job: Job) -> tuple[int, int, int]:
    """Return how many nodes, and tasks and GPUs per node, a job takes; Lightning expects one task per device.

    Raises:
        ConfigError: If the number of devices is not given.
    """
    trainer: DictConfig = job.cfg.trainer
    tasks = processes(job.cfg)
    if tasks is None:
        raise ConfigError(
            f"{job.name}: expected trainer.devices as a number, got {trainer.devices}; Slurm needs to know how many"
        )
    gpus = tasks if trainer.accelerator in ("gpu", "cuda") else 0
    return trainer.num_nodes, tasks, gpus


class _Queue:
    """The state of all our jobs by squeue, which unlike sacct needs no accounting."""

    def __init__(self) -> None:
        self._silent = False
        self.forget()

    def forget(self) -> None:
        """Ask again at the next call, because there are new jobs."""
        self._asked = -math.inf
        self._jobs: dict[str, tuple[str, int]] | None = None

    def holds(self, number: str) -> bool:
        """Return whether a job waits or runs; True while squeue has not answered."""
        return self.state(number)[0] not in {*_OVER, ""}

    def state(self, number: str) -> tuple[str, int]:
        """Return Slurm's name of the state of a job ("" if there is no such job) and its wait status."""
        if time.monotonic() - self._asked >= _ASK_EVERY:
            self._ask()
            self._asked = time.monotonic()
        return ("UNKNOWN", 0) if self._jobs is None else self._jobs.get(number, ("", 0))

    def _ask(self) -> None:
        words = ["squeue", "--me", "--array", "--states=all", "--noheader"]
        words.append("--Format=JobArrayID:40,State:20,exit_code:20")
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        except (OSError, subprocess.SubprocessError) as error:  # e.g. slurmctld restarts; the jobs run on
            if not self._silent:
                print(f"squeue does not answer, trying again: {error}", file=sys.stderr)
            self._silent = True
            return
        self._silent = False
        rows = (line.split() for line in done.stdout.splitlines())
        self._jobs = {row[0]: (row[1], int(row[2])) for row in rows if len(row) == 3}


@dataclass
class _SlurmProcess:
    job: Job
    number: str
    queue: _Queue

    def poll(self) -> int | None:
        """Return the exit code, None while the job waits or runs; write failed.txt where the job itself could not."""
        state, status = self.queue.state(self.number)
        if state not in {*_OVER, ""}:
            return None
        if state in ("COMPLETED", ""):  # "": Slurm forgets after MinJobAge
            return 0 if state or read_metrics(self.job.folder) else 1
        if state in ("CANCELLED", "PREEMPTED"):
            return 143
        code = os.waitstatus_to_exitcode(status)
        if state != "FAILED":
            remedy = f"; {_REMEDY[state]}" if state in _REMEDY else ""
            write_failure(self.job.folder, f"Slurm job {self.number} ended as {state}{remedy}\n")
        return 128 - code if code > 128 and code != 143 else code or 1  # 137: a task was killed by signal 9

    def terminate(self) -> None:
        """Cancel the job: SIGTERM, and SIGKILL after Slurm's KillWait, 30 s."""
        subprocess.run(["scancel", self.number], check=False)


def _slurm_job(folder: Path) -> str | None:
    path = folder / JOB_FILE
    return path.read_text().strip() if path.is_file() else None
