"""A LightningDataModule of the user's own, with what training and evaluation need beside its loaders."""

from collections.abc import Iterator, Sequence, Sized
from typing import Annotated, Any, NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import RandomSampler, SequentialSampler

from isaseg.data.dataset import Views
from isaseg.data.info import as_palette, default_palette
from isaseg.data.loader import Batch
from isaseg.data.module import SegmentationDataModule, place_of
from isaseg.errors import ConfigError, DataError

_STAGES = {
    "train": ("fit",),
    "val": ("validate", "fit"),
    "test": ("test",),
}  # after which a loader can be had
_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class LabelInfo(NamedTuple):
    """What is known about the labels of a split, as a `Source` has it."""

    classes: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int
    groups: None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()


class AdoptedData(lightning.LightningDataModule):
    """Any LightningDataModule in the place of `SegmentationDataModule`.

    Its loaders give dicts with `image`, uint8 RGB (B, 3, H, W), `mask`, integers (B, H, W), and perhaps `id`, B names.
    Those of training give crops of one size; a mask of val and test may have another size than its image. A run resumes
    as far as Lightning can resume such loaders; which samples each process gets is up to the module.

    Args:
        module: The LightningDataModule; without hooks that change a batch on its way to the device.
        num_classes: K; labels are 0 to K - 1.
        ignore_index: The label that is left out.
        crop_size: (H, W) of a training sample.
        name: Short name, for run names and tags.
        classes: Names; None: the module's attribute `classes` if it is a list or tuple of names, else numbers.
        palette: One RGB triple for each class; None: different hues.

    Raises:
        ConfigError: If `module` is none, has such hooks, or names and colours are not those of K classes.
    """

    def __init__(
        self,
        module: Any,
        *,
        num_classes: Annotated[int, Field(ge=2, le=254)],
        ignore_index: NonNegativeInt,
        crop_size: Annotated[tuple[PositiveInt, PositiveInt], Field(description="[height, width]")],
        name: str,
        classes: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, lightning.LightningDataModule):
            raise ConfigError(
                f"expected data.module to be a LightningDataModule, got {type(module).__name__}"
            )
        for hook in _TRANSFERS:
            if getattr(type(module), hook) is not getattr(lightning.LightningDataModule, hook):
                raise ConfigError(
                    f"expected a data.module whose loaders give what the network takes, got {type(module).__name__} "
                    f"with {hook}; do in the loaders what it does"
                )
        for split in ("train", "val"):
            if not _has(module, split):
                raise ConfigError(
                    f"expected data.module to have {split}_dataloader, got {type(module).__name__}"
                )
        self.module, self.num_classes, self.ignore_index = module, num_classes, ignore_index
        self.name, self.crop_size = name, tuple(crop_size)
        self.names = classes
        self.colours = None if palette is None else as_palette(palette, num_classes, "data.palette")
        self.prepare_data_per_node = module.prepare_data_per_node
        self._ready: set[str] = set()
        self._test_labelled: bool | None = None  # not looked at yet

    # ------------------------------------------------------------ as Lightning calls it

    def prepare_data(self) -> None:
        """Let the module prepare its data."""
        self.module.prepare_data()

    def setup(self, stage: str) -> None:
        """Set the module up."""
        self.module.trainer = self.trainer
        self.module.setup(stage)
        self._ready.add(stage)

    def teardown(self, stage: str) -> None:
        """Tear the module down."""
        self.module.teardown(stage)
        self._ready.discard(stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the module's state."""
        return self.module.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the module's state."""
        self.module.load_state_dict(state_dict)

    def train_dataloader(self) -> Any:
        """Return the module's loader.

        Raises:
            ConfigError: If several processes would get the same samples.
        """
        loader = self.module.train_dataloader()
        several = self.trainer is not None and self.trainer.world_size > 1
        if several and isinstance(getattr(loader, "sampler", None), RandomSampler | SequentialSampler):
            raise ConfigError(
                "expected a train loader that shares its samples between the processes, got "
                f"{type(loader.sampler).__name__}; use torch.utils.data.DistributedSampler, or trainer.devices=1"
            )
        return loader

    def val_dataloader(self) -> "EvalBatches":
        """Return the validation split, see `eval_loader`."""
        return self.eval_loader("val", *place_of(self.trainer))

    def test_dataloader(self) -> "EvalBatches":
        """Return the test split, see `eval_loader`."""
        return self.eval_loader("test", *place_of(self.trainer))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Give a training batch ids if it has none; Lightning passes the summary's image too."""
        return _named(batch, "train", "sample") if isinstance(batch, dict) else batch

    # ------------------------------------------------------------ as ours

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.source("val").classes

    def is_labelled(self, split: str) -> bool:
        """Return whether the module has a loader of a split for evaluation; that of test has to give masks."""
        if split not in ("val", "test") or not _has(self.module, split):
            return False
        if split == "test" and self._test_labelled is None:
            with isolate_rng(include_cuda=False):
                self._set_up(split)
                first = next(iter(self.module.test_dataloader()), None)
            self._test_labelled = not isinstance(first, dict) or first.get("mask") is not None
        return split == "val" or bool(self._test_labelled)

    def source(self, split: str) -> LabelInfo:
        """Return what is known about the labels of a split.

        Raises:
            ConfigError: If the split is not one for evaluation, or the names are not those of K classes.
        """
        if split not in ("val", "test") or not _has(self.module, split):
            raise ConfigError(f"expected split=val, or test if data.module has test_dataloader, got {split=}")
        known = getattr(self.module, "classes", None)
        is_named = isinstance(known, list | tuple) and all(isinstance(name, str) for name in known)
        names = self.names or (known if is_named else None) or range(self.num_classes)
        if len(names) != self.num_classes:
            raise ConfigError(
                f"expected data.num_classes={len(names)}, the number of class names, got {self.num_classes}"
            )
        classes = tuple(str(name) for name in names)
        palette = default_palette(classes) if self.colours is None else self.colours
        return LabelInfo(classes, palette, self.ignore_index)

    def check(self) -> None:
        """Check the first batch of train and val.

        Raises:
            DataError: If it is not what training needs.
        """
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return  # the first process prepares the data
        with isolate_rng(include_cuda=False):  # of torch, NumPy and Python: training draws what it drew
            self._set_up("train")
            for split, batches in (("train", self.train_dataloader()), ("val", self.eval_loader("val"))):
                first = next(iter(batches), None)
                batch = first[0] if split == "val" and first else first
                _check_labels(_named(batch, split, ""), split, self.num_classes, self.ignore_index)

    def eval_loader(
        self, split: str, rank: int = 0, world: int = 1, views: Views | None = None
    ) -> "EvalBatches":
        """Return a process' share of a split in order; each item is a list of one batch, whose images `views` resizes."""
        self._set_up(split)
        return EvalBatches(getattr(self.module, f"{split}_dataloader")(), split, rank, world, views)

    def length(self, split: str) -> int:
        """Return the number of images of a split; reads all of them if its loader's data set has no length."""
        batches = self.eval_loader(split)
        dataset = getattr(batches.loader, "dataset", None)
        if isinstance(dataset, Sized):
            return len(dataset)
        return sum(len(batch["image"]) for (batch,) in batches)

    def samples(self, split: str, wanted: Sequence[int | str]) -> list[dict[str, Any]]:
        """Return the samples of these places or names, as far as there are such."""
        found: dict[int | str, dict[str, Any]] = {}
        place = 0
        for (batch,) in self.eval_loader(split):
            for number, name in enumerate(batch["id"]):
                sample = {"image": batch["image"][number], "mask": batch["mask"][number], "id": name}
                found |= {key: sample for key in (place, name) if key in wanted}
                place += 1
            if len(found) == len(set(wanted)):
                break
        return [found[key] for key in wanted if key in found]

    def _set_up(self, split: str) -> None:
        if not self._ready.intersection(_STAGES[split]):
            self.prepare_data()
            self.setup(_STAGES[split][0])


Data = SegmentationDataModule | AdoptedData


class EvalBatches:
    """A process' share of the batches of a loader for evaluation, each as a list of one; an empty list if it has none."""

    def __init__(self, loader: Any, split: str, rank: int, world: int, views: Views | None = None) -> None:
        self.loader, self.split, self.rank, self.world, self.views = loader, split, rank, world, views

    def __len__(self) -> int:
        """Return the number of this process' batches."""
        return max(len(range(self.rank, len(self.loader), self.world)), self.world > 1)

    def __iter__(self) -> Iterator[list[Batch]]:
        """Yield this process' batches."""
        number = -1
        for number, batch in enumerate(self.loader):
            if number % self.world == self.rank:
                found = _named(batch, self.split, f"{self.split}_{number:05d}")
                if self.views is not None:
                    image = found.pop("image")
                    found |= {"views": self.views.make(image), "size": tuple(found["mask"].shape[1:])}
                yield [found]
        if self.world > 1 and number < self.rank:
            yield []


def _has(module: lightning.LightningDataModule, split: str) -> bool:
    method = f"{split}_dataloader"  # `from_datasets` sets it on the instance
    found = getattr(module, method)
    return getattr(found, "__func__", found) is not getattr(lightning.LightningDataModule, method)


def _named(batch: Any, split: str, prefix: str) -> Batch:
    """Return a batch with a list of names as `id`.

    Raises:
        DataError: If it is not what `AdoptedData` describes.
    """
    parts = [batch.get(key) for key in ("image", "mask")] if isinstance(batch, dict) else []
    image, mask = parts if all(isinstance(part, Tensor) for part in parts) and parts else (None, None)
    if image is None or mask is None or image.dtype != torch.uint8 or image.ndim != 4 or image.shape[1] != 3:
        raise _fault(split, batch)
    if mask.is_floating_point() or mask.ndim != 3 or len(mask) != len(image):
        raise _fault(split, batch)
    ids = batch.get("id", [f"{prefix}_{i}" for i in range(len(image))])
    return {**batch, "id": [str(one) for one in (ids.tolist() if isinstance(ids, Tensor) else ids)]}


def _fault(split: str, batch: Any) -> DataError:
    shown = {
        key: f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        for key, value in (batch.items() if isinstance(batch, dict) else ())
    }
    return DataError(
        f"expected the {split} loader of data.module to give dicts with image, uint8 (B, 3, H, W), and mask, integers "
        f"(B, H, W), got {shown or type(batch).__name__}; normalisation is left to the network"
    )


def _check_labels(batch: Batch, split: str, num_classes: int, ignore_index: int) -> None:
    labels = batch["mask"].long().unique()
    strange = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)].tolist()
    if strange:
        raise DataError(
            f"expected labels 0 to {num_classes - 1} and {ignore_index} from the {split} loader of data.module, got "
            f"{strange[:10]}; correct them, data.num_classes or data.ignore_index"
        )
