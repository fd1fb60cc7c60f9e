"""A LightningDataModule of the user's own: its batches, in one process and shared, and its samples."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, IterableDataset

from isaseg.data.adopted import AdoptedData
from isaseg.data.dataset import Views
from isaseg.errors import ConfigError, DataError

K, IGNORED = 3, 255


def sample(index: int) -> dict[str, Any]:
    image = torch.full((3, 8, 8), index, dtype=torch.uint8)
    return {"image": image, "mask": torch.full((8, 8), index % K)}


class Stream(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (sample(index) for index in range(7))


class Mine(LightningDataModule):
    """Notes how often it is set up."""

    classes = ("a", "b", "c")

    def __init__(self, data: Any = None) -> None:
        super().__init__()
        self.data = [sample(index) for index in range(7)] if data is None else data
        self.stages: list[str] = []
        self.steps = 0

    def setup(self, stage: str) -> None:
        self.stages.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(self.data, 2, shuffle=not isinstance(self.data, IterableDataset))

    def val_dataloader(self) -> Any:
        return DataLoader(self.data, 2)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]


def adopted(module: Any = None, **changes: Any) -> AdoptedData:
    arguments: dict[str, Any] = {
        "num_classes": K,
        "ignore_index": IGNORED,
        "crop_size": (8, 8),
        "name": "mine",
    }
    return AdoptedData(Mine() if module is None else module, **{**arguments, **changes})


def test_processes_share_the_batches_of_evaluation() -> None:
    data = adopted()
    shares = [list(data.eval_loader("val", rank, 3)) for rank in range(3)]
    assert (
        [len(share) for share in shares]
        == [2, 1, 1]
        == [len(data.eval_loader("val", r, 3)) for r in range(3)]
    )
    names = [name for share in shares for (batch,) in share for name in batch["id"]]
    assert len(set(names)) == 7 and sorted(names)[0] == "val_00000_0"
    assert data.module.stages == ["validate"], "set up once"


def test_pictures_at_other_sizes_take_the_place_of_the_image() -> None:
    def halves(image: torch.Tensor) -> list[torch.Tensor]:
        return [image[..., ::2, ::2], image]

    batches = [batch for (batch,) in adopted().eval_loader("val", views=Views(halves, 2))]
    assert [len(batch["id"]) for batch in batches] == [2, 2, 2, 1], "the module's own batches"
    for batch in batches:
        assert "image" not in batch and batch["size"] == (8, 8)
        assert [view.shape[1:] for view in batch["views"]] == [(3, 4, 4), (3, 8, 8)]


def test_labels_are_wanted_at_the_size_of_the_mask() -> None:
    class Finer(Mine):
        def val_dataloader(self) -> Any:
            return DataLoader([{**sample(0), "mask": torch.zeros(16, 24, dtype=torch.int64)}], 1)

    ((batch,),) = adopted(Finer()).eval_loader("val", views=Views(lambda image: [image], 1))
    assert batch["size"] == (16, 24) and batch["views"][0].shape == (1, 3, 8, 8)


def test_several_processes_do_not_train_on_the_same_samples() -> None:
    data = adopted()
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="got RandomSampler; use torch.utils.data.DistributedSampler"):
        data.train_dataloader()


@pytest.mark.parametrize("data", [None, Stream()])
def test_samples_are_found_by_place_and_by_name(data: Any) -> None:
    found = adopted(Mine(data)).samples("val", [6, "val_00001_1", 0, 99, "nobody"])
    assert [int(one["image"].max()) for one in found] == [6, 3, 0]
    assert found[1]["id"] == "val_00001_1"
    assert adopted(Mine(data)).length("val") == 7


def test_names_of_the_modules_own_are_kept() -> None:
    named = [{**sample(index), "id": f"shape {index}"} for index in range(7)]
    data = adopted(Mine(named))
    names = [name for (batch,) in data.eval_loader("val") for name in batch["id"]]
    assert names == [f"shape {index}" for index in range(7)]
    (found,) = data.samples("val", ["shape 5"])
    assert int(found["image"].max()) == 5


def test_what_a_module_knows_is_kept() -> None:
    data = adopted()
    assert data.classes == ("a", "b", "c") and data.source("val").palette.shape == (K, 3)
    assert adopted(classes=["x", "y", "z"]).classes == ("x", "y", "z")
    assert not data.is_labelled("test") and not data.is_labelled("train")
    with pytest.raises(ConfigError, match="got split='test'"):
        data.source("test")
    data.module.steps = 5
    again = adopted()
    again.load_state_dict(data.state_dict())
    assert again.module.steps == 5


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_data_sets_of_lightning_are_a_module_whose_classes_may_be_a_number() -> None:
    module = LightningDataModule.from_datasets(Stream(), Stream(), batch_size=2)
    module.classes = K  # type: ignore[attr-defined]
    assert adopted(module).classes == ("0", "1", "2") and adopted(module).length("val") == 7
    assert not adopted(module).is_labelled("test")


def test_a_test_split_without_masks_has_no_labels() -> None:
    class Tested(Mine):
        def test_dataloader(self) -> Any:
            return self.val_dataloader()

    bare = [{key: value for key, value in sample(index).items() if key != "mask"} for index in range(3)]
    assert adopted(Tested(bare)).is_labelled("val") and not adopted(Tested(bare)).is_labelled("test")
    assert adopted(Tested([sample(0)])).is_labelled("test")


def test_looking_at_the_first_batch_draws_no_random_number() -> None:
    class Drawing(Mine):
        def setup(self, stage: str) -> None:
            draw()

    def draw() -> tuple[float, ...]:
        return torch.rand(1).item(), np.random.rand(), random.random()

    with isolate_rng():
        expected = draw()
    adopted(Drawing()).check()
    assert draw() == expected


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ([], "got NoneType"),
        ([1, 2], "got Tensor"),
        (
            [{"image": torch.zeros(3, 8, 8, dtype=torch.uint8)}],
            r"got {'image': 'torch.uint8 \(1, 3, 8, 8\)'}",
        ),
        ([{**sample(0), "image": torch.zeros(8, 8, 3, dtype=torch.uint8)}], r"\(1, 8, 8, 3\)"),
        ([{**sample(0), "mask": torch.zeros(8, 8)}], "torch.float32"),
        ([{**sample(0), "mask": torch.zeros(1, 8, 8).long()}], r"torch.int64 \(1, 1, 8, 8\)"),
        ([{**sample(0), "mask": torch.full((8, 8), -1)}], r"labels 0 to 2 and 255.*got \[-1\]"),
    ],
)
def test_a_batch_that_cannot_be_used_is_shown(batch: Any, match: str) -> None:
    class Other(Mine):
        def train_dataloader(self) -> Any:
            return DataLoader(batch, 2)

    with pytest.raises(DataError, match=match):
        adopted(Other()).check()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"module": 5}, "a LightningDataModule, got int"),
        ({"module": LightningDataModule()}, "to have train_dataloader, got LightningDataModule"),
        ({"palette": [[0, 0, 0]]}, "data.palette as one RGB triple of 0 to 255 for each of 3 classes"),
    ],
)
def test_what_is_no_module_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        adopted(**changes)
