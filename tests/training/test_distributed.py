"""Two processes score a split as one does, whatever its length."""

from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from isaseg.data.module import SegmentationDataModule
from isaseg.data.sets.ade20k import ade20k
from isaseg.data.sets.lamps import Lamps
from isaseg.data.transforms import TrainTransform
from isaseg.inference.metrics import ConfusionMatrix, group_accuracy
from tests.fakes import make_fake_ade20k


def data_module(root: str | None, num_classes: int, rank: int, world: int) -> SegmentationDataModule:
    source: Any = partial(Lamps, val_length=5) if root is None else partial(ade20k, root=root)
    data = SegmentationDataModule(
        source,
        num_classes=num_classes,
        ignore_index=255,
        crop_size=(16, 16),
        batch_size=2,
        val_batch_size=2,
        num_workers=0,
        seed=0,
        max_steps=1,
        transform=TrainTransform((16, 16)),
    )
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy)  # type: ignore[assignment]
    return data


def score(root: str | None, num_classes: int, rank: int, world: int) -> tuple[torch.Tensor, list[str]]:
    """Return the matrix of all processes and the names of this one's samples; the network is a function of the pixel."""
    metric, names = ConfusionMatrix(num_classes), []
    for batches in data_module(root, num_classes, rank, world).val_dataloader():
        for batch in batches:
            metric.update(batch["image"][:, 0].long() % num_classes, batch["mask"])
            names += batch["id"]
    return metric.compute()["matrix"], names


def process(rank: int, folder: str, root: str) -> None:
    limit = timedelta(seconds=60)  # after which one that waits for the other in vain fails
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", timeout=limit, rank=rank, world_size=2
    )
    torch.save([score(None, 8, rank, 2), score(root, 150, rank, 2)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_m1_m3_two_processes_count_every_sample_once(tmp_path: Path) -> None:
    """Five images: three for one process, two for the other; those of ADE20K differ in size as well."""
    root = str(make_fake_ade20k(tmp_path / "data", n=5))
    arguments: Any = (str(tmp_path), root)
    torch.multiprocessing.start_processes(process, arguments, nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for number, alone in enumerate((score(None, 8, 0, 1), score(root, 150, 0, 1))):
        parts = [rank[number] for rank in ranks]
        assert [len(names) for _, names in parts] == [3, 2]
        assert sorted(parts[0][1] + parts[1][1]) == sorted(alone[1])
        assert all(torch.equal(matrix, alone[0]) for matrix, _ in parts)
    groups = ((1, 2), (3, 4), (5, 6))
    of_all = group_accuracy(score(None, 8, 0, 1)[0], groups)
    assert all(torch.equal(group_accuracy(rank[0][0], groups), of_all) for rank in ranks)
