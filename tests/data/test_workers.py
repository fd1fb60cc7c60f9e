"""Augmentation is a function of (seed, step, index), whoever loads; and a loader's memory stays flat."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from isaseg.data.dataset import SegmentationDataset
from isaseg.data.module import SegmentationDataModule
from isaseg.data.sets.ade20k import ade20k
from isaseg.data.source import FileSource
from isaseg.data.tools.build_cache import build_cache
from isaseg.data.transforms import TrainTransform
from tests.fakes import make_fake_ade20k


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fake_ade20k(tmp_path_factory.mktemp("ade20k"), n=6)


@pytest.fixture(scope="module")
def cache(root: Path) -> Path:
    source = ade20k("train", str(root))
    assert source is not None
    source.cache = root / "cache"
    build_cache(source)
    return root / "cache"


def module(root: Path, workers: int = 0, **changes: Any) -> SegmentationDataModule:
    return SegmentationDataModule(
        partial(ade20k, root=str(root)),
        num_classes=150,
        ignore_index=255,
        crop_size=(32, 48),
        batch_size=4,
        val_batch_size=1,
        num_workers=workers,
        seed=changes.pop("seed", 3),
        max_steps=6,
        transform=TrainTransform((32, 48), (0.5, 2.0), aspect=(0.9, 1.1), cat_max_ratio=0.75, pad="random"),
        **changes,
    )


def batches(data: SegmentationDataModule) -> list[dict[str, Any]]:
    return list(data.train_dataloader())


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a["id"] == b["id"] and torch.equal(a["image"], b["image"]) and torch.equal(a["mask"], b["mask"])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of two cores
def test_n5_any_number_of_workers_gives_the_same_batches_with_and_without_a_cache(
    root: Path, cache: Path
) -> None:
    alone = batches(module(root))
    for workers in (1, 3):
        assert all(map(equal, alone, batches(module(root, workers))))
    for workers in (0, 3):
        assert all(map(equal, alone, batches(module(root, workers, cache=str(cache)))))
    assert not any(map(equal, alone, batches(module(root, seed=4))))


def test_n5_a_sample_is_augmented_otherwise_in_every_epoch(root: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches(module(root)):  # 24 draws of 6 images
        for name, image in zip(batch["id"], batch["image"], strict=True):
            seen.setdefault(name, []).append(image)
    assert len(seen) == 6
    for images in seen.values():
        assert len({image.numpy().tobytes() for image in images}) == len(images) > 1


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells a process its memory")
@pytest.mark.parametrize("cached", [False, True])
def test_memory_stays_flat_over_2000_samples(root: Path, cache: Path, cached: bool) -> None:
    source = ade20k("train", str(root))
    assert isinstance(source, FileSource)
    source.cache = cache if cached else None
    dataset = SegmentationDataset(source, TrainTransform((32, 48), cat_max_ratio=0.75))
    before = 0
    for k in range(2300):
        dataset[(k % len(dataset), k)]
        if k == 299:
            before = resident_kib()
    assert resident_kib() - before < 2048  # keeping every mask would be 3000, every crop 12,000
