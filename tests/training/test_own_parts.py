"""Runs with parts of a user's own package: trained, resumed, evaluated, predicted and exported from the checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from isaseg import config
from isaseg.checkpoints.loading import load_model
from isaseg.errors import ConfigError
from isaseg.inference.evaluate import evaluate_model
from isaseg.inference.export import export_checkpoint
from isaseg.inference.predict import predict_pictures
from isaseg.models.losses import CrossEntropy
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from isaseg.trust import VARIABLE
from tests.conftest import compose_overrides
from tests.inference.tiny import save_picture
from tests.reliability.small import SMALL, equal, loaded, weights

SEARCH = ["hydra.searchpath=[file://conf]"]
OWN = [*SEARCH, "attention=gate", "backbone=net"]
LOSS = "~loss.class_weights ~loss.ignore_index ~loss.average loss._target_"
RUN = [*SMALL[1:], *OWN, "trainer.val_check_interval=1", "run_dir=run"]


def compose_for(command: str, *words: str) -> DictConfig:
    GlobalHydra.instance().clear()
    return config.compose_from(command, ["checkpoint=run/checkpoints/best.ckpt", *words])


@pytest.mark.usefixtures("ownlab")
def test_a_run_with_own_parts_is_trained_resumed_evaluated_predicted_and_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [Path("w.pth"), Path("pretrained")]
    for file in files:
        file.touch()
    run = [*RUN, "+backbone.weights=w.pth", "+backbone.pretrained=true", "optim.total_steps=2"]
    train(compose_overrides(*run, "trainer.max_steps=1"))
    first = weights(Path("run"))
    train(compose_overrides(*run, "trainer.max_steps=2", "resume=must"))
    for file in files:  # the checkpoint suffices
        file.unlink()
    assert loaded(Path("run/checkpoints/last.ckpt"))["global_step"] == 2
    assert not equal(first, weights(Path("run")))
    assert json.loads(Path("run/facts.json").read_text())["backbone"] == "Net"

    best = Path("run/checkpoints/best.ckpt")
    model = load_model(best)
    assert type(model.segmenter.head.attention).__name__ == "Gate"
    words = ["data.val_length=2", "trainer.accelerator=cpu", "output=scores"]
    evaluate_model(compose_for("evaluate", *words), model)
    assert json.loads(Path("scores/metrics.json").read_text())["images"] == 2

    save_picture(Path("a.png"))
    assert predict_pictures(compose_for("predict", "input=a.png", "output=out", "device=cpu")) == 0
    assert Path("out/labels/a.png").exists()
    export_checkpoint(compose_for("export", "output=exported", "formats=[safetensors]"))
    image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    again = load_model(Path("exported")).segmenter
    assert torch.equal(again(image), model.segmenter(image))

    monkeypatch.setenv(VARIABLE, "otherlab")
    for refuse in (
        lambda: predict_pictures(compose_for("predict", "input=a.png", "output=out2", "device=cpu")),
        lambda: export_checkpoint(compose_for("export", "output=out2")),
    ):
        with pytest.raises(Exception, match=r"best.ckpt.*backbone._target_.*trust=\[ownlab\]"):
            refuse()
    assert not Path("out2").exists()


@pytest.mark.usefixtures("ownlab")
def test_what_the_contract_leaves_open_may_be_absent() -> None:
    """No out_channels and no cost, no annotation, no `_partial_`, and a loss of two arguments."""
    attention = "{_target_: ownlab.Bare, rank: [1, a], label: my gate}"
    words = [*RUN[:-1], f"++attention={attention}", *f"{LOSS}=ownlab.plain +loss._partial_=true".split()]
    words[words.index("attention=gate")] = "~attention"
    cfg = compose_overrides(*words, "trainer.max_steps=1", "output_dir=out")
    assert 0 <= train(cfg)["val/mIoU"] <= 1
    folder = config.run_dir(cfg)
    assert folder.name.startswith("my-gate_Net_seed0_")
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["attention_label"] == "my gate"
    assert [facts[key] for key in ("mult_adds", "attention_mult_adds", "attention_score_mib")] == [None] * 3
    assert (
        load_model(folder / "checkpoints/best.ckpt").segmenter.head.fuse[0].in_channels
        == 2 * cfg.head.channels
    )
    other = cfg.copy()
    other.attention.label = "another"
    assert config.digest(config.identity(other)) == config.digest(config.identity(cfg))


@pytest.mark.usefixtures("ownlab")
def test_a_loss_of_three_arguments_resizes() -> None:
    words = f"{LOSS}=ownlab.resizing +loss._partial_=true trainer.max_steps=1".split()
    assert train(compose_overrides(*RUN, *words))["val/loss"] > 0


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_loss_of_two_arguments_is_that_of_three_on_resized_logits(align_corners: bool) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 7), torch.randint(0, 4, (2, 17, 23))
    target[:, :3] = 255
    found = []
    for loss in (CrossEntropy(), torch.nn.CrossEntropyLoss(ignore_index=255)):
        segmenter = torch.nn.Identity()
        segmenter.align_corners = align_corners  # type: ignore[assignment]
        module = SegmentationModule(segmenter, loss, lambda network: None, 4)  # type: ignore[arg-type]
        found.append(module._loss(logits, target))
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("ownlab")
@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("attention.gain=5000", "predict and export.*at most 4096.*got attention.gain=5000"),
        ("+attention.sizes=[{a:1}]", "a flag, a short string.*got attention.sizes"),
        ("attention._target_=ownlab.make", "expected a torch.nn.Module that is defined.*attention._target_"),
        ("+test={scaling:network}", "`normalise`.*got Net without `normalise`"),
        (
            "backbone._target_=ownlab.WrongNet",
            r"WrongNet to return.*channels=\[3, 5\], got \[\(1, 3, 32, 32\) of torch.uint8, .*, int\]",
        ),
        ("attention._target_=ownlab.WrongGate", r"\(1, 16, 8, 8\) for one.*got \(1, 16, 8, 7\)"),
        (
            "attention._target_=ownlab.Lazy",
            "have a shape once they are built, got head.attention.point.weight without one; replace the lazy layer",
        ),
        ("backbone._target_=ownlab.NoChannels", "with `channels`.*got None of NoChannels"),
        (
            "backbone._target_=ownlab.FailingNet",
            r"the backbone FailingNet to take \(1, 3, 32, 32\).*RuntimeError",
        ),
        (
            "attention._target_=ownlab.FailingGate",
            r"the attention FailingGate to take.*AttributeError.*heads",
        ),
        ("attention._target_=ownlab.Heads", "attention or head cannot be built: AssertionError$"),
        ("attention._target_=ownlab.Heads +attention.fault=x", "attention or head.*KeyError: 'x'"),
        ("loss._target_=ownlab.plain", "no configuration key 'loss.ignore_index'"),
        (f"{LOSS}=ownlab.plain", r"loss cannot be built: .*logits"),
        (
            f"{LOSS}=ownlab.map_of_losses +loss._partial_=true",
            r"a scalar with a gradient, got \(1, .*float32",
        ),
        (
            f"{LOSS}=ownlab.not_resizing +loss._partial_=true",
            r"\(B, \d+, h, w\), of another size.*AssertionError",
        ),
        (
            f"{LOSS}=torch.nn.CrossEntropyLoss",
            "of which 255 does not count.*got IndexError.*loss.ignore_index",
        ),
        ("+attention.label=3", "attention.label to be text or null, got attention.label=3"),
    ],
)
def test_what_our_own_commands_would_refuse_is_refused_before_the_first_step(words: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        train(compose_overrides(*RUN, *words.split(), "trainer.max_steps=1"))
    assert not Path("run").exists()
