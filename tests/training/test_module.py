"""Wiring: which losses are added up, which scores are logged under which key."""

from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from isaseg import config
from isaseg.models.losses import Average, CrossEntropy, OhemCrossEntropy
from isaseg.training.build import build_module
from isaseg.training.module import SegmentationModule
from isaseg.training.watch import Watch
from tests.conftest import compose_overrides


class TwoHeads(nn.Module):
    """Gives its two parameters as logits of every pixel."""

    align_corners = True

    def __init__(self, aux: bool = True) -> None:
        super().__init__()
        self.main = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        self.aux = nn.Parameter(torch.tensor([0.5, 0.0, 2.0])) if aux else None

    def forward(self, image: Tensor, size: torch.Size | None = None) -> Tensor:
        return self.main[None, :, None, None].expand(len(image), 3, *(size or image.shape[-2:]))

    def coarse_with_aux(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.aux is None:
            return self(image), None
        return self(image), self.aux[None, :, None, None].expand(len(image), 3, *image.shape[-2:])


def batches(count: int, far: bool = False) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        mask = torch.randint(0, 3, (2, 4, 6), generator=generator)
        mask[0, 0] = 255
        made.append({"image": torch.zeros(2, 3, 4, 6, dtype=torch.uint8), "mask": mask, "id": ["a", "b"]})
        if far:
            made[-1]["far"] = torch.rand(2, 4, 6, generator=generator) < 0.5
    return made


def module(aux: bool = True, average: Average = "labelled", **kwargs: Any) -> SegmentationModule:
    def sgd(network: nn.Module) -> tuple[SGD, LambdaLR]:
        optimizer = SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        return optimizer, LambdaLR(optimizer, lambda step: (1 - step / 10) ** 0.9)

    loss = CrossEntropy(average=average)
    return SegmentationModule(TwoHeads(aux), loss, sgd, 3, average=average, **kwargs)  # type: ignore[arg-type]


def fit(
    model: SegmentationModule, data: list[dict[str, Any]], val: list[dict[str, Any]]
) -> lightning.Trainer:
    trainer = lightning.Trainer(
        max_steps=len(data),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Watch()],
    )
    loaders = (torch.utils.data.DataLoader(x, batch_size=None) for x in (data, [[b] for b in val]))  # type: ignore[arg-type]
    trainer.fit(model, *loaders)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("weights", [None, [0.2, 1.0, 3.0]])
def test_the_loss_is_main_plus_weighted_auxiliary(weights: list[float] | None) -> None:
    model = module(aux_weight=0.4, class_weights=weights)
    data = batches(1)
    mask = data[0]["mask"]
    assert isinstance(model.segmenter, TwoHeads)
    main, aux = model.segmenter.coarse_with_aux(data[0]["image"])
    assert aux is not None
    weight = None if weights is None else torch.tensor(weights)
    expected_aux = F.cross_entropy(aux, mask, weight=weight, ignore_index=255)
    expected = F.cross_entropy(main, mask, ignore_index=255) + 0.4 * expected_aux
    logged = fit(model, data, batches(1)).callback_metrics
    assert logged["train/loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert logged["train/loss_aux"] == pytest.approx(expected_aux.item(), rel=1e-6)
    assert logged["train/lr"] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_all_losses_may_be_averaged_over_all_pixels() -> None:
    """Main, auxiliary and that of validation: the sixth without a label counts as 0."""
    logged = {}
    for average in ("labelled", "all"):
        model = module(average=average)
        logged[average] = fit(model, batches(1), batches(1)).callback_metrics
    for key in ("train/loss", "train/loss_aux"):
        assert logged["all"][key] == pytest.approx(logged["labelled"][key].item() * 7 / 8, rel=1e-6)
    assert logged["all"]["val/loss"] < 0.9 * logged["labelled"]["val/loss"]


def test_the_losses_are_those_of_the_configuration() -> None:
    words = ["loss.class_weights=null", "backbone=tiny_d8", "head.aux_channels=8", "head.channels=16"]
    cfg = compose_overrides(*words, "recipe.average=all")
    built = build_module(cfg, config.build(cfg.data, "data"))
    assert isinstance(built.loss, CrossEntropy)
    assert (built.loss.average, built.aux_loss.average) == ("all", "all")
    cfg = compose_overrides(*words, "loss=ohem", "recipe.ohem={thresh: 0.9, min_kept_per_crop: 12}")
    built = build_module(cfg, config.build(cfg.data, "data"))
    assert isinstance(built.loss, OhemCrossEntropy)
    assert (built.loss.thresh, built.loss.min_kept_per_crop) == (0.9, 12)
    assert built.aux_loss.average == "labelled"


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_scores_are_those_of_the_whole_split_and_start_anew() -> None:
    model = module(aux=False, groups=((0,), (1, 2)))
    val = batches(3, far=True)
    with torch.no_grad():
        model.segmenter.main.copy_(torch.tensor([0.0, 5.0, -5.0]))  # type: ignore[union-attr, operator]
    trainer = fit(model, batches(1), val)
    for _ in range(2):  # a second validation is not added to the first
        loader = torch.utils.data.DataLoader([[b] for b in val], batch_size=None)  # type: ignore[arg-type]
        (scores,) = trainer.validate(model, loader, verbose=False)
        target = torch.cat([b["mask"].flatten() for b in val])
        far = torch.cat([b["far"].flatten() for b in val])
        labelled = target != 255
        assert scores["val/aAcc"] == pytest.approx((target[labelled] == 1).float().mean().item())
        assert scores["val/mAcc"] == pytest.approx(1 / 3)
        assert scores["val/group_acc"] == pytest.approx((target[labelled] >= 1).float().mean().item())
        assert scores["val/group_acc_far"] == pytest.approx(
            (target[labelled & far] >= 1).float().mean().item()
        )
        assert "val/loss" in scores


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_m2_a_split_without_a_label_scores_nan_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    val = batches(1)
    val[0]["mask"][:] = 255
    logged = fit(module(), batches(1), val).callback_metrics
    assert logged["val/mIoU"].isnan()
    assert "no pixel of the val split has a label" in caplog.text


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_images_of_mixed_sizes_are_scored_at_the_size_of_their_labels() -> None:
    """One list of batches of several sizes counts like its images one by one, labels larger than images included."""
    small, large = batches(2)
    large = {**large, "image": torch.zeros(2, 3, 9, 5, dtype=torch.uint8)}
    mixed, apart = module(), module()
    for model, val in ((mixed, [[small, large]]), (apart, [[small], [large]])):
        trainer = lightning.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        trainer.validate(model, torch.utils.data.DataLoader(val, batch_size=None), verbose=False)  # type: ignore[arg-type]
    torch.testing.assert_close(mixed.last_scores, apart.last_scores, rtol=0, atol=0, equal_nan=True)
    assert mixed.last_scores["matrix"].sum() == 2 * (2 * 4 * 6 - 6)
