"""The measured end of a benchmark: a process that answers questions, one JSON line each, so that processes take turns.

Imports torch alone, because the Python of another code base runs this file too.
"""

import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], Any]  # whatever is measured
Answer = Callable[[dict[str, Any]], dict[str, Any]]

_EXHAUSTED = (torch.OutOfMemoryError, MemoryError)
# torch has no class for these
_EXHAUSTED_CPU = ("DefaultCPUAllocator", "bad_alloc", "could not create a memory object")
_SECONDS = 0.2  # a quick work is repeated for this long; its time is the median


class Timer:
    """Answers questions about works: {"what": "memory" or "time", "work": ..., "kind": ...}.

    Args:
        make: Returns a work, given its name and kind. A work is made when it is first asked for, and run once unmeasured.
        keep: Whether earlier works stay in memory; if not, they are freed before the next is made.
    """

    def __init__(self, make: Callable[[str, str], Work], keep: bool = True) -> None:
        self.make, self.keep = make, keep
        self.made: dict[tuple[str, str], Work] = {}

    def __call__(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the `seconds` of a work, its peak memory in `bytes`, or an `error` if it does not fit into memory."""
        try:
            return self._measured(question)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, _EXHAUSTED) and not any(words in str(error) for words in _EXHAUSTED_CPU):
                raise
            self.made.clear()
            return {"error": "out of memory"}

    def _measured(self, question: dict[str, Any]) -> dict[str, Any]:
        key = (question["work"], question["kind"])
        if key not in self.made:
            if not self.keep:
                self.made.clear()
                torch.cuda.empty_cache()  # what another process holds or needs is not known here
            self.made[key] = self.make(*key)
            self.made[key]()
        if question["what"] == "time":
            return {"seconds": _median_seconds(self.made[key])}
        return {"bytes": _peak_memory(self.made[key])}


def one_by_one(make: Callable[[str, str], Work]) -> Answer:
    """Return what answers as a `Timer` of `make` that keeps no work, and reports any failure of one as an `error`."""
    timer = Timer(make, keep=False)

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        try:
            return timer(question)
        except Exception as error:
            timer.made.clear()
            first = (str(error).splitlines() or [""])[0]
            return {"error": f"{type(error).__name__}: {first}"}

    return answer


def serve(start: Callable[[dict[str, Any]], Answer], **facts: Any) -> None:
    """Read a task and report facts about this process, then answer questions until the input ends.

    Args:
        start: Turns a task into the function that answers questions.
        facts: Facts beside those of the machine.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    task = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    answer = start(task)
    print(json.dumps({**machine(task["device"]), **facts}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def _median_seconds(work: Work) -> float:
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not seconds or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        _synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _peak_memory(work: Work) -> int | None:
    """Return by how many bytes memory rises while `work` runs.

    The memory is the GPU's if this process uses one, otherwise that of the process (None where there is no /proc).
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        _synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        _synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory must not count as held before
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
    except (OSError, AttributeError):
        return None
    before = _memory("VmRSS")
    work()
    return _memory("VmHWM") - before


def _memory(key: str) -> int:
    return 1024 * int(_from_proc("/proc/self/status", key).split()[0])


def _synchronize() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def machine(device: str) -> dict[str, Any]:
    """Return facts about this machine and this process, which computes on `device`."""
    cuda = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        return _from_proc("/proc/cpuinfo", "model name")
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _from_proc(file: str, key: str) -> str:
    with open(file) as lines:
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key))
