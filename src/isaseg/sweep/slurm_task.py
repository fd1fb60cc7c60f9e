"""What each task of a Slurm job does: start `train.py` in a fresh process, and have it save when the time is over."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

JOB_FILE = "slurm_job.txt"  # in a run folder: the number of the Slurm job that trains it
_TIME_IS_OVER = signal.SIGUSR2  # for which submitit asks Slurm


class Train:
    """One task, called by submitit on the node; submitit queues it again when its time is over or it is preempted.

    Args:
        words: The command that trains.
        folder: Run folder; task 0 writes to log.txt there.
        grace: Seconds that training has to save.
    """

    def __init__(self, words: Sequence[str], folder: Path, grace: float) -> None:
        self.words, self.folder, self.grace = list(words), folder, grace
        self._pid: int | None = None
        self._told = False

    def __call__(self) -> None:
        """Train, and exit as training does.

        Raises:
            SystemExit: If training fails, or another Slurm job trains this run.
        """
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if first:
            _claim(self.folder)
        # Slurm signals every process of a task. Training is born with this signal blocked: SIGTERM tells it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {_TIME_IS_OVER})
        process = self._start(first)
        self._pid = process.pid
        if not first:  # submitit's own handler calls `checkpoint` in task 0 alone
            signal.signal(_TIME_IS_OVER, self._pass_on)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_TIME_IS_OVER})
        # Popen.wait holds a lock, which a signal handler that waits too would never get
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        self._pid = None
        code = process.wait()
        if code and not self._told:  # srun would end task 0 before it has put the job back into the queue
            raise SystemExit(code if code > 0 else 128 - code)

    def checkpoint(self) -> "DelayedSubmission":
        """Have training save, and return what continues it in the same folder."""
        from submitit.helpers import DelayedSubmission

        if self._pid is not None:
            os.kill(self._pid, signal.SIGTERM)
            end = time.monotonic() + self.grace
            ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
            while time.monotonic() < end and os.waitid(os.P_PID, self._pid, ended) is None:
                time.sleep(0.2)
        return DelayedSubmission(Train(self.words, self.folder, self.grace))

    def _start(self, first: bool) -> "subprocess.Popen[bytes]":
        environment = dict(os.environ)
        # PyTorch would take a thread for each core of the node
        environment.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL}
        words = [*self.words, *self._continued()]
        if not first:  # several nodes that write to one file lose lines
            return subprocess.Popen(words, **options)
        (self.folder / "failed.txt").unlink(missing_ok=True)
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, **options)

    def _continued(self) -> list[str]:
        """Return what makes a job that Slurm starts again go on, even one that was told resume=never."""
        if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
            return []
        submitted = (self.folder / JOB_FILE).stat().st_mtime
        written = [path.stat().st_mtime for path in self.folder.glob("checkpoints/*.ckpt")]
        return ["resume=auto"] if any(when > submitted for when in written) else []

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        if self._pid is not None:
            os.kill(self._pid, signal.SIGTERM)


def _claim(folder: Path) -> None:
    """Note that this Slurm job trains the run, unless the sweep was cut short before it could and another does now."""
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
