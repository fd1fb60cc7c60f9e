"""Loaders: resumable training batches, evaluation batches of one size each, and one sentence for a worker's fault."""

import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from isaseg.data.sampler import BatchPlan
from isaseg.errors import DataError, IsasegError

Batch = dict[str, Any]

_NOT_STACKED = ("image", "views", "id", "size")
_on_child_exit: Any = None  # torch's handler of SIGCHLD, which raises if a worker died


class EvalLoader(DataLoader[Any]):
    """A loader that reports in one sentence what went wrong in a worker."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield batches.

        Raises:
            DataError: If a worker raised one, died or hangs.
        """
        try:
            _keep_handler()
            batches = super().__iter__()
            _keep_handler()
            yield from batches
        except IsasegError as error:  # raised in a worker, whose traceback comes first in the text
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip()) from None
        except RuntimeError as error:
            if not str(error).startswith(("DataLoader worker (pid", "DataLoader timed out")):
                raise
            raise DataError(
                f"a loader's worker died or hangs: {str(error).splitlines()[0]}; lower "
                f"data.num_workers={self.num_workers}, raise the shared memory (docker run --shm-size), or raise "
                "data.timeout"
            ) from error


def _keep_handler() -> None:
    """Remember the handler by which torch learns that a worker died, and put it back if it is gone.

    torch sets it once in a process, with its first workers. Lightning restores the handlers of before at the end of
    each training, of which a process may run several; a dead worker would then be found only after data.timeout.
    """
    global _on_child_exit
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler):
        _on_child_exit = handler
    elif _on_child_exit is not None:
        signal.signal(signal.SIGCHLD, _on_child_exit)


class TrainLoader(EvalLoader):
    """A loader that counts the batches it gave; Lightning saves and restores the count."""

    batch_sampler: BatchPlan
    batches = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches from where `load_state_dict` said."""
        self.batches = self.batch_sampler.start
        for batch in super().__iter__():
            self.batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches given."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration after the batches of `state`."""
        self.batches = self.batch_sampler.start = state["batches"]


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Stack samples of one size to a batch; `id` becomes a list.

    The image, (B, 3, H, W), stays channels last in memory, as it was decoded: the device makes it planar. A worker stacks
    into shared memory at once, from which the batch need not be copied again.
    """
    first = samples[0]
    batch: Batch = {k: default_collate([s[k] for s in samples]) for k in first if k not in _NOT_STACKED}
    if "image" in first:
        batch["image"] = _stacked([s["image"] for s in samples])
    if "views" in first:
        batch["views"] = [_stacked(view) for view in zip(*(s["views"] for s in samples), strict=True)]
    batch["id"] = [s["id"] for s in samples]
    if "size" in first:
        batch["size"] = first["size"]
    return batch


def _stacked(images: Sequence[Tensor]) -> Tensor:
    stacked: Tensor = default_collate([image.permute(1, 2, 0) for image in images])  # (B, H, W, 3)
    return stacked.permute(0, 3, 1, 2)


def collate_by_size(samples: Sequence[dict[str, Any]]) -> list[Batch]:
    """Stack samples to one batch for each size of image and mask, in the order in which the sizes occur."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for sample in samples:
        shapes = [tuple(image.shape) for image in sample.get("views") or [sample["image"]]]
        sizes = (*shapes, sample.get("size") or tuple(sample["mask"].shape))
        groups.setdefault(sizes, []).append(sample)
    return [collate(group) for group in groups.values()]
