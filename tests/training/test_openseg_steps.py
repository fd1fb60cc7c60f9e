"""Training as in openseg's master: losses, gradients and steps against a float64 reference of its definition."""

from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from isaseg import config
from isaseg.checkpoints.published_tensors import openseg_names, openseg_values, renamed
from isaseg.models import segmenter as segmenter_file
from isaseg.models.losses import CrossEntropy, resize_logits
from isaseg.models.norms import is_absolute
from isaseg.models.segmenter import build_segmenter
from isaseg.training.build import _say_whose_weights
from isaseg.training.module import SegmentationModule
from tests.conftest import compose_overrides
from tests.openseg_reference import ABN, Training, Weights, raw_weights

STEPS, LR, HEAD_MULT, DECAY = 5, 0.01, 10.0, 5e-4
# The protocol for a network of narrow heads, a run of few steps, and a multiplier that Cityscapes does not have
WORDS = (
    "data=cityscapes protocol=openseg backbone=resnet101_csail backbone.name=resnet50s backbone.weights=null "
    "head.norm=inplace_abn recipe.value_bias=false "
    f"head.channels=32 head.aux_channels=24 head.dropout=0 trainer.max_steps={STEPS} recipe.lr={LR} "
    f"recipe.head_lr_mult={HEAD_MULT} recipe.weight_decay={DECAY}"
).split()


def composed(*words: str) -> DictConfig:
    return compose_overrides(*WORDS, *words)


def ours(cfg: DictConfig, weights: Weights) -> SegmentationModule:
    """Return the module of a configuration in float64, with the weights of openseg's names."""
    head: Any = OmegaConf.to_container(cfg.head, resolve=True)
    backbone, attention = (config.build(cfg[key], key) for key in ("backbone", "attention"))
    segmenter = build_segmenter(backbone, cfg.data.num_classes, attention, **head)
    values = openseg_values(weights, is_torch=False)
    segmenter.load_state_dict({name: values[theirs(name)] for name in segmenter.state_dict()})
    module = SegmentationModule(
        segmenter,
        config.build(cfg.loss, "loss"),
        config.build(cfg.optim, "optim"),
        cfg.data.num_classes,
        cfg.data.ignore_index,
        cfg.aux_weight,
        list(cfg.loss.class_weights),
    )
    return module.double().train()


def theirs(name: str) -> str:
    return renamed(name, openseg_names(""))


def as_openseg(named: dict[str, Tensor]) -> Weights:
    """Return tensors under openseg's names; it concatenates [x, context], we [context, x]."""
    found = {theirs(name): value.detach().clone() for name, value in named.items()}
    fusion = "isa_head.2.conv_bn.0.weight"
    return found | {fusion: torch.cat(found[fusion].chunk(2, dim=1)[::-1], dim=1)}


def batch(step: int) -> dict[str, Tensor]:
    """Return two pictures of which one has few labels; 64 pixels make 9 cells at stride 8, as pooling rounds up."""
    noise = torch.Generator().manual_seed(step)
    image = torch.randint(0, 256, (2, 3, 64, 64), generator=noise, dtype=torch.uint8)
    mask = torch.randint(0, 19, (2, 8, 8), generator=noise).repeat_interleave(8, 1).repeat_interleave(8, 2)
    mask[0, :40], mask[1, 50:, :9] = 255, 255
    return {"image": image, "mask": mask.to(torch.uint8)}


def apart(found: Weights, wanted: Weights) -> float:
    """Return the largest difference of a tensor, relative to the largest value in it."""
    assert found.keys() == wanted.keys()
    return max(float((found[n] - t).abs().max() / t.abs().max().clamp(min=1e-6)) for n, t in wanted.items())


