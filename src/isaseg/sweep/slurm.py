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
from typing import Any, NamedTuple

from omegaconf import DictConfig

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.files import replace_file
from isaseg.runs.run_folder import read_metrics, write_failure
from isaseg.sweep.jobs import Job, command, processes
from isaseg.sweep.slurm_task import JOB_FILE, Train
from isaseg.sweep.supervise import Process, Start

_ASK_EVERY = 10.0  # seconds between two calls of squeue, however many jobs there are
_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_NOT_REQUEUED = "Job not requeued because:"  # logged by submitit when a job has timed out too often
# the states of jobs that have ended; in any other state a job may still run
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip
_REMEDY = {
    "OUT_OF_MEMORY": "raise hydra.launcher.mem_gb",
    "TIMEOUT": "it could not save in time; raise hydra.launcher.signal_delay_s",
}


class Resources(NamedTuple):
    """The resources of a job."""

    nodes: int
    tasks_per_node: int
    gpus_per_node: int


def slurm(
    jobs: Sequence[Job],
    script: Path | None = None,
    *,
    partition: str | None,
    account: str | None,
    qos: str | None,
    timeout_min: int,
    max_num_timeout: int,
    signal_delay_s: int,
    cpus_per_task: int,
    mem_gb: float | None,
    gpus_per_node: int | None,
    array_parallelism: int,
    setup: Sequence[str],
    additional_parameters: Mapping[str, Any],
) -> Start:
    """Return a function that submits all jobs at once, except those that an earlier sweep submitted and still run.

    The arguments are described in conf/hydra/launcher/slurm.yaml.

    Raises:
        ConfigError: If submitit or Slurm is missing, or an argument is invalid.
    """
    _check_installed()
    whole = {"timeout_min": timeout_min, "signal_delay_s": signal_delay_s, "cpus_per_task": cpus_per_task}
    for name, value in {**whole, "array_parallelism": array_parallelism}.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"expected hydra.launcher.{name} as a whole number of at least 1, got {value}")
    if signal_delay_s >= 60 * timeout_min:
        raise ConfigError(
            f"expected hydra.launcher.signal_delay_s below timeout_min ({60 * timeout_min} s), got {signal_delay_s}"
        )
    needs = {job: need(job, gpus_per_node) for job in jobs}
    given = {"partition": partition, "account": account, "qos": qos, "mem": _memory(mem_gb)}
    options = {
        **{name: value for name, value in given.items() if value is not None},
        "time": timeout_min,
        "signal_delay_s": signal_delay_s,
        "cpus_per_task": cpus_per_task,
        "array_parallelism": array_parallelism,
        "setup": list(setup) or None,
        # since Slurm 22.05 srun does not inherit cpus-per-task from sbatch; a failed task ends the others
        "srun_args": [f"--cpus-per-task={cpus_per_task}", "--kill-on-bad-exit=1"],
        "additional_parameters": {"requeue": True, **additional_parameters},
    }
    queue = _Queue()

    def start(waiting: list[Job]) -> dict[Job, Process]:
        found = {job: held for job in waiting if (held := _submitted_as(job.folder)) and queue.holds(held)}
        if found:
            _say(f"found in Slurm, submitted before: {', '.join(found.values())}")
        new = [job for job in waiting if job not in found]
        for group in dict.fromkeys(needs[job] for job in new):  # all jobs of an array have equal resources
            those = [job for job in new if needs[job] == group]
            found.update(_submit(those, script, group, options, max_num_timeout))
            queue.ask_again()
        return {job: _SlurmProcess(job, number, queue) for job, number in found.items()}

    return start


def need(job: Job, gpus_per_node: int | None) -> Resources:
    """Return the resources of a job; Lightning expects one task per device.

    Args:
        job: The job.
        gpus_per_node: None: one per device if trainer.accelerator is a GPU, else none.

    Raises:
        ConfigError: If the number of devices is not given.
    """
    trainer: DictConfig = job.cfg.trainer
    tasks = processes(job.cfg) or gpus_per_node
    if tasks is None:
        raise ConfigError(
            f"{job.name}: expected trainer.devices as a number, got {trainer.devices}; Slurm needs to know how many"
        )
    if gpus_per_node is None:
        gpus_per_node = tasks if trainer.accelerator in ("gpu", "cuda") else 0
    return Resources(trainer.num_nodes, tasks, gpus_per_node)


def _submit(
    jobs: Sequence[Job],
    script: Path | None,
    asked: Resources,
    options: Mapping[str, Any],
    max_num_timeout: int,
) -> dict[Job, str]:
    """Submit jobs as one array, write the id of each into its folder, and return the ids."""
    import submitit

    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
        for name in (JOB_FILE, "failed.txt"):
            (job.folder / name).unlink(missing_ok=True)
    executor = submitit.SlurmExecutor(_folder(jobs[0]), max_num_timeout=max_num_timeout)
    gpus = {"gpus_per_node": asked.gpus_per_node} if asked.gpus_per_node else {}
    executor.update_parameters(
        job_name=f"isaseg-{config.safe_name(jobs[0].cfg.name)}",
        nodes=asked.nodes,
        ntasks_per_node=asked.tasks_per_node,
        **gpus,
        **options,
    )
    delay = float(options["signal_delay_s"])
    devices = f"trainer.devices={asked.tasks_per_node}"  # replaces "auto" and the ids of another machine
    tasks = [Train([*command(job, script), devices], job.folder.resolve(), 0.8 * delay) for job in jobs]
    try:
        submitted = executor.submit_array(tasks)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Slurm refused the jobs: {reason}; correct hydra.launcher.*") from error
    numbers = {job: handle.job_id for job, handle in zip(jobs, submitted, strict=True)}
    for job, handle in zip(jobs, submitted, strict=True):
        with replace_file(job.folder / JOB_FILE) as file:
            file.write(handle.job_id.encode())
        with (job.folder / "log.txt").open("a") as log:
            log.write(f"Slurm job {handle.job_id}, further output is in {handle.paths.stderr}\n")
    array = submitted[0].job_id.split("_")[0]
    _say(
        f"submitted as Slurm job {array}: {len(jobs)} run{'s' * (len(jobs) > 1)}; Ctrl-C leaves it in the queue"
    )
    return numbers


