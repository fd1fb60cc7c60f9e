"""Loaders: resumable training batches, validation batches of one size each, and faults of workers told in a sentence."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from isaseg.data.dataset import too_many
from isaseg.data.sampler import BatchPlan
from isaseg.errors import DataError

log = logging.getLogger(__name__)

Batch = dict[str, Any]


class EvalLoader(DataLoader[Any]):
    """A loader that tells in one sentence what went wrong in a worker."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches.

        Raises:
            DataError: If a worker met one, died or hangs.
        """
        try:
            yield from super().__iter__()
        except DataError as error:
            text = str(error)  # of a worker: its traceback comes first
            raise DataError(text.rpartition("DataError: ")[2].strip()) from None
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            raise DataError(
                f"a loader's worker died or hangs: {str(error).splitlines()[0]}; lower "
                f"data.num_workers={self.num_workers}, raise the shared memory (docker run --shm-size), or raise "
                "data.timeout"
            ) from error


class TrainLoader(EvalLoader):
    """A loader that counts the batches it gave; Lightning saves and restores the count."""

    batch_sampler: BatchPlan
    batches = 0
    max_bad = 0
    bad_file: Path | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches from where `load_state_dict` said.

        Raises:
            DataError: If more samples had to be replaced than `max_bad`.
        """
        self.batches = self.batch_sampler.start
        replaced: set[str] = set()
        for batch in super().__iter__():
            self.batches += 1
            replaced.update(batch.pop("bad", ()))
            self._report(replaced)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches given."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration after the batches of `state`."""
        self.batch_sampler.start = state["batches"]

    def _report(self, replaced: set[str]) -> None:
        known: list[str] = self.__dict__.setdefault("known", [])
        for text in sorted(replaced - set(known)):
            known.append(text)
            log.warning("replaced a training sample (%d of at most %d): %s", len(known), self.max_bad, text)
            if self.bad_file is not None:
                self.bad_file.parent.mkdir(parents=True, exist_ok=True)
                with self.bad_file.open("a", encoding="utf-8") as file:
                    file.write(text.replace("\n", " ") + "\n")
        if len(known) > self.max_bad:
            raise DataError(too_many(self.max_bad, known))


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Stack samples of one size to a batch; `id` and `bad` become lists.

    The image, (B, 3, H, W), is channels last in memory, as decoders give it: to make it planar is the device's work.
    """
    batch: Batch = {
        k: torch.stack([s[k] for s in samples]) for k in samples[0] if k not in ("image", "id", "bad")
    }
    pixels = torch.stack([s["image"].permute(1, 2, 0) for s in samples])
    batch["image"] = pixels.permute(0, 3, 1, 2)
    batch["id"] = [s["id"] for s in samples]
    bad = [text for s in samples for text in s.get("bad", ())]
    return {**batch, "bad": bad} if bad else batch


def collate_by_size(samples: Sequence[dict[str, Any]]) -> list[Batch]:
    """Stack samples to one batch for each size of image and mask, in the order in which the sizes come."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        sizes = tuple(tuple(sample[k].shape) for k in ("image", "mask") if k in sample)
        groups.setdefault(sizes, []).append(sample)
    return [collate(group) for group in groups.values()]
