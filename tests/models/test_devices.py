"""What runs on a GPU, without one: which operators, no float64, no number read by the host, few kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from isaseg import config
from isaseg.inference.metrics import group_accuracy, scores
from isaseg.models import attention_kernels
from isaseg.models.attention_kernels import attend, holds_scores, key_width
from isaseg.models.backbone import Backbone
from isaseg.models.losses import CrossEntropy, OhemCrossEntropy
from isaseg.models.segmenter import Segmenter, build_segmenter
from tests.conftest import compose_overrides
from tests.models.devices import watched
from tests.reliability.small import STRESS

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# One option for each class: a file without `_target_` derives from another.
ATTENTIONS = sorted(
    path.stem
    for path in (config.conf_dir() / "attention").glob("*.yaml")
    if STRESS or "_target_" in OmegaConf.load(path)
)
DEVICES = pytest.mark.parametrize("device", ["cuda", "meta"])


# ---------------------------------------------------------------- kernels of attention


@pytest.mark.parametrize(
    ("tokens", "keys", "values", "dtype", "device", "with_gradient", "holds"),
    [
        (64, 256, 512, F32, "cpu", True, True),
        (512, 256, 512, F32, "cpu", True, True),
        (513, 256, 512, F32, "cpu", True, False),
        (1024, 16, 32, BF16, "cpu", False, True),
        (1025, 16, 32, BF16, "cpu", False, False),
        (64, 256, 512, BF16, "cuda", True, True),
        (1024, 256, 512, F16, "cuda", False, True),
        (1024, 256, 512, BF16, "cuda", True, False),
        (16384, 256, 512, BF16, "cuda", False, False),
        (64, 128, 256, BF16, "cuda", False, False),
        (64, 256, 512, F32, "cuda", False, False),
        (64, 256, 512, BF16, "mps", False, False),
    ],
)
def test_scores_are_held_where_that_beats_the_fused_kernel(
    tokens: int, keys: int, values: int, dtype: torch.dtype, device: str, with_gradient: bool, holds: bool
) -> None:
    assert holds_scores(tokens, keys, values, dtype, device, with_gradient) is holds


@pytest.mark.parametrize(
    ("keys", "values", "dtype", "device", "masked", "width"),
    [
        (256, 512, F32, "cpu", False, 512),
        (256, 512, F32, "cpu", True, 512),
        (64, 32, F32, "cpu", False, 64),
        (128, 256, BF16, "cuda", False, 256),
        (128, 256, BF16, "cuda", True, 128),
        (128, 256, F32, "cuda", False, 128),
        (256, 512, BF16, "cuda", False, 256),
        (12, 512, BF16, "cuda", False, 16),
        (6, 512, F32, "cuda", False, 8),
        (128, 256, F16, "mps", False, 256),
    ],
)
def test_keys_are_padded_for_the_kernel_that_needs_it(
    keys: int, values: int, dtype: torch.dtype, device: str, masked: bool, width: int
) -> None:
    assert key_width(keys, values, dtype, device, masked) == width


@pytest.mark.parametrize(
    ("tokens", "keys", "values", "dtype", "masked", "holds", "pads"),
    [
        (64, 256, 512, BF16, False, True, False),
        (64, 256, 512, BF16, True, True, False),
        (4096, 256, 512, BF16, False, False, False),
        (64, 128, 256, BF16, False, False, True),
        (64, 128, 256, BF16, True, False, False),
        (64, 256, 512, F32, False, False, False),
    ],
)
def test_what_attention_dispatches_on_a_gpu(
    tokens: int, keys: int, values: int, dtype: torch.dtype, masked: bool, holds: bool, pads: bool
) -> None:
    """Held scores of half precision are a product of half precision."""
    with watched() as watch:
        q, k, v = (torch.empty(3, tokens, c, dtype=dtype, device="cuda") for c in (keys, keys, values))
        mask = torch.empty(3, 1, tokens, dtype=torch.bool, device="cuda") if masked else None
        watch.calls.clear()
        assert attend(q, k, v, 0.1, mask).shape == v.shape
    assert any("pad" in name for name, _ in watch.calls) is pads
    if holds:
        products = [types for name, types in watch.calls if "bmm" in name]
        assert products == [[BF16, BF16]] * 2


def test_exact_scores_have_the_gradient_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the product that only a GPU has in another way."""
    monkeypatch.setattr(torch, "bmm", lambda a, b, out_dtype: (a.double() @ b.double()).to(out_dtype))
    q, k = (torch.randn(2, n, 8, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (5, 7))
    upstream = torch.randn(2, 5, 7)
    q_, k_ = q.clone().requires_grad_(), k.clone().requires_grad_()
    got = attention_kernels._ExactScores.apply(q_, k_)
    assert got.dtype is F32
    torch.testing.assert_close(got, q.float() @ k.float().mT)
    got.backward(upstream)
    torch.testing.assert_close(q_.grad.float(), upstream @ k.float(), rtol=0.02, atol=0.05)
    torch.testing.assert_close(k_.grad.float(), upstream.mT @ q.float(), rtol=0.02, atol=0.05)


# ---------------------------------------------------------------- losses and scores

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "cross-entropy": CrossEntropy,
    "weighted": partial(CrossEntropy, class_weights=[1.0] * 19),
    "ohem": OhemCrossEntropy,
    "weighted ohem": partial(OhemCrossEntropy, class_weights=[1.0] * 19),
}


