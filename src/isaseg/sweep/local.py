"""Jobs on this machine: `slots` at a time, each a fresh process with GPUs of its own (several devices: torchrun)."""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from omegaconf import DictConfig, OmegaConf

from isaseg.errors import ConfigError
from isaseg.runs.run_folder import finished_metrics
from isaseg.sweep.jobs import Job, command, processes
from isaseg.sweep.supervise import Process, Start

_GRACE = 60.0  # seconds for a job to save its checkpoint before it is killed
_PR_SET_PDEATHSIG = 1


def local(
    jobs: Sequence[Job],
    script: Path | None = None,
    slots: int | None = None,
    gpus: Sequence[str] | None = None,
) -> Start:
    """Return a function that starts jobs on this machine while there is room.

    Args:
        jobs: All jobs that will be started.
        script: Run instead of `isaseg train`.
        slots: Jobs at a time; None: as many as there are GPUs for, or one if no job uses a GPU.
        gpus: Ids of the GPUs, as for CUDA_VISIBLE_DEVICES; None: all that this process sees.

    Raises:
        ConfigError: If a job needs more than there is.
    """
    found = list(visible_gpus() if gpus is None else gpus)
    needs = _needs(jobs, slots, len(found))
    room = slots or (len(found) if any(needs.values()) else 1)
    threads = max((os.cpu_count() or 1) // room, 1)
    free, running = list(found), list[_LocalProcess]()
    announced: set[Job] = set()

    def start_one(job: Job) -> Process | None:
        mine, free[:] = free[: needs[job]], free[needs[job] :]
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine or gpus is not None else {}
        if room > 1:
            environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(threads))
        started: Process | None = None
        try:
            with alone(job.folder) as lock:
                if lock is None:  # another sweep trains it, or a killed sweep whose job is still saving
                    if job not in announced:
                        announced.add(job)
                        print(f"waits   {job.name}: another process trains in {job.folder}", file=sys.stderr)
                elif finished_metrics(job.cfg, job.folder) is not None:
                    started = _Ended(0)
                else:
                    popen = spawn(job, local_command(job, script, len(mine)), environment, lock)
                    started = process = _LocalProcess(popen, mine, free)
                    running.append(process)
                    return started
        except OSError as error:  # of its folder; the other jobs go on
            started = _Ended(1, f"it could not be started: {error}")
        free.extend(mine)
        return started

    def start(waiting: list[Job]) -> dict[Job, Process]:
        running[:] = [process for process in running if process.poll() is None]
        started: dict[Job, Process] = {}
        for job in waiting:
            if len(running) >= room or needs[job] > len(free):
                break  # in order, so that a large job is not overtaken for ever
            process = start_one(job)
            if process is not None:
                started[job] = process
        return started

    return start


def _needs(jobs: Sequence[Job], slots: int | None, available: int) -> dict[Job, int]:
    if slots is not None and (not isinstance(slots, int) or slots < 1):
        raise ConfigError(f"expected hydra.launcher.slots of at least 1, got {slots}")
    needs = {job: gpus_needed(job.cfg, available) for job in jobs}
    for job, need in needs.items():
        if need > available:
            raise ConfigError(
                f"{job.name} needs {need} GPUs, this machine has {available}; lower trainer.devices"
            )
        if job.cfg.trainer.get("num_nodes", 1) != 1:
            raise ConfigError(
                "a job on this machine has one node; for several nodes use hydra/launcher=slurm"
            )
    return needs


@contextmanager
def alone(folder: Path) -> Iterator[IO[bytes] | None]:
    """Yield the lock of a run folder, None if another process holds it.

    The lock lasts until the block and every process that inherited it have ended, even if the sweep is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError:  # a file system without locks
            pass
        yield lock


def spawn(
    job: Job, words: Sequence[str], environment: dict[str, str], lock: IO[bytes] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a job that writes to log.txt and ends with this process; an old failed.txt is removed.

    Args:
        job: The job.
        words: Its command line.
        environment: Added to the environment of this process.
        lock: Held by the job as long as it runs, see `alone`.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "failed.txt").unlink(missing_ok=True)
    with (job.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            list(words),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=() if lock is None else (lock.fileno(),),
            start_new_session=True,  # Ctrl-C goes to the sweep, which asks its jobs to save and end
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def local_command(job: Job, script: Path | None, gpus: int) -> list[str]:
    """Return the command line of a job on this machine; several processes by torchrun, which ends all if one fails.

    Lightning could start the others itself, but ends them less reliably.
    """
    words = command(job, script)
    count = processes(job.cfg) or max(gpus, 1)
    if gpus and OmegaConf.is_list(job.cfg.trainer.devices):
        words.append(f"trainer.devices={count}")  # the listed ids are renumbered among the GPUs of the job
    if count == 1 or not _in_processes(job.cfg):
        return words
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return [*torchrun, *words[1:]]


def gpus_needed(cfg: DictConfig, available: int) -> int:
    """Return how many of the available GPUs a run uses."""
    accelerator = cfg.trainer.accelerator
    if accelerator not in ("gpu", "cuda") and (accelerator != "auto" or available == 0):
        return 0
    return processes(cfg) or max(available, 1)


def visible_gpus() -> list[str]:
    """Return the ids of the GPUs that this process may use, without loading torch."""
    limit = os.environ.get("CUDA_VISIBLE_DEVICES")
    if limit is not None:
        return [name for name in (part.strip() for part in limit.split(",")) if name and name != "-1"]
    tool = shutil.which("nvidia-smi")
    if tool is None:  # as in some containers
        return sorted(path.name[len("nvidia") :] for path in Path("/dev").glob("nvidia[0-9]*"))
    query = [tool, "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit()]


@dataclass
class _Ended:
    """A job that needed no process, or could not get one."""

    code: int
    message: str = ""

    def poll(self) -> int:
        return self.code

    def stop(self) -> None:
        pass

    def wait(self) -> None:
        pass


@dataclass
class _LocalProcess:
    popen: "subprocess.Popen[bytes]"
    gpus: list[str]
    free: list[str]

    def poll(self) -> int | None:
        code = self.popen.poll()
        if code is not None:
            self.free += self.gpus
            self.gpus = []
        return code

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()

    def wait(self) -> None:
        try:
            self.popen.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        self.poll()


def _in_processes(cfg: DictConfig) -> bool:
    """Return whether the strategy expects one process per device, started from outside."""
    strategy = str(cfg.trainer.get("strategy", "auto"))
    return not any(word in strategy for word in ("spawn", "fork", "notebook"))


def _end_with_parent() -> None:
    """Make Linux end the job when this process dies, even by SIGKILL; else repeating the sweep would train it twice."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
