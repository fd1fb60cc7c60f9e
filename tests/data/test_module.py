"""The data module: the same batches whatever the workers and wherever it is resumed; no sample counts twice."""

import os
import pickle
import random
import signal
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from isaseg.data.dataset import SegmentationDataset, Views
from isaseg.data.loader import collate, collate_by_size
from isaseg.data.module import SegmentationDataModule
from isaseg.data.sets.ade20k import ade20k
from isaseg.data.sets.lamps import Lamps
from isaseg.data.source import FileSource, Loaded
from isaseg.data.tools.build_cache import build_cache
from isaseg.data.transforms import HorizontalFlip, PhotometricDistortion, RandomRotate90, TrainTransform
from isaseg.errors import ConfigError, DataError
from tests.fakes import make_fake_ade20k
from tests.reliability.small import SMALL, said, train_in_processes

AUGMENT = [PhotometricDistortion(), HorizontalFlip(p=0.5), RandomRotate90()]


def module(**changes: Any) -> SegmentationDataModule:
    arguments: dict[str, Any] = {
        "source": partial(Lamps, train_length=10, val_length=5),
        "num_classes": 8,
        "ignore_index": 255,
        "crop_size": (64, 64),
        "batch_size": 4,
        "val_batch_size": 2,
        "num_workers": 0,
        "seed": 0,
        "max_steps": 6,
        "transform": TrainTransform((64, 64), None, augment=AUGMENT[1:]),
    }
    return SegmentationDataModule(**{**arguments, **changes})


def on(rank: int, world: int, device: str = "cpu") -> Any:
    """Return what loaders ask a trainer."""
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x["id"] == y["id"] and torch.equal(x["image"], y["image"]) and torch.equal(x["mask"], y["mask"])
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_goes_on_with_the_next_batch(num_workers: int) -> None:
    loader = module(num_workers=num_workers).train_dataloader()
    assert loader.state_dict() == {"batches": 0}
    iterator = iter(loader)
    list(islice(iterator, 2))
    state = loader.state_dict()
    assert state == {"batches": 2}
    resumed = module(num_workers=num_workers).train_dataloader()
    resumed.load_state_dict(state)
    assert same(list(resumed), list(iterator))
    assert resumed.state_dict() == {"batches": 6}


