"""What evaluation asks of a GPU: few kernels for a batch, and no waiting before its counts are read.

Fake tensors of torch need no GPU: they refuse whatever the host would have to wait for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from isaseg.checkpoints.loading import load_model
from isaseg.inference import labels as module
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.labels import labels_from_coarse
from isaseg.inference.metrics import ConfusionMatrix, SplitScores, count_boundary, count_each, known
from tests.inference.test_apply import picture
from tests.inference.tiny import predict_logits

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class Kernels(TorchDispatchMode):
    """Notes the operations that are more than a view or an allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and not name.startswith(("empty", "split")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def fake() -> Iterator[Kernels]:
    with FakeTensorMode(), Kernels() as kernels:
        yield kernels


def test_a_batch_is_labelled_at_once_below_a_limit_of_memory() -> None:
    started = {}
    for pictures in (1, 4, 14):
        with fake() as kernels:
            coarse = torch.empty(pictures, 19, 128, 256, device="cuda")
            labels = labels_from_coarse(coarse, [(1024, 2048)], False)
        assert labels.shape == (pictures, 1024, 2048) and labels.dtype == torch.uint8
        assert labels.device.type == "cuda"
        started[pictures] = kernels.names
    assert started[4] == started[1]
    assert started[14][:-1] == 3 * started[1], "three pieces, which the last kernel joins"


def test_a_batch_is_counted_by_the_same_few_kernels() -> None:
    started = []
    for pictures in (1, 8):
        with fake() as kernels:
            labels, masks = (
                torch.empty(pictures, 1024, 2048, dtype=torch.uint8, device="cuda") for _ in range(2)
            )
            counts = count_each(labels, masks, 19, 255)
        assert counts.shape == (pictures, 20, 19) and counts.dtype == torch.int64
        started.append(kernels.names)
    assert started[0] == started[1] and len(started[0]) < 20


def test_a_validation_counts_without_waiting() -> None:
    metric = SplitScores(19)
    with fake():
        for name, size in {"counts": (20, 19), "boundary": (20, 20), "images": (2,)}.items():
            setattr(metric, name, torch.zeros(size, dtype=torch.int64, device="cuda"))
        metric.update(*(torch.empty(4, 512, 512, dtype=torch.int64, device="cuda") for _ in range(2)))
        assert metric.counts.device.type == "cuda"


def test_a_foreign_label_is_found_at_the_end_at_the_latest() -> None:
    metric = ConfusionMatrix(5)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 255]))
    metric.counts[-1, 0] += 1  # as a GPU leaves it
    with pytest.raises(ValueError, match=r"labels 0 to 4 or ignore_index=255, got others"):
        metric.compute()


@pytest.mark.parametrize("limit", [1, 5 * 48 * 72 * 2, 2**28])
def test_a_piece_has_as_many_pictures_as_the_limit_lets_and_at_least_one(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", limit)
    held: list[int] = []
    resize = module.resize

    def resizing(x: Tensor, *args: Any) -> Tensor:
        held.append(len(x))
        return resize(x, *args)

    monkeypatch.setattr(module, "resize", resizing)
    with fake():
        coarse = torch.empty(5, 5, 12, 18, device="cuda")
        labels = labels_from_coarse(coarse, [(48, 72), (40, 60)], False)
    assert labels.shape == (5, 40, 60)
    assert held == {1: [1] * 5, 2**28: [5]}.get(limit, [2, 2, 1])


@ON_GPU
@pytest.mark.parametrize("classes", [2, 19, 150])
def test_counts_of_a_gpu_are_those_of_a_cpu(classes: int) -> None:
    torch.manual_seed(0)
    prediction = torch.randint(0, classes, (3, 61, 83), dtype=torch.uint8)
    target = torch.randint(0, classes, (3, 61, 83), dtype=torch.uint8)
    target[torch.rand(3, 61, 83) < 0.2] = 255
    want = count_each(prediction, target, classes, 255)
    got = count_each(prediction.cuda(), target.cuda(), classes, 255)
    assert torch.equal(got.cpu(), want)
    near = [
        count_boundary(p, t, classes, 255).cpu()
        for p, t in ((prediction, target), (prediction.cuda(), target.cuda()))
    ]
    assert torch.equal(*near)
    target[0, 0, 0] = 254
    counts = count_each(prediction.cuda(), target.cuda(), classes, 255)
    with pytest.raises(ValueError, match="got 0 to 254"):
        known(counts, 255, target)


@ON_GPU
@pytest.mark.parametrize(
    "how",
    [
        Inference(),
        Inference(resize={"short_side": 60}),
        Inference(crop_size=(64, 64), stride=(40, 40)),
        Inference(scales=(0.5, 1.0), flip=True),
        Inference(scales=(0.5, 1.0), flip=True, scaling="network", pad_multiple=8, final="cubic"),
    ],
)
def test_labels_of_a_gpu_are_those_of_a_cpu(how: Inference, network: Path) -> None:
    segmenter = load_model(network).segmenter
    image = torch.cat([picture(97, 131, 1), picture(97, 131, 2)])
    want = predict_logits(segmenter, image, how).topk(2, 1)
    got = predict_labels(segmenter.cuda(), image, how).cpu()
    sure = want.values[:, 0] - want.values[:, 1] > 1e-2 * want.values.abs().max()
    assert sure.float().mean() > 0.8
    assert torch.equal(got[sure].long(), want.indices[:, 0][sure])
