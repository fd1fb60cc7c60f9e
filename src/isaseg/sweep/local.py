"""Jobs on this machine: `slots` at a time, each a fresh process with GPUs of its own (several devices: torchrun)."""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from omegaconf import DictConfig, OmegaConf

from isaseg.errors import ConfigError
from isaseg.runs.run_folder import finished_run
from isaseg.sweep.jobs import Job, command, processes
from isaseg.sweep.supervise import Outcome, Process

_GRACE = 60.0  # seconds for a job to save its checkpoint before it is killed
_PR_SET_PDEATHSIG = 1


class Local:
    """Starts jobs on this machine while there is room, and makes them save when this process is interrupted.

    Args:
        jobs: All jobs that will be started.
        slots: Jobs at a time; None: as many as there are GPUs for, or one if no job uses a GPU.

    Raises:
        ConfigError: If a job needs more than there is.
    """

    def __init__(self, jobs: Sequence[Job], slots: int | None = None) -> None:
        self._gpus = visible_gpus()
        there = len(self._gpus)
        self._needs = {job: gpus_needed(job.cfg, there) for job in jobs}
        for job, needed in self._needs.items():
            if needed > there:
                raise ConfigError(
                    f"{job.name} needs {needed} GPUs, this machine has {there}; lower trainer.devices"
                )
            if job.cfg.trainer.num_nodes != 1:
                raise ConfigError(f"{job.name} needs several nodes; use hydra/launcher=slurm")
        self._room = room = slots or max(room_for(job.cfg, there) for job in jobs)
        self._environment = dict(os.environ)
        if room > 1:
            self._environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // room, 1)))
        self._running: list[tuple[subprocess.Popen[bytes], list[str]]] = []
        self._announced: set[Job] = set()

    def start(self, waiting: Sequence[Job]) -> dict[Job, Process | Outcome]:
        """Start as many of the waiting jobs as there is room for."""
        started: dict[Job, Process | Outcome] = {}
        self._running = [(process, held) for process, held in self._running if process.poll() is None]
        for job in waiting:
            taken = {gpu for _, held in self._running for gpu in held}
            free = [gpu for gpu in self._gpus if gpu not in taken]
            if len(self._running) >= self._room or self._needs[job] > len(free):
                break  # in order, so that small jobs do not keep a large one waiting forever
            result = self._start(job, free[: self._needs[job]])
            if result is not None:
                started[job] = result
        return started

    def interrupt(self, running: Mapping[Job, Process]) -> None:
        """Ask all jobs to save and end, and wait for them; kill those that do not end."""
        processes = [process for process, _ in self._running]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, job: Job, gpus: list[str]) -> Process | Outcome | None:
        try:
            with alone(job.folder / "lock") as lock:
                if lock is None:  # another sweep trains it, or a killed sweep whose job is still saving
                    if job not in self._announced:
                        print(f"waits   {job.name}: another process trains in {job.folder}", file=sys.stderr)
                    self._announced.add(job)
                    return None
                finished = finished_run(job.cfg, job.folder)
                if finished is not None and finished.kept:
                    return Outcome("finished", finished.metrics)
                process = self._spawn(job, gpus, lock)
        except OSError as error:  # of its folder; the other jobs go on
            return Outcome("failed", message=f"it could not be started: {error}")
        self._running.append((process, gpus))
        return process

    def _spawn(self, job: Job, gpus: list[str], lock: IO[bytes]) -> "subprocess.Popen[bytes]":
        """Start a job that writes to log.txt, holds the lock and ends with this process."""
        (job.folder / "failed.txt").unlink(missing_ok=True)
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
        with (job.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                local_command(job, len(gpus)),
                env={**self._environment, **visible},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C goes to the sweep, which asks its jobs to save and end
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )


@contextmanager
def alone(path: Path) -> Iterator[IO[bytes] | None]:
    """Yield the lock on a file, None if another process holds it; the file is made, and never removed.

    The lock lasts until the block and every process that inherited it have ended, even if this process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError:  # a file system without locks
            pass
        yield lock


def local_command(job: Job, gpus: int) -> list[str]:
    """Return the command line of a job on this machine; several processes by torchrun, which ends all if one fails.

    Lightning could start the others itself, but ends them less reliably.
    """
    words = command(job)
    count = processes(job.cfg) or max(gpus, 1)
    if gpus and OmegaConf.is_list(job.cfg.trainer.devices):
        words.append(f"trainer.devices={count}")  # the listed ids are renumbered among the GPUs of the job
    strategy = str(job.cfg.trainer.get("strategy"))
    starts_its_own = any(way in strategy for way in ("spawn", "fork", "notebook"))
    if count == 1 or starts_its_own:
        return words
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return [*torchrun, *words[1:]]


def gpus_needed(cfg: DictConfig, available: int) -> int:
    """Return how many of the available GPUs a run uses."""
    accelerator = cfg.trainer.accelerator
    if accelerator not in ("gpu", "cuda") and (accelerator != "auto" or available == 0):
        return 0
    return processes(cfg) or max(available, 1)


def room_for(cfg: DictConfig, available: int) -> int:
    """Return how many such runs have room at a time: as many as there are GPUs for, or one that uses none."""
    needed = gpus_needed(cfg, available)
    return max(available // needed, 1) if needed else 1


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use, without loading torch."""
    limit = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limit is not None:
        return [name for name in (part.strip() for part in limit.split(",")) if name and name != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return [line for line in answer.stdout.splitlines() if line.isdigit()]  # not the words of an error


def _end_with_parent() -> None:
    """Make Linux end the job when this process dies, even by SIGKILL; else repeating the sweep would train it twice."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
