"""A process that runs one row of the efficiency table; its memory holds nothing else."""

import json
import platform
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.modules_count import counted_mult_adds
from benchmarks.modules_rows import ROWS, Row, Setting, prepare
from benchmarks.serve import kibibytes, peak_memory, serve
from isaseg.training.memory import map_every_tensor

_WARM = 0.2  # seconds over which a quick work is repeated


class Worker:
    """Answers questions about one row.

    Args:
        row: Context module.
        setting: How it is run.
        memory: Bytes that it may take; None: whatever there is. More is an answer, not an accident.
    """

    def __init__(self, row: Row, setting: Setting, memory: int | None) -> None:
        self.row, self.setting, self.memory = row, setting, memory
        self.key: tuple[str, int] | None = None
        self.run: Callable[[], Any] | None = None
        if memory is not None and self._cuda:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total))

    @property
    def _cuda(self) -> bool:
        return self.setting.device.startswith("cuda")

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return peak bytes, seconds or counted multiply-adds, or an error for a work that does not fit into memory.

        The question: `what` (memory, time or count), `part`, `side`, and `seconds` after which the process ends.
        """
        signal.alarm(
            question.get("seconds") or 0
        )  # which nothing handles: it ends in the middle of an operation too
        self._limit(self.memory)
        try:
            with torch.set_grad_enabled(self.setting.train), self.row.rules():
                return self._answer(question["what"], question["part"], question["side"])
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error) and "bad_alloc" not in str(error):
                raise
            self.run = self.key = None
            return {"error": "out of memory"}
        finally:
            self._limit(None)
            signal.alarm(0)

    def _answer(self, what: str, part: str, side: int) -> dict[str, Any]:
        if self.key != (part, side):
            self.run = self.key = None  # frees the one before
            self.run, self.key = prepare(self.row, part, side, self.setting)[0], (part, side)
            self.run()  # what is made once at the first run is there
            if self._cuda:
                torch.cuda.synchronize()
        assert self.run is not None
        if what == "count":
            return {"mult_adds": counted_mult_adds(self.run)}
        if what == "memory":
            start = time.perf_counter()
            peak = self._cuda_peak(self.run) if self._cuda else peak_memory(self.run)
            return {"bytes": peak, "seconds": time.perf_counter() - start}
        seconds: list[float] = []
        while sum(seconds) < _WARM:
            start = time.perf_counter()
            self.run()
            if self._cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return {"seconds": statistics.median(seconds)}

    @staticmethod
    def _cuda_peak(run: Callable[[], Any]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)

    def _limit(self, memory: int | None) -> None:
        """Let allocations beyond `memory` fail, instead of the system ending some process."""
        if self._cuda or sys.platform != "linux":
            return
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        soft = hard if memory is None else 1024 * kibibytes("VmSize") + memory
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def facts(device: str) -> dict[str, Any]:
    """Return what the measurements depend on."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    task = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    if task["mapped"]:  # slower by the pages that each tensor touches anew: not where time is measured
        map_every_tensor()
    setting = Setting(**task["setting"])
    worker = Worker(ROWS[task["row"]], setting, task["memory"])
    serve(worker.answer, facts(setting.device), answers)


if __name__ == "__main__":
    main()
