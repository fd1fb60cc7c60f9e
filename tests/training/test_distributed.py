"""Several processes: what they share and what not, and what they say to each other."""

import hashlib
import json
import random
import signal
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from isaseg.data.adopted import EvalBatches
from isaseg.data.module import SegmentationDataModule
from isaseg.data.sets.ade20k import ade20k
from isaseg.data.sets.lamps import Lamps
from isaseg.data.transforms import TrainTransform
from isaseg.inference.metrics import SplitScores, group_accuracy
from isaseg.models.backbone import Backbone
from isaseg.models.norms import make_absolute
from isaseg.training.trainer import SyncedNorms
from tests.fakes import make_fake_ade20k
from tests.reliability.small import SMALL, said, train_in_processes


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


Scored = tuple[dict[str, torch.Tensor], list[str]]


def score(root: str | None, num_classes: int, rank: int, world: int) -> Scored:
    """Return the scores of all processes and the names of this one's samples; the network is a function of the pixel."""
    metric, names = SplitScores(num_classes), []
    for batches in data_module(root, num_classes, rank, world).val_dataloader():
        for batch in batches:
            metric.update(batch["image"][:, 0].long() % num_classes, batch["mask"])
            names += batch["id"]
    return metric.compute(), names


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
        for scores, _ in parts:
            torch.testing.assert_close(scores, alone[0], rtol=0, atol=0, equal_nan=True)
    groups = ((1, 2), (3, 4), (5, 6))
    of_all = group_accuracy(score(None, 8, 0, 1)[0]["matrix"], groups)
    assert all(torch.equal(group_accuracy(rank[0][0]["matrix"], groups), of_all) for rank in ranks)


def wait_no_longer(step: int, rank: int) -> None:
    """End a process by an alarm if it waits for the other in vain."""
    signal.alarm(60)


def test_a_process_without_a_picture_to_score_goes_with_the_others(tmp_path: Path) -> None:
    """In validation, at the end, and where a callback monitors the score; the picture counts once."""
    words = [*SMALL, "data.val_length=1", "score_test=true", "callbacks=[default,early_stopping]"]
    words += ["trainer.max_steps=4", "trainer.val_check_interval=2", "data.num_workers=0", "pictures=1"]
    assert train_in_processes(words, tmp_path, 2, wait_no_longer) == [0, 0], said(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(0 <= metrics[key] <= 1 for key in ("val/mIoU", "test/mIoU")) and metrics["val/loss"] > 0
    (sample,) = data_module(None, 8, 0, 1).samples("val", [0])
    counted = json.loads((tmp_path / "confusion.json").read_text())["matrix"]
    assert sum(map(sum, counted)) == int((sample["mask"] != 255).sum())


def test_an_own_loader_with_fewer_batches_than_processes() -> None:
    batch = {"image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "mask": torch.zeros(1, 4, 4).long()}
    shares = [EvalBatches([batch] * 2, "val", rank, 3) for rank in range(3)]
    assert [[len(batches) for batches in share] for share in shares] == [[1], [1], [0]]
    assert [len(share) for share in shares] == [1, 1, 1]


def collectives(words: Sequence[str], folder: Path) -> dict[str, int]:
    """Return how often each collective is called in a step away from logging, of two processes; see `noted`.

    FOLDER/state.RANK.STEP has the state of the random numbers before a step.
    """
    folder.mkdir()

    def noted(now: int, rank: int) -> None:
        signal.alarm(60)
        state = hashlib.sha256(torch.get_rng_state().numpy().tobytes() + repr(random.getstate()).encode())
        (folder / f"state.{rank}.{now}").write_text(state.hexdigest())
        if now == 3:
            profiler.__enter__()
        if now == 4 and rank == 0:
            profiler.__exit__(None, None, None)
            counts = {event.key: event.count for event in profiler.key_averages()}
            (folder / "counts.json").write_text(json.dumps(counts))

    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    words = [*SMALL, "trainer.log_every_n_steps=10", "trainer.max_steps=6", "data.num_workers=0", *words]
    assert train_in_processes([*words, "trainer.val_check_interval=6"], folder, 2, noted) == [0, 0], said(
        folder
    )
    counts = json.loads((folder / "counts.json").read_text())
    return {key.removeprefix("c10d::"): n for key, n in counts.items() if key.startswith("c10d::")}


def test_a_step_has_one_all_reduce_beside_those_of_gradients_and_no_barrier(tmp_path: Path) -> None:
    """Gradients fill two buckets, the first of a megabyte; norms are not synchronised, so that buffers are sent.

    Each process draws masks of its own. (That they go on with them: tests/reliability/test_interruptions.py.)
    """
    found = collectives(["head.dropout=0.3"], tmp_path / "run")
    states = list((tmp_path / "run").glob("state.*"))
    assert len(states) == len({path.read_text() for path in states}) == 2 * 6
    assert found.pop("broadcast_") == 2  # floats and integers
    assert found == {"allreduce_": 2 + 1}


def test_buffers_are_not_sent_where_norms_are_synchronised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(Synchronised norms are for GPUs: here they are plain ones.)"""
    monkeypatch.setattr(SyncedNorms, "apply", lambda self, model: model)
    monkeypatch.setattr("isaseg.config.checks._check_trainer", lambda node: None)
    found = collectives(["+trainer.sync_batchnorm=true"], tmp_path / "run")
    assert found == {"allreduce_": 2 + 1}


class First(torch.nn.Module):
    """Gives the first of a backbone's maps."""

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return maps[0]


@pytest.mark.parametrize("absolute", [False, True])
def test_synchronised_norms_keep_the_activations_inside_them(absolute: bool) -> None:
    """torch's conversion makes a timm norm with activation a plain norm; the end restores the very modules.

    It knows nothing of the factor |weight| + eps either.
    """
    torch.manual_seed(0)
    backbone = Backbone("efficientnet_lite0", out_indices=(1,))
    network = torch.nn.Sequential(backbone, First(), torch.nn.BatchNorm2d(backbone.channels[0]))
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    if absolute:
        make_absolute(network)
    image = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    kinds = {name: type(part) for name, part in network.named_modules()}
    before, norms = network.eval()(image), dict(network.named_modules())
    plugin = SyncedNorms()
    synced = plugin.apply(network)
    assert any(isinstance(part, torch.nn.SyncBatchNorm) for part in synced.modules())
    assert torch.equal(synced(image), before)
    for part in synced.modules():
        if isinstance(part, torch.nn.SyncBatchNorm):
            part.running_mean = part.running_mean + 1
    changed = synced(image)
    reverted = plugin.revert(synced)
    assert dict(reverted.named_modules()) == norms
    assert {name: type(part) for name, part in reverted.named_modules()} == kinds
    assert torch.equal(reverted(image), changed) and not torch.equal(changed, before)