def test_three_steps_are_those_of_the_definition() -> None:
    """Class weights in both losses, |weight| + eps, leaky heads, rounding up, decay of all, the head's rate, poly.

    Differences of rounding grow some fifty times a step: they are 1e-12 after the first and 1e-9 after the third.
    """
    torch.manual_seed(0)
    weights = raw_weights(ABN, classes=19)
    cfg = composed()
    module = ours(cfg, weights)
    reference = Training(weights, ABN, torch.tensor(cfg.loss.class_weights).double())
    made: Any = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    for step in range(3):
        image, mask = batch(step).values()
        loss = module.training_step(batch(step), 0)
        wanted, wanted_aux = reference.loss(image, mask.long())
        aux = module.step_losses["train/loss_aux"]
        torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=0)
        torch.testing.assert_close(aux, wanted_aux.detach(), rtol=1e-9, atol=0)
        optimizer.zero_grad()
        loss.backward()
        for value in reference.trained.values():
            value.grad = None
        wanted.backward()
        if step == 0:
            gradients = {n: p.grad for n, p in module.segmenter.named_parameters() if p.grad is not None}
            expected = {n: t.grad for n, t in reference.trained.items() if t.grad is not None}
            assert apart(as_openseg(gradients), expected) <= 1e-10
        optimizer.step()
        scheduler.step()
        reference.step(step, STEPS, LR, HEAD_MULT, DECAY)
        held = {n: t for n, t in module.segmenter.state_dict().items() if t.is_floating_point()}
        assert apart(as_openseg(held), {n: t.detach() for n, t in reference.weights.items()}) <= 1e-8


class OfAllPixels(CrossEntropy):
    """The sum over the labelled pixels, divided by the number of all."""

    def forward(self, logits: Tensor, target: Tensor, align_corners: bool = False) -> Tensor:
        logits = resize_logits(logits, target, align_corners)
        losses = nn.functional.cross_entropy(logits, target, self.weight, reduction="none", ignore_index=255)
        return losses.mean()


@torch.no_grad()
@pytest.mark.parametrize("change", ["none", "weight", "slope", "pooling", "corners", "average"])
def test_the_loss_tells_each_part_of_the_definition(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        "weight": ["head.norm=batch", "+head.negative_slope=0.01"],
        "pooling": ["backbone.ceil_pool=false"],
        "corners": ["head.align_corners=false"],
    }
    if change == "slope":
        monkeypatch.setattr(segmenter_file, "ABN_SLOPE", 0.0)
    torch.manual_seed(0)
    weights = raw_weights(ABN, classes=19)
    cfg = composed(*words.get(change, []))
    module = ours(cfg, weights)
    if change == "average":
        module.loss = OfAllPixels(class_weights=list(cfg.loss.class_weights)).double()
    image, mask = batch(0).values()
    class_weights = torch.tensor(cfg.loss.class_weights).double()
    wanted, _ = Training(weights, ABN, class_weights).loss(image, mask.long())
    off = float((module.training_step(batch(0), 0) - wanted).abs() / wanted)
    assert (off <= 1e-10) is (change == "none"), off
    assert change == "none" or off > 1e-5, off


def test_hrnet_with_isa_trains_as_openseg_has_it() -> None:
    """BGR, norms of |weight| everywhere, four maps of 720 channels, hard examples, no auxiliary head."""
    cfg = compose_overrides(
        "experiment=ade20k_isa_hrnet", "data.root=x", "pretrained=false", "head.channels=16"
    )
    head: Any = OmegaConf.to_container(cfg.head, resolve=True)
    backbone, attention, loss = (config.build(cfg[key], key) for key in ("backbone", "attention", "loss"))
    segmenter = build_segmenter(backbone, cfg.data.num_classes, attention, **head)
    assert (backbone.bgr, backbone.align_corners, segmenter.align_corners) == (True, True, True)
    norms = [m for m in segmenter.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) > 300 and all(is_absolute(norm) for norm in norms)
    logits, aux = segmenter.coarse_with_aux(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert logits.shape == (2, 150, 16, 16) and aux is None
    loss(logits, torch.randint(0, 150, (2, 64, 64)), align_corners=True).backward()
    assert backbone.model.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("protocol=openseg", True),
        ("protocol=openseg17", True),
        ("protocol=openseg backbone=resnet101_csail", False),
        ("protocol=mmseg", False),
        ("protocol=openseg pretrained=false", False),
    ],
)
def test_weights_that_are_not_opensegs_are_said_to_be_so(
    words: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _say_whose_weights(compose_overrides("experiment=cityscapes_isa", *words.split()))
    assert ("backbone=resnet101_csail" in caplog.text) == said
