"""Jobs that Ray places, on this machine or on a cluster of the user's: each a fresh process, as in isaseg.sweep.local."""

import atexit
import importlib
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isaseg.errors import ConfigError
from isaseg.runs.run_folder import write_failure
from isaseg.sweep.jobs import Job
from isaseg.sweep.local import gpus_needed, local_command, spawn
from isaseg.sweep.supervise import Process, Start

_GRACE = 60.0  # seconds that a job has to save its checkpoint before it is killed


def ray_jobs(
    jobs: Sequence[Job],
    script: Path,
    *,
    address: str | None,
    num_cpus: int | None,
    num_gpus: int | None,
    cpus_per_job: int,
) -> Start:
    """Return what hands all jobs to Ray at once; Ray starts each when there is room.

    The arguments are those of conf/hydra/launcher/ray.yaml.

    Raises:
        ConfigError: If Ray is not there, or a job needs more than it has.
    """
    for job in jobs:
        if job.cfg.trainer.num_nodes != 1:
            raise ConfigError(f"{job.name}: with Ray a job has one node; several: hydra/launcher=slurm")
    ray = _connected(address, num_cpus, num_gpus)
    # a job has one machine: more than the largest has would be waited for without end
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    there = {what: max((node.get(what, 0) for node in machines), default=0) for what in ("CPU", "GPU")}
    needs = {job: gpus_needed(job.cfg, int(there["GPU"])) for job in jobs}
    for what, most in (("CPU", cpus_per_job), ("GPU", max(needs.values()))):
        if most > there[what]:
            raise ConfigError(
                f"a job needs {most} {what}s, the largest machine of Ray has {there[what]:g}; lower trainer.devices or "
                "hydra.launcher.cpus_per_job, or give another hydra.launcher.address"
            )
    remote = ray.remote(max_retries=0)(_train)

    def start(waiting: list[Job]) -> dict[Job, Process]:
        started: dict[Job, Process] = {}
        for job in waiting:
            placed = remote.options(num_cpus=cpus_per_job, num_gpus=needs[job], name=job.name)
            words = local_command(job, script, needs[job])
            started[job] = _RayProcess(ray, job, placed.remote(job, words, Path.cwd()))
        return started

    return start


@dataclass
class _RayProcess:
    ray: Any
    job: Job
    reference: Any

    def poll(self) -> int | None:
        if not self.ray.wait([self.reference], timeout=0)[0]:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.TaskCancelledError:
            return 143
        except (
            self.ray.exceptions.RayError
        ) as error:  # the job could not say: Ray's process or machine is gone
            write_failure(self.job.folder, error)
            return 1

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=False)

    def wait(self) -> None:
        if not self.ray.wait([self.reference], timeout=_GRACE + 5)[0]:
            self.ray.cancel(self.reference, force=True)


def _train(job: Job, words: Sequence[str], folder: Path) -> int:
    """Train in a fresh process, and return its exit code. Ray has set CUDA_VISIBLE_DEVICES and OMP_NUM_THREADS."""
    os.chdir(folder)
    process = spawn(job, words, {})
    try:
        while process.poll() is None:  # Ray interrupts Python, not the system call in which `wait` would be
            time.sleep(0.2)
        return process.returncode
    except KeyboardInterrupt:  # ray.cancel
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
        return 143


def _connected(address: str | None, num_cpus: int | None, num_gpus: int | None) -> Any:
    """Return the module `ray`, connected; where it starts here, it leaves nothing behind."""
    folder = tempfile.mkdtemp(prefix="isaseg-ray-")  # not the output folder: the path of a socket is short
    atexit.register(
        shutil.rmtree, folder, ignore_errors=True
    )  # before Ray is imported, so that it ends first
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or Ray writes one into the home folder
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigError(f"hydra/launcher=ray needs Ray ({error}); run pip install ray") from error
    if ray.is_initialized():
        return ray
    own = {"num_cpus": num_cpus, "num_gpus": num_gpus, "include_dashboard": False, "_temp_dir": folder}
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address=address, **quiet, **(own if address is None else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Ray does not start with hydra.launcher.address={address}: {reason}") from error
    return ray
