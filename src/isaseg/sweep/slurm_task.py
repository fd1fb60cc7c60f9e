"""What each task of a Slurm job does: start `train.py` in a fresh process, and make it save when its time is up."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.utils import UncompletedJobError
from submitit.helpers import DelayedSubmission

from isaseg.runs.run_folder import write_failure

JOB_FILE = "slurm_job.txt"  # in a run folder: the id of the Slurm job that trains it
_TIME_IS_UP = signal.SIGUSR2  # the signal that submitit makes Slurm send


class Train:
    """One task, called by submitit on the node; submitit queues it again when its time is up or it is preempted.

    Args:
        words: The command that trains.
        folder: Run folder; task 0 writes to log.txt there.
        grace: Seconds that training has to save.
    """

    def __init__(self, words: Sequence[str], folder: Path, grace: float) -> None:
        self.words, self.folder, self.grace = list(words), folder, grace
        self._pid: int | None = None
        self._signalled = False

    def __call__(self) -> None:
        """Train, and exit as training does.

        Raises:
            SystemExit: If training fails, or another Slurm job trains this run.
        """
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if first:
            _claim(self.folder)
        # Slurm signals every process of a task. Training starts with this signal blocked; we send it SIGTERM.
        signal.pthread_sigmask(signal.SIG_BLOCK, {_TIME_IS_UP})
        process = self._start(first)
        self._pid = process.pid
        if not first:  # submitit's own handler calls `checkpoint` in task 0 alone
            signal.signal(_TIME_IS_UP, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_TIME_IS_UP})
        try:
            # not Popen.wait: it holds a lock that the signal handler, which waits too, would never get
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        except UncompletedJobError as error:  # raised by submitit's handler instead of queueing the job again
            write_failure(self.folder, f"{error} Raise hydra.launcher.max_num_timeout or timeout_min\n")
            raise
        self._pid = None
        code = process.wait()
        if code and not self._signalled:  # else srun would end task 0 before it has requeued the job
            raise SystemExit(code if code > 0 else 128 - code)

    def checkpoint(self) -> DelayedSubmission:
        """Make training save, and return the task that continues it in the same folder."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGTERM)
            end = time.monotonic() + self.grace
            ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
            while time.monotonic() < end and os.waitid(os.P_PID, self._pid, ended) is None:
                time.sleep(0.2)
        return DelayedSubmission(Train(self.words, self.folder, self.grace))

    def _start(self, first: bool) -> "subprocess.Popen[bytes]":
        environment = dict(os.environ)
        # otherwise PyTorch starts a thread for each core of the node
        environment.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL}
        words = [*self.words, *self._continued()]
        if not first:  # several nodes writing to one file lose lines
            return subprocess.Popen(words, **options)
        (self.folder / "failed.txt").unlink(missing_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, **options)

    def _continued(self) -> list[str]:
        """Return the override that makes a job continue after Slurm restarts it, even with resume=never."""
        if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            return []
        submitted = (self.folder / JOB_FILE).stat().st_mtime
        written = [path.stat().st_mtime for path in self.folder.glob("checkpoints/*.ckpt")]
        return ["resume=auto"] if any(when > submitted for when in written) else []

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if self._pid is not None:
            os.kill(self._pid, signal.SIGTERM)


def _claim(folder: Path) -> None:
    """Note that this Slurm job trains the run; exit if another Slurm job has claimed it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    mine = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    path = folder / JOB_FILE
    try:
        with path.open("x") as file:
            file.write(mine)
    except FileExistsError:
        holder = path.read_text().strip()
        if holder != mine:
            raise SystemExit(f"Slurm job {holder} trains {folder}, {mine} does not") from None