@DEVICES
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("coarse", [(8, 12), (64, 96)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_w2_a_loss_has_no_float64_on_a_device_and_reads_no_number_of_it(
    device: str, name: str, coarse: tuple[int, int], align_corners: bool
) -> None:
    """Nor does a second step copy anything to the device."""
    loss = LOSSES[name]()
    with watched() as watch:
        loss.to(device)
        logits = torch.randn(2, 19, *coarse, device=device, requires_grad=True)
        target = torch.zeros(2, 64, 96, dtype=torch.int64, device=device)
        for _ in range(2):
            watch.copies = 0
            value = loss(logits, target, align_corners)
            if device == "meta":  # torch's engine goes back through tensors of a real GPU alone
                value.backward()
        assert watch.copies == 0
        assert value.shape == () and value.dtype is F32


def test_a_gpu_takes_as_many_images_at_once_as_memory_allows() -> None:
    """Three of 150 classes and 512x512 pixels."""

    def kernels(batch: int) -> int:
        with watched() as watch:
            logits = torch.randn(batch, 150, 64, 64, device="cuda", requires_grad=True)
            target = torch.zeros(batch, 512, 512, dtype=torch.int64, device="cuda")
            CrossEntropy()(logits, target)
            watch.calls.clear()
            CrossEntropy()(logits, target)
        return len(watch.kernels())

    assert kernels(1) == kernels(3) < kernels(4) == kernels(6) < kernels(8) == kernels(9)


def test_scores_are_computed_where_float64_is() -> None:
    with watched():
        matrix = torch.zeros(5, 5, dtype=torch.int64, device="cuda")
        found = scores(matrix)
        assert group_accuracy(found["matrix"], [[0, 1], [2]]).device.type == "cpu"
        assert {value.device.type for value in found.values()} == {"cpu"}


# ---------------------------------------------------------------- the whole network


# those with kernels of their own
ON_CUDA = ATTENTIONS if STRESS else ["criss_cross", "dense", "isa", "neighbourhood"]


def network(attention: str) -> Segmenter:
    cfg = compose_overrides(f"attention={attention}")
    build: Any = config.build(cfg.attention, "attention")
    return build_segmenter(Backbone("test_resnet", output_stride=8), 19, build, 16, aux_channels=8)


@pytest.mark.parametrize(
    ("attention", "device"),
    [*((name, "meta") for name in ATTENTIONS), *((name, "cuda") for name in ON_CUDA)],
)
def test_a_step_has_no_float64_on_a_device_and_reads_no_number_of_it(attention: str, device: str) -> None:
    segmenter, loss, aux_loss = network(attention).train(), OhemCrossEntropy(), CrossEntropy()
    with watched():
        segmenter.to(device)
        image = torch.zeros(2, 3, 128, 192, dtype=torch.uint8, device=device)
        target = torch.zeros(2, 128, 192, dtype=torch.int64, device=device)
        logits, aux_logits = segmenter.coarse_with_aux(image)
        assert aux_logits is not None
        value: Tensor = loss(logits, target) + 0.4 * aux_loss(aux_logits, target)
        assert value.device.type == device
        if device == "meta":
            value.backward()
            assert all(parameter.grad is not None for parameter in segmenter.parameters())
