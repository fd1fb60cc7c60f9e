"""Loaders for one data set: resumable training batches, and evaluation in which no sample counts twice."""

import inspect
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import cv2
import lightning
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from isaseg.data.augment import check_mirrors
from isaseg.data.check import check_files, check_first
from isaseg.data.dataset import SegmentationDataset, Views
from isaseg.data.loader import EvalLoader, TrainLoader, collate, collate_by_size
from isaseg.data.own_source import complete
from isaseg.data.resize import Resize, check_resize
from isaseg.data.sampler import BatchPlan
from isaseg.data.source import FileSource, Loaded, Source
from isaseg.data.transforms import TrainTransform
from isaseg.errors import ConfigError, IsasegError

SPLITS = ("train", "val", "test")

# macOS allows 103 bytes for the path of a socket, Linux 107; multiprocessing appends pymp-NNNNNNNN/listener-NNNNNNNN.
_LONGEST_TMPDIR = 71


class SegmentationDataModule(lightning.LightningDataModule):
    """The loaders of one data set.

    Files are listed when a split is first needed; only `check` decodes them ahead.

    Args:
        source: Called with split=train, val or test; returns that split, or None if there is none.
        num_classes: K; must agree with the source.
        ignore_index: Label that is left out; must agree with the source.
        crop_size: (H, W) of a training sample.
        batch_size: Training samples of an optimizer step, all processes and accumulated batches together.
        val_batch_size: Samples loaded at once in evaluation; those of one size go through the network together.
        num_workers: Loader processes; 0: this process loads.
        seed: Seed of order and transforms.
        max_steps: Optimizer steps of the run.
        transform: Training transform.
        accumulate: Batches that a process takes for an optimizer step.
        name: Short name of the data set, for run names and tags.
        root: Folder of the files; `source` reads it by interpolation.
        classes: Class names; `source` reads them by interpolation.
        split: Share of the images that are for validation; `source` reads it by interpolation.
        val_length: Use only the first so many validation and test samples; None: all.
        val_resize: How an image, never its labels, is resized for evaluation, see `resize.base_size`; None: native.
        cache: Folder of decoded images, used if it exists; None: no cache.
        timeout: Seconds until a worker that returns nothing counts as hanging.
        strict_size: Treat a split without its published number of images as an error.

    Raises:
        ConfigError: If the accumulated batches cannot share the samples of a step, or TMPDIR is too long for loaders.
    """

    def __init__(
        self,
        source: Callable[..., Source | None],
        *,
        num_classes: Annotated[int, Field(ge=2)],
        ignore_index: NonNegativeInt,
        crop_size: Annotated[tuple[PositiveInt, PositiveInt], Field(description="[height, width]")],
        batch_size: PositiveInt,
        val_batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        seed: Annotated[int, Field(ge=0, lt=2**32)],
        max_steps: PositiveInt,
        transform: TrainTransform,
        accumulate: PositiveInt = 1,
        name: Annotated[str, Field(pattern=r"\w", description="text with a letter or digit in it")] = "",
        root: str | None = None,
        classes: Sequence[str] | None = None,
        split: Annotated[float, Field(gt=0, lt=1)] | None = None,
        val_length: PositiveInt | None = None,
        val_resize: Resize | None = None,
        cache: str | None = None,
        timeout: PositiveFloat = 600,
        strict_size: bool = False,
    ) -> None:
        super().__init__()
        check_resize(val_resize, "data.val_resize")
        self.make_source = source
        self.num_classes, self.ignore_index, self.crop_size = num_classes, ignore_index, tuple(crop_size)
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.seed, self.transform = seed, transform
        self.max_steps, self.accumulate = max_steps, accumulate
        self.name, self.val_length, self.val_resize = name, val_length, val_resize
        self.cache, self.timeout = None if cache is None else Path(cache).expanduser(), timeout
        self.strict_size = strict_size
        self._sources: dict[str, Source | None] = {}
        self._check_batch(1)
        folder = tempfile.gettempdir()
        if num_workers and len(os.fsencode(folder)) > _LONGEST_TMPDIR:
            raise ConfigError(
                f"expected TMPDIR of at most {_LONGEST_TMPDIR} characters, since loaders need sockets there, got "
                f"'{folder}'; set TMPDIR to a shorter folder, or data.num_workers=0"
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source("val").classes

    def is_labelled(self, split: str) -> bool:
        """Return whether a split exists and its labels are public."""
        source = self.find(split)
        if source is None or isinstance(source, FileSource):
            return source is not None and source.labelled
        return split != "test" or Loaded(*source.load(0)).mask is not None

    def find(self, split: str) -> Source | None:
        """Return a split, None if the data set has no such split.

        Raises:
            ConfigError: If `split` is none of `SPLITS`, or the source does not agree with the configuration.
            DataError: If its files are absent.
        """
        if split not in SPLITS:
            raise ConfigError(f"expected a split of {', '.join(SPLITS)}, got {split=}")
        if split not in self._sources:
            try:
                inspect.signature(self.make_source).bind(split=split)
            except TypeError as error:
                raise ConfigError(
                    f"expected data.source to take split=train, val or test and to have its other arguments, got: {error}"
                ) from error
            try:
                source = self.make_source(split=split)
            except IsasegError:
                raise
            except Exception as error:
                if getattr(self.make_source, "func", self.make_source).__module__.startswith("isaseg."):
                    raise  # a fault of this project
                raise ConfigError(
                    f"data.source cannot be built for {split=}: {type(error).__name__}: {error}"
                ) from error
            if source is not None:
                complete(source, split, self.num_classes, self.ignore_index)
                check_mirrors(self.transform.augment, source.flip_pairs)
            if isinstance(source, FileSource) and self.cache is not None and self.cache.is_dir():
                source.cache = self.cache
            self._sources[split] = source
        return self._sources[split]

    def source(self, split: str) -> Source:
        """Return a split like `find`.

        Raises:
            ConfigError: If there is no such split, too.
        """
        source = self.find(split)
        if source is None:
            raise ConfigError(f"expected a split that {self.name or 'the data set'} has, got {split=}")
        return source

    def check(self) -> None:
        """Check the files of all splits, see `check.check_files`, or the first sample of each if they have none.

        Raises:
            DataError: If a sample cannot be used.
        """
        for split in SPLITS:
            source = self.find(split)
            if isinstance(source, FileSource):
                check_files(source, self.strict_size)
            elif source is not None:
                check_first(source, split)

    def eval_dataset(self, split: str, views: Views | None = None) -> SegmentationDataset:
        """Return a split as whole images."""
        return SegmentationDataset(
            self.source(split),
            length=self.val_length,
            resize=self.val_resize,
            interpolation=self.transform.interpolation,
            views=views,
        )

    def length(self, split: str) -> int:
        """Return the number of images that a split has in evaluation."""
        return len(self.eval_dataset(split))

    def samples(self, split: str, wanted: Sequence[int | str]) -> list[dict[str, Any]]:
        """Return the samples of these places or names, as whole images."""
        dataset = self.eval_dataset(split)
        places = {dataset.source.name(place): place for place in range(len(dataset))}
        return [dataset[one if isinstance(one, int) else places[one]] for one in wanted]

    def train_dataloader(self) -> TrainLoader:
        """Return all training batches of the run.

        Raises:
            ConfigError: If a step's samples cannot be shared by the processes and their accumulated batches.
        """
        rank, world = place_of(self.trainer)
        self._check_batch(world)
        dataset = SegmentationDataset(self.source("train"), self.transform, self.seed)
        plan = BatchPlan(
            len(dataset), self.batch_size, self.max_steps, self.seed, rank, world, self.accumulate
        )
        return TrainLoader(dataset, batch_sampler=plan, collate_fn=collate, **self._loading())

    def val_dataloader(self) -> EvalLoader:
        """Return the validation split, see `eval_loader`."""
        return self.eval_loader("val", *place_of(self.trainer))

    def test_dataloader(self) -> EvalLoader:
        """Return the test split, see `eval_loader`."""
        return self.eval_loader("test", *place_of(self.trainer))

    def eval_loader(
        self, split: str, rank: int = 0, world: int = 1, views: Views | None = None
    ) -> EvalLoader:
        """Return a process' share of a split in order, whole images; each item is a list of batches of one size.

        A process without a picture gets one empty list, so that it goes with the others to what they do together.

        Args:
            split: Its name.
            rank: Of the process, of which there are `world`.
            views: The loader's workers resize the images so; a batch has fewer of them, as they are larger together.
        """
        dataset = self.eval_dataset(split, views)
        own = range(rank, len(dataset), world)  # a sampler that pads would count samples twice
        size = max(1, self.val_batch_size // (views.number if views else 1))
        return EvalLoader(
            dataset,
            batch_sampler=[list(own[start : start + size]) for start in range(0, len(own), size)] or [[]],
            collate_fn=collate_by_size,
            **self._loading(),
        )

    def _check_batch(self, world: int) -> None:
        share = world * self.accumulate
        if self.batch_size % share:
            below = self.batch_size // share * share
            raise ConfigError(
                f"expected data.batch_size to be a multiple of {share}: the number of processes, {world}, times "
                f"trainer.accumulate_grad_batches={self.accumulate}; got {self.batch_size}, choose "
                + " or ".join(str(n) for n in (below, below + share) if n)
            )

    def _loading(self) -> dict[str, Any]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "worker_init_fn": _start_worker,
            "persistent_workers": self.num_workers > 0,
            "timeout": self.timeout if self.num_workers > 0 else 0,
            "pin_memory": on_cuda,  # it is of no use to another device, and starts CUDA
            # a loader draws a seed for its workers; not from the global state, which resuming restores
            "generator": torch.Generator().manual_seed(self.seed),
        }


def place_of(trainer: lightning.Trainer | None) -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


def _start_worker(worker: int) -> None:
    # Ctrl-C is handled by the process that saves, which ends its loaders itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
