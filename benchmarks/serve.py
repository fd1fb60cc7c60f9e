"""A process that answers questions with measurements, so that two code bases can take turns.

Imports torch alone: the Python of another code base runs it too.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import torch


class Repeated(torch.utils.data.Dataset[Any]):
    """A data set of which sample `i` may be asked for any `i`, for `samples` of them at a time.

    Attributes:
        collate: How the code base puts samples together in a worker.
    """

    collate: Callable[[list[Any]], Any] = list
    samples = 0
    start = 0

    def __len__(self) -> int:
        """Return how many samples are measured at a time."""
        return self.samples


def serve(answer: Callable[[Any], dict[str, Any]], facts: dict[str, Any], answers: TextIO) -> None:
    """Tell `facts`, then the answer to each line, as JSON."""
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def timed_samples(dataset: Repeated, wanted: dict[str, int]) -> dict[str, list[float]]:
    """Answer {"samples": n, "workers": w} with the seconds that a sample took.

    Without workers: of every sample. With workers: of all but the first batch of 4, divided by their number.
    """
    dataset.samples = wanted["samples"]
    seconds = _alone(dataset) if wanted["workers"] == 0 else _with_workers(dataset, wanted["workers"])
    dataset.start += dataset.samples
    return {"seconds": seconds}


def timed_work(make: Callable[[str, str], Callable[[], Any]]) -> Callable[[dict[str, str]], dict[str, Any]]:
    """Return an answer to {"work": w, "kind": k}: at first its result and peak memory, from then on its seconds."""
    works: dict[tuple[str, str], Callable[[], Any]] = {}

    def answer(question: dict[str, str]) -> dict[str, Any]:
        key = (question["work"], question["kind"])
        if key not in works:
            works[key] = make(*key)
            return {"areas": works[key](), "bytes": peak_memory(works[key])}
        start = time.perf_counter()
        works[key]()
        return {"seconds": time.perf_counter() - start}

    return answer


def peak_memory(work: Callable[[], Any]) -> int | None:
    """Return by how many bytes the memory rises above what is held while `work` runs: of the GPU if this process uses it.

    Of the process itself, on Linux alone.
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed does not count as held
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
    except (OSError, AttributeError):
        return None
    before = kibibytes("VmRSS")
    work()
    return 1024 * (kibibytes("VmHWM") - before)


def kibibytes(key: str) -> int:
    """Return a value of this process from /proc, e.g. VmRSS; Linux alone."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key + ":"))


def _alone(dataset: Repeated) -> list[float]:
    seconds = []
    for index in range(len(dataset)):
        start = time.perf_counter()
        dataset[index]
        seconds.append(time.perf_counter() - start)
    return seconds


def _with_workers(dataset: Repeated, workers: int) -> list[float]:
    loader: Any = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=workers, collate_fn=dataset.collate, drop_last=True
    )
    iterator = iter(loader)
    next(iterator)  # starting the workers is not measured
    start = time.perf_counter()
    count = sum(1 for _ in iterator)
    return [(time.perf_counter() - start) / (4 * count)]