def test_loading_leaves_the_global_random_states() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), pickle.dumps(np.random.get_state())

    before = states()
    data = module(transform=TrainTransform((64, 64), augment=AUGMENT))
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert states() == before


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_memory_is_pinned_for_cuda_alone(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is a GPU and the run is on the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = module()
    data.trainer = on(0, 1, device)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [loader.pin_memory for loader in loaders] == [device == "cuda"] * 3


def test_a_worker_stacks_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the queue does not copy the batch; values and memory formats are those of a batch made in this process."""
    samples = [
        {
            "id": str(i),
            "image": torch.randint(0, 256, (4, 6, 3), dtype=torch.uint8).permute(2, 0, 1),
            "views": [torch.randint(0, 256, (2, 3, 3), dtype=torch.uint8).permute(2, 0, 1)] * 2,
            "mask": torch.randint(0, 5, (4, 6), dtype=torch.uint8),
            "far": torch.rand(4, 6) < 0.5,
            "size": (4, 6),
        }
        for i in range(3)
    ]
    for some in (samples, samples[:1]):
        here = collate(some)
        with monkeypatch.context() as patch:
            patch.setattr(torch.utils.data, "get_worker_info", lambda: object())
            there = collate(some)
        assert there["id"] == [s["id"] for s in some] and there["size"] == (4, 6)
        for name in ("image", "mask", "far"):
            assert torch.equal(there[name], torch.stack([s[name] for s in some]))
        pairs = [(here[name], there[name]) for name in ("image", "mask", "far")]
        pairs += zip(here["views"], there["views"], strict=True)
        for one, other in pairs:
            assert torch.equal(one, other) and one.stride() == other.stride()
            assert other.is_shared() and not one.is_shared()
            assert other.storage_offset() == 0 and other.untyped_storage().nbytes() == other.numel()
        assert there["image"].permute(0, 2, 3, 1).is_contiguous(), "channels last"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_evaluation_gets_its_pictures_at_other_sizes_from_the_loader(num_workers: int) -> None:
    data = module(num_workers=num_workers, val_batch_size=4)
    views = Views(halves, 2)
    batches = [b for batches in data.eval_loader("val", views=views) for b in batches]
    plain = data.samples("val", range(5))
    assert [len(b["id"]) for b in batches] == [2, 2, 1], "val_batch_size counts each size"
    assert not any("image" in b for b in batches)
    assert [name for b in batches for name in b["id"]] == [s["id"] for s in plain]
    wanted = [view for s in plain for view in halves(s["image"][None])]
    found = [view[i : i + 1] for b in batches for i in range(len(b["id"])) for view in b["views"]]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(b["size"] == b["mask"].shape[1:] for b in batches)


def halves(image: torch.Tensor) -> list[torch.Tensor]:
    return [image, image[..., ::2, ::2].contiguous()]


def test_processes_count_no_validation_sample_twice() -> None:
    val = []
    for rank in range(2):
        data = module()
        data.trainer = on(rank, 2)
        val += [name for batches in data.val_dataloader() for b in batches for name in b["id"]]
    assert sorted(val) == [f"val_{i:05d}" for i in range(5)]


def test_m4_a_step_has_the_same_samples_however_they_are_shared() -> None:
    """Two processes of two accumulated batches each; transformed alike too."""

    def pictures(rank: int, world: int, accumulate: int) -> list[list[tuple[str, bytes]]]:
        data = module(accumulate=accumulate)
        data.trainer = on(rank, world)
        return [
            [(name, image.numpy().tobytes()) for name, image in zip(b["id"], b["image"], strict=True)]
            for b in data.train_dataloader()
        ]

    alone = pictures(0, 1, 1)
    shared = [pictures(rank, 2, 2) for rank in range(2)]
    assert [len(batches) for batches in shared] == [12, 12]
    for step in range(6):
        parts = [shared[rank][2 * step + part] for rank in range(2) for part in range(2)]
        assert [len(part) for part in parts] == [1, 1, 1, 1]
        assert sorted(sum(parts, [])) == sorted(alone[step])
    with pytest.raises(ConfigError, match=r"multiple of 8: .* 2, times trainer.*=4; got 4, choose 8"):
        pictures(0, 2, 4)
    with pytest.raises(ConfigError, match=r"multiple of 3: .* got 4, choose 3 or 6"):
        module(accumulate=3)


def test_evaluation_is_whole_in_order_and_untransformed() -> None:
    data = module(val_length=3)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = [b for (b,) in loader]
        assert [name for b in batches for name in b["id"]] == [f"{split}_{i:05d}" for i in range(3)]
        assert batches[0]["image"].shape == (2, 3, 128, 128)
        assert batches[0]["far"].shape == (2, 128, 128)


def test_a_set_without_test_split() -> None:
    data = module(source=lambda split: None if split == "test" else Lamps(split, val_length=2))
    assert not data.is_labelled("test")
    data.check()
    with pytest.raises(ConfigError, match="split='test'"):
        data.test_dataloader()
    with pytest.raises(ConfigError, match="a split of train, val, test, got split='dev'"):
        data.find("dev")


def test_configuration_and_source_must_agree() -> None:
    with pytest.raises(ConfigError, match="data.num_classes=8, .*got data.num_classes=7"):
        module(num_classes=7).find("train")
    with pytest.raises(ConfigError, match="data.ignore_index=255, got data.ignore_index=9"):
        module(ignore_index=9).find("val")


def test_a_batch_of_mixed_sizes_becomes_batches_of_one_size() -> None:
    samples = [
        {"image": torch.zeros(3, 4, width), "mask": torch.zeros(height, 7), "id": f"i{k}"}
        for k, (width, height) in enumerate([(5, 4), (6, 4), (5, 4), (5, 9)])
    ]
    batches = collate_by_size(samples)
    assert [b["id"] for b in batches] == [["i0", "i2"], ["i1"], ["i3"]]
    assert [tuple(b["image"].shape) for b in batches] == [(2, 3, 4, 5), (1, 3, 4, 6), (1, 3, 4, 5)]
    assert collate(samples[:1])["id"] == ["i0"]


class Deadly(Lamps):
    """Lamps of which one scene ends the process."""

    def load(self, index: int) -> Loaded:
        if index == 3:
            os._exit(1)
        return super().load(index)


class Wrong(TrainTransform):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a bug of the user's own")


def test_d12_another_fault_of_a_worker_keeps_its_own_words() -> None:
    with pytest.raises(RuntimeError, match="a bug of the user's own"):
        list(module(num_workers=1, transform=Wrong((64, 64))).train_dataloader())


# the signal of its death may come while torch ends its other parts, where nobody can catch what its handler raises
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_d12_a_dead_worker_is_reported_with_the_cure() -> None:
    data = module(source=partial(Deadly, train_length=10), num_workers=1)
    with pytest.raises(DataError, match=r"worker died.*lower data\.num_workers=1.*shared memory"):
        list(data.train_dataloader())


def test_d12_a_dead_worker_is_reported_at_once_after_a_training_in_the_same_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after() -> None:
        data = module(source=partial(Deadly, train_length=10), num_workers=1, timeout=1000)
        signal.alarm(60)
        with pytest.raises(DataError, match="exited unexpectedly"):
            list(data.train_dataloader())

    # as in a new process, in which torch has set no handler
    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_SIGCHLD_handler_set", False)
    monkeypatch.setattr("isaseg.data.loader._on_child_exit", None)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        words = [*SMALL, "trainer.max_steps=1", "data.num_workers=1"]
        assert train_in_processes(words, tmp_path / "run", after=after) == [0], said(tmp_path / "run")
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_d12_the_loader_waits_for_a_worker_no_longer_than_timeout() -> None:
    assert module(num_workers=1, timeout=7).train_dataloader().timeout == 7
    assert module(num_workers=1, timeout=7).val_dataloader().timeout == 7
    assert module(num_workers=0, timeout=7).train_dataloader().timeout == 0


def test_an_unlabelled_test_split_is_for_prediction_alone(tmp_path: Path) -> None:
    root = str(make_fake_ade20k(tmp_path, n=3, test=True))
    data = module(source=partial(ade20k, root=root), num_classes=150, num_workers=0)
    assert not data.is_labelled("test")
    batches = [b for batches in data.eval_loader("test") for b in batches]
    assert [name for b in batches for name in b["id"]] == [f"ADE_test_{i:08d}" for i in range(3)]
    assert all(b.keys() == {"image", "id", "size"} for b in batches)


def test_a_split_must_have_its_published_size_if_asked(tmp_path: Path) -> None:
    root = str(make_fake_ade20k(tmp_path))
    module(source=partial(ade20k, root=root), num_classes=150).check()
    with pytest.raises(DataError, match=r"has 2 images, the published split 20210.*data\.strict_size=false"):
        module(source=partial(ade20k, root=root), num_classes=150, strict_size=True).check()


@pytest.mark.parametrize("key", ["resize", "val_resize"])
@pytest.mark.parametrize("resize", [{"short": 3}, {"size": [3]}, {"short_side": 0}, {"long_side": 9}, 3])
def test_an_impossible_resize_is_refused(key: str, resize: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data\.\S*{key} as "):
        if key == "resize":
            TrainTransform((8, 8), resize=resize)
        else:
            module(val_resize=resize)


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


def batches(root: Path, workers: int = 0, augment: Any = AUGMENT[:2], **changes: Any) -> list[dict[str, Any]]:
    geometry: dict[str, Any] = {"aspect": (0.9, 1.1), "cat_max_ratio": 0.75, "pad": "random"}
    transform = TrainTransform((32, 48), augment=augment, **geometry)
    files = {"source": partial(ade20k, root=str(root)), "num_classes": 150, "transform": transform}
    return list(module(**files, num_workers=workers, **changes).train_dataloader())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine of two cores
def test_n5_any_number_of_workers_gives_the_same_batches_with_and_without_a_cache(
    root: Path, cache: Path
) -> None:
    alone = batches(root)
    for workers in (1, 3):
        assert same(alone, batches(root, workers))
    for workers in (0, 3):
        assert same(alone, batches(root, workers, cache=str(cache)))
    assert not same(alone, batches(root, seed=4))


def test_n5_a_sample_is_augmented_otherwise_in_every_epoch(root: Path) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in batches(root):  # 24 draws of 6 images
        for name, image in zip(batch["id"], batch["image"], strict=True):
            seen.setdefault(name, []).append(image)
    assert len(seen) == 6
    for images in seen.values():
        assert len({image.numpy().tobytes() for image in images}) == len(images) > 1


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells a process its memory")
@pytest.mark.parametrize("cached", [False, True])
def test_memory_stays_flat_over_1000_samples(root: Path, cache: Path, cached: bool) -> None:
    source = ade20k("train", str(root))
    assert isinstance(source, FileSource)
    source.cache = cache if cached else None
    dataset = SegmentationDataset(source, TrainTransform((32, 48), cat_max_ratio=0.75, augment=AUGMENT[:2]))
    before = 0
    for k in range(1300):
        dataset[(k % len(dataset), k)]
        if k == 299:
            before = resident_kib()
    assert resident_kib() - before < 1024  # keeping every mask would be 1500, every crop 6000