class _Queue:
    """The state of all our jobs by squeue, which unlike sacct needs no accounting."""

    def __init__(self) -> None:
        self._asked = -math.inf
        self._known = self._silent = self._left = False
        self._jobs: dict[str, tuple[str, int]] = {}

    def holds(self, number: str) -> bool:
        """Return whether a job waits or runs; True while squeue has not answered."""
        return self.state(number)[0] not in {*_OVER, ""}

    def state(self, number: str) -> tuple[str, int]:
        """Return Slurm's name of the state of a job ("" if there is no such job) and its wait status."""
        if time.monotonic() - self._asked >= _ASK_EVERY:
            self._ask()
            self._asked = time.monotonic()
        return self._jobs.get(number, ("", 0)) if self._known else ("UNKNOWN", 0)

    def ask_again(self) -> None:
        """Ask again at the next call, because there are new jobs."""
        self._asked, self._known = -math.inf, False

    def left(self, number: str) -> None:
        """Print, once, that the jobs go on without this process."""
        if not self._left:
            self._left = True
            _say(
                "the jobs stay in Slurm; the same command finds them again, "
                f"scancel {number.split('_')[0]} ends them"
            )

    def _ask(self) -> None:
        words = ["squeue", "--me", "--array", "--states=all", "--noheader"]
        fields = "--Format=JobArrayID:40,State:20,exit_code:20"
        try:
            answer = subprocess.run(
                [*words, fields], capture_output=True, text=True, timeout=60, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:  # e.g. slurmctld restarts; the jobs run on
            if not self._silent:
                _say(f"squeue does not answer, trying again: {error}")
            self._silent = True
            return
        self._known, self._silent = True, False
        rows = (line.split() for line in answer.splitlines())
        self._jobs = {row[0]: (row[1], int(row[2])) for row in rows if len(row) == 3}


@dataclass
class _SlurmProcess:
    job: Job
    number: str
    queue: _Queue
    unwanted: bool = False

    def poll(self) -> int | None:
        if self.unwanted:
            self.unwanted = False
            subprocess.run(["scancel", self.number], check=False)  # SIGTERM; after KillWait, 30 s, SIGKILL
        if self.queue.holds(self.number):
            return None
        return self._ended(*self.queue.state(self.number))

    def stop(self) -> None:
        """Make the next `poll` cancel the job; if `wait` follows instead, this process was interrupted."""
        self.unwanted = True

    def wait(self) -> None:
        """Leave the job in the queue."""
        self.queue.left(self.number)

    def _ended(self, state: str, status: int) -> int:
        """Return the exit code; write failed.txt where the job itself could not."""
        if state == "" or state == "COMPLETED":  # "": Slurm forgets after MinJobAge
            return 0 if state or read_metrics(self.job.folder) else 1
        if state in ("CANCELLED", "PREEMPTED"):
            return 143
        code = os.waitstatus_to_exitcode(status)
        if state != "FAILED":
            remedy = f"; {_REMEDY[state]}" if state in _REMEDY else ""
            write_failure(self.job.folder, f"Slurm job {self.number} ended as {state}{remedy}\n")
        elif (reason := _not_requeued(self.job, self.number)) is not None:
            write_failure(self.job.folder, reason)
        return 128 - code if code > 128 and code != 143 else code or 1  # 137: a task was killed by signal 9


def _not_requeued(job: Job, number: str) -> str | None:
    """Return why submitit did not requeue a job that ran out of time, None if it did not say so."""
    import submitit

    paths = submitit.core.utils.JobPaths(_folder(job), job_id=number, task_id=0)
    # the log repeats what is in the result file, which is a pickle and must not be loaded
    for path in (paths.stdout, paths.stderr):
        text = path.read_text(errors="replace") if path.is_file() else ""
        found = [line for line in text.splitlines() if _NOT_REQUEUED in line]
        if found:
            said = _NOT_REQUEUED + found[-1].partition(_NOT_REQUEUED)[2]
            return f"Slurm job {number}: {said} Raise hydra.launcher.max_num_timeout or timeout_min\n\nSee {path}\n"
    return None


def _submitted_as(folder: Path) -> str | None:
    path = folder / JOB_FILE
    return path.read_text().strip() if path.is_file() else None


def _folder(job: Job) -> Path:
    return Path(job.cfg.output_dir).resolve() / config.safe_name(job.cfg.name) / "slurm"


def _memory(gigabytes: float | None) -> str | None:
    return None if gigabytes is None else f"{round(gigabytes * 1024)}MB"


def _check_installed() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigError("hydra/launcher=slurm needs submitit; run pip install 'isaseg[sweep]'") from error
    missing = [name for name in _COMMANDS if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"hydra/launcher=slurm needs Slurm's {', '.join(missing)}, not found here; run it on a machine of the cluster"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
