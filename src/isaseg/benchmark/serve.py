"""Time a data set's samples as a process that answers questions, so that two code bases can take turns.

Imports torch alone: the Python of another code base runs it too.
"""

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


def serve(dataset: Repeated, facts: dict[str, Any], answers: TextIO) -> None:
    """Tell `facts`, then answer each line {"samples": n, "workers": w} with the seconds that a sample took.

    Without workers: of every sample. With workers: of all but the first batch of 4, divided by their number.
    """
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        dataset.samples = wanted["samples"]
        seconds = _alone(dataset) if wanted["workers"] == 0 else _with_workers(dataset, wanted["workers"])
        dataset.start += dataset.samples
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


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
