"""Loaders: resumable training batches, validation batches of one size each, and faults of workers told in a sentence."""

import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from isaseg.data.dataset import too_many
from isaseg.data.sampler import BatchPlan
from isaseg.errors import DataError, IsasegError

log = logging.getLogger(__name__)

Batch = dict[str, Any]

_NOT_STACKED = ("image", "id", "size", "bad")


class EvalLoader(DataLoader[Any]):
    """A loader that tells in one sentence what went wrong in a worker."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches.

        Raises:
            DataError: If a worker met one, died or hangs.
        """
        if self.num_workers:
            _listen_again()
        try:
            yield from super().__iter__()
        except IsasegError as error:  # of a worker: its traceback comes first
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
        except RuntimeError as error:
            if not str(error).startswith(("DataLoader worker (pid", "DataLoader timed out")):
                raise
            raise DataError(
                f"a loader's worker died or hangs: {str(error).splitlines()[0]}; lower "
                f"data.num_workers={self.num_workers}, raise the shared memory (docker run --shm-size), or raise "
                "data.timeout"
            ) from error


def _listen_again() -> None:
    """Set torch's handler, by which it learns that a worker died, where torch wrongly believes that it has.

    Lightning puts back what was there before each training, of which a process may do several.
    """
    if sys.platform != "win32" and signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL:
        signal_handling._SIGCHLD_handler_set = False
        signal_handling._set_SIGCHLD_handler()


class TrainLoader(EvalLoader):
    """A loader that counts the batches it gave; Lightning saves and restores the count."""

    batch_sampler: BatchPlan
    batches = 0
    max_bad = 0
    bad_file: Path | None = None
    bad: Mapping[int, str] = {}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches from where `load_state_dict` said.

        Raises:
            DataError: If more samples had to be replaced than `max_bad`.
        """
        self.batches = self.batch_sampler.start
        for batch in super().__iter__():
            self.batches += 1
            self._report(batch.pop("bad", {}))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches given and the samples that were replaced."""
        return {"batches": self.batches, **({"bad": dict(self.bad)} if self.bad else {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration after the batches of `state`."""
        self.batches = self.batch_sampler.start = state["batches"]
        self.bad = dict(state.get("bad", {}))

    def _report(self, replaced: Mapping[int, str]) -> None:
        for index, text in replaced.items():
            if index in self.bad:
                continue
            self.bad = {**self.bad, index: text}
            log.warning(
                "replaced a training sample (%d of at most %d): %s", len(self.bad), self.max_bad, text
            )
            if self.bad_file is not None:
                self.bad_file.parent.mkdir(parents=True, exist_ok=True)
                with self.bad_file.open("a", encoding="utf-8") as file:
                    file.write(f"{index} {text}".replace("\n", " ") + "\n")
        if len(self.bad) > self.max_bad:
            raise DataError(too_many(self.max_bad, self.bad))


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Stack samples of one size to a batch; `id` becomes a list, `bad` one dictionary.

    The image, (B, 3, H, W), is channels last in memory, as decoders give it: to make it planar is the device's work.
    """
    batch: Batch = {k: torch.stack([s[k] for s in samples]) for k in samples[0] if k not in _NOT_STACKED}
    pixels = torch.stack([s["image"].permute(1, 2, 0) for s in samples])
    batch["image"] = pixels.permute(0, 3, 1, 2)
    batch["id"] = [s["id"] for s in samples]
    if "size" in samples[0]:
        batch["size"] = samples[0]["size"]
    bad = {index: text for s in samples for index, text in s.get("bad", {}).items()}
    return {**batch, "bad": bad} if bad else batch


def collate_by_size(samples: Sequence[dict[str, Any]]) -> list[Batch]:
    """Stack samples to one batch for each size of image and mask, in the order in which the sizes come."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        sizes = (tuple(sample["image"].shape), sample.get("size") or tuple(sample["mask"].shape))
        groups.setdefault(sizes, []).append(sample)
    return [collate(group) for group in groups.values()]
