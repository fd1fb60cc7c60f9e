"""Loaders for one data set: resumable training batches, and evaluation in which no sample counts twice."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import lightning
import torch
from torch.utils.data import DataLoader

from isaseg.data.dataset import SegmentationDataset, Source
from isaseg.data.sampler import BatchPlan
from isaseg.data.transforms import TrainTransform
from isaseg.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")


class SegmentationDataModule(lightning.LightningDataModule):
    """Data of one set: where from, how cut, how many at once.

    Files are listed when they are first needed and decoded for checking only by `check`.

    Args:
        source: Called with split=train, val or test; returns that split, or None where there is no such split.
        num_classes: K; must agree with the source.
        ignore_index: Label that is left out; must agree with the source.
        crop_size: (H, W) of a training sample.
        batch_size: Training samples in a step of one process group, all processes together.
        val_batch_size: Samples at once in evaluation; 1 where the images differ in size.
        num_workers: Processes that load; 0: none but this.
        seed: Seed of order and transforms.
        max_steps: Optimizer steps of the run.
        transform: Training transform.
        accumulate: Batches to an optimizer step.
        name: Short name of the data set, for run names and tags.
        root: Folder of the files; read by `source` through interpolation.
        classes: Class names; read by `source` through interpolation.
        val_length: Use only so many validation and test samples; None: all.
    """

    def __init__(
        self,
        source: Callable[..., Source | None],
        *,
        num_classes: int,
        ignore_index: int,
        crop_size: Sequence[int],
        batch_size: int,
        val_batch_size: int,
        num_workers: int,
        seed: int,
        max_steps: int,
        transform: TrainTransform,
        accumulate: int = 1,
        name: str = "",
        root: str | None = None,
        classes: Sequence[str] | None = None,
        val_length: int | None = None,
    ) -> None:
        super().__init__()
        self.make_source = source
        self.num_classes, self.ignore_index, self.crop_size = num_classes, ignore_index, tuple(crop_size)
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.seed, self.total, self.transform = seed, max_steps * accumulate, transform
        self.name, self.root, self.val_length = name, root, val_length
        self._sources: dict[str, Source | None] = {}
        self._datasets: dict[str, SegmentationDataset] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source("val").classes

    @property
    def palette(self) -> list[list[int]]:
        """Colours of the classes, RGB 0 to 255."""
        palette: list[list[int]] = self.source("val").palette.tolist()
        return palette

    @property
    def groups(self) -> tuple[tuple[int, ...], ...] | None:
        """Groups of classes of which group accuracy is reported, or None."""
        return self.source("val").groups

    @property
    def has_test(self) -> bool:
        """Whether there is a labelled test split."""
        return self._find("test") is not None

    def source(self, split: str) -> Source:
        """Return a split.

        Raises:
            ConfigError: If there is no such split, or its classes do not agree with the configuration.
            DataError: If its files are absent.
        """
        source = self._find(split)
        if source is None:
            raise ConfigError(
                f"expected a split of the data set, got {split=}, which {self.name or 'it'} has not"
            )
        return source

    def dataset(self, split: str) -> SegmentationDataset:
        """Return a split as tensors, train with the training transform."""
        if split not in self._datasets:
            training = split == "train"
            self._datasets[split] = SegmentationDataset(
                self.source(split),
                self.transform if training else None,
                self.seed,
                None if training else self.val_length,
            )
        return self._datasets[split]

    def check(self) -> None:
        """Check the samples of all splits.

        Raises:
            DataError: If a sample cannot be used.
        """
        for split in SPLITS:
            source = self._find(split)
            if source is not None:
                source.check()

    def setup(self, stage: str | None = None) -> None:
        """Find the splits that the stage needs; again is no work."""
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage or "", ()):
            self.dataset(split)

    def train_dataloader(self) -> "TrainLoader":
        """Return all training batches of the run.

        Raises:
            ConfigError: If the batch cannot be shared by the processes.
        """
        rank, world = self._place()
        if self.batch_size % world:
            raise ConfigError(
                f"expected data.batch_size to be a multiple of the {world} processes, got {self.batch_size}"
            )
        dataset = self.dataset("train")
        plan = BatchPlan(len(dataset), self.batch_size, self.total, self.seed, rank, world)
        return TrainLoader(dataset, batch_sampler=plan, **self._loading())

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the validation split in order."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the test split in order."""
        return self._eval_loader("test")

    def _eval_loader(self, split: str) -> DataLoader[dict[str, Any]]:
        rank, world = self._place()
        dataset = self.dataset(split)
        # strided and not padded: a sampler that pads counts samples twice
        mine = range(rank, len(dataset), world)
        return DataLoader(dataset, batch_size=self.val_batch_size, sampler=mine, **self._loading())

    def _find(self, split: str) -> Source | None:
        if split not in self._sources:
            source = self.make_source(split=split)
            if source is not None and len(source.classes) != self.num_classes:
                raise ConfigError(
                    f"expected data.num_classes={len(source.classes)}, the number of class names, "
                    f"got data.num_classes={self.num_classes}"
                )
            if source is not None and source.ignore_index != self.ignore_index:
                raise ConfigError(
                    f"expected data.ignore_index={source.ignore_index}, got data.ignore_index={self.ignore_index}"
                )
            self._sources[split] = source
        return self._sources[split]

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "collate_fn": collate,
            "worker_init_fn": _start_worker,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # a loader draws a seed for its workers; not from the global state, which resuming restores
            "generator": torch.Generator().manual_seed(self.seed),
        }


class TrainLoader(DataLoader[dict[str, Any]]):
    """A loader that counts the batches it gave; Lightning saves and restores the count."""

    batch_sampler: BatchPlan
    batches = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield batches from where `load_state_dict` said."""
        self.batches = self.batch_sampler.start
        for batch in super().__iter__():
            self.batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches given."""
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next iteration after the batches of `state`."""
        self.batch_sampler.start = state["batches"]


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples to a batch.

    Raises:
        DataError: If the images differ in size.
    """
    sizes = sorted({tuple(s["mask"].shape) for s in samples})
    if len(sizes) > 1:
        raise DataError(
            f"expected images of one size in a batch, got {sizes[0]} and {sizes[-1]}, e.g. in '{samples[0]['id']}'; "
            "use data.val_batch_size=1"
        )
    batch: dict[str, Any] = {k: torch.stack([s[k] for s in samples]) for k in samples[0] if k != "id"}
    batch["id"] = [s["id"] for s in samples]
    return batch


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
