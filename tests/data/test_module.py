"""The data module: the same batches whatever the workers and wherever it is resumed; no sample counts twice."""

from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from isaseg.data.lamps import Lamps
from isaseg.data.module import SegmentationDataModule, collate
from isaseg.data.transforms import TrainTransform
from isaseg.errors import ConfigError, DataError


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
        "transform": TrainTransform((64, 64), None, photometric=False, quarter_turns=True),
    }
    return SegmentationDataModule(**{**arguments, **changes})


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return len(a) == len(b) and all(
        x["id"] == y["id"] and torch.equal(x["image"], y["image"]) and torch.equal(x["mask"], y["mask"])
        for x, y in zip(a, b, strict=True)
    )


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    alone, with_two = list(module().train_dataloader()), list(module(num_workers=2).train_dataloader())
    assert len(alone) == 6
    assert same(alone, with_two)
    assert not same(alone, list(module(seed=1).train_dataloader()))


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


def test_loading_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    data = module()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_a_batch_and_count_no_sample_twice() -> None:
    whole = list(module().train_dataloader())
    train, val = [], []
    for rank in range(2):
        data = module()
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        train.append(list(data.train_dataloader()))
        val += [name for batch in data.val_dataloader() for name in batch["id"]]
    for k in range(6):
        assert sorted(train[0][k]["id"] + train[1][k]["id"]) == sorted(whole[k]["id"])
    assert sorted(val) == [f"val_{i:05d}" for i in range(5)]
    data = module(batch_size=3)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="data.batch_size to be a multiple of the 2 processes, got 3"):
        data.train_dataloader()


def test_evaluation_is_whole_in_order_and_untransformed() -> None:
    data = module(val_length=3)
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert [name for b in batches for name in b["id"]] == [f"{split}_{i:05d}" for i in range(3)]
        assert batches[0]["image"].shape == (2, 3, 128, 128)
        assert batches[0]["far"].shape == (2, 128, 128)


def test_attributes_and_length_of_the_plan() -> None:
    data = module(accumulate=3)
    data.setup("fit")
    data.setup("fit")
    data.setup(None)
    assert len(data.train_dataloader()) == 18
    assert data.classes[0] == "background"
    assert len(data.palette) == data.num_classes == 8
    assert data.groups == ((1, 2), (3, 4), (5, 6))
    assert data.has_test
    data.check()


def test_a_set_without_test_split() -> None:
    data = module(source=lambda split: None if split == "test" else Lamps(split, val_length=2))
    assert not data.has_test
    data.check()
    with pytest.raises(ConfigError, match="split='test'"):
        data.test_dataloader()


def test_configuration_and_source_must_agree() -> None:
    with pytest.raises(ConfigError, match="data.num_classes=8, .*got data.num_classes=7"):
        module(num_classes=7).setup("fit")
    with pytest.raises(ConfigError, match="data.ignore_index=255, got data.ignore_index=9"):
        module(ignore_index=9).setup("fit")


def test_a_batch_of_mixed_sizes_is_refused() -> None:
    samples = [
        {"image": torch.zeros(3, 4, width), "mask": torch.zeros(4, width), "id": f"i{width}"}
        for width in (5, 5, 6)
    ]
    assert collate(samples[:2])["image"].shape == (2, 3, 4, 5)
    assert collate(samples[:2])["id"] == ["i5", "i5"]
    with pytest.raises(DataError, match=r"\(4, 5\) and \(4, 6\).*data\.val_batch_size=1"):
        collate(samples)
