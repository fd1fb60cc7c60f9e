"""A training step is that of mmsegmentation, where it is installed (`make peers`): losses, weights and rates.

Its own ISANet, loss, optimizer and schedule, built from its configuration, take some steps on a batch; ours takes them
from the same weights as `protocol=mmseg` says. Both compute in float64: in float32, rounding and fifty layers of batch
statistics make a loss differ by 2e-4 and a weight by 1e-2 after three steps.
"""

import json
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from isaseg import config
from isaseg.checkpoints.loading import load_model, read_network
from isaseg.errors import ConfigError
from isaseg.models.losses import CrossEntropy
from isaseg.training.build import build_module
from isaseg.training.schedules import poly
from tests import fakes
from tests.conftest import compose_overrides
from tests.peers.peer import PEER, run_peer
from tests.peers.test_mmseg import blobs

needed = pytest.mark.skipif(not PEER.exists(), reason="mmsegmentation is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]

STEPS = 3
TOLERANCE = 1e-5  # of a loss, and of the largest weight and of the largest change of each tensor
CONFIG = "isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024.py"
WORDS = ["data=cityscapes", "protocol=mmseg", "backbone=resnet50_d8", "optim=sgd_poly", "pretrained=false"]
WORDS += [
    "head.dropout=0",
    "data.crop_size=[96,128]",
    f"trainer.max_steps={STEPS}",
    "trainer.accelerator=cpu",
]

State = dict[str, Tensor]
Steps = list[tuple[dict[str, float], State]]  # losses and rate of each, and the network after it


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    """Return two crops of soft colours, with labels in areas; some are ignored, as at the right after padding."""
    rng = np.random.default_rng(0)
    image = np.stack([blobs((96, 128)), blobs((96, 160))[::-1, 32:]]).transpose(0, 3, 1, 2)
    mask = np.kron(rng.integers(0, 19, (2, 6, 8)), np.ones((16, 16))).astype(np.uint8)
    mask[0, :, 100:] = 255
    mask[:, 40:55, :30] = 255
    return {"image": torch.from_numpy(image.copy()), "mask": torch.from_numpy(mask), "id": ["a", "b"]}


@pytest.fixture(scope="module")
def logits() -> dict[str, np.ndarray]:
    """Return logits of five classes, labels of which a third is ignored, labels alone, and weights."""
    rng = np.random.default_rng(1)
    plain = rng.integers(0, 5, (2, 6, 7)).astype(np.uint8)
    target = np.where(rng.random(plain.shape) < 0.3, 255, plain).astype(np.uint8)
    weights = np.array([0.5, 1.0, 2.0, 0.25, 3.0])
    return {"logits": rng.normal(size=(2, 5, 6, 7)), "target": target, "plain": plain, "weights": weights}


@pytest.fixture(scope="module")
def peer(
    batch: dict[str, Any], logits: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of what mmsegmentation did."""
    folder = tmp_path_factory.mktemp("peer")
    np.savez(folder / "batch.npz", image=batch["image"].flip(1).numpy(), mask=batch["mask"].numpy())
    np.savez(folder / "losses.npz", **logits)  # type: ignore[arg-type]
    task = {"output": str(folder), "config": CONFIG, "seed": 5, "steps": STEPS}
    task |= {"batch": str(folder / "batch.npz"), "losses": str(folder / "losses.npz")}
    run_peer("mmseg_training.py", {**task, "power": 0.9, "floor": 0.01, "length": 50}, folder)
    return folder


@pytest.fixture(scope="module")
def found(peer: Path) -> Any:
    return json.loads((peer / "result.json").read_text())


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make_fake_cityscapes(tmp_path_factory.mktemp("data"), 2)


class Noted(Callback):
    """Keeps what each step computes."""

    def __init__(self) -> None:
        self.steps: Steps = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        losses = {key: float(value) for key, value in pl_module.step_losses.items()}
        state = {key: value.clone() for key, value in pl_module.segmenter.state_dict().items()}
        self.steps.append((losses | {"lr": self._rate}, state))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        (self._rate,) = {group["lr"] for group in optimizer.param_groups}


def ours(peer: Path, data: Path, batch: dict[str, Any], *words: str) -> Steps:
    """Return the steps that a configuration takes from the peer's weights."""
    cfg = compose_overrides(*WORDS, f"data.root={data}", *words)
    module = build_module(cfg, config.build(cfg.data, "data"))
    module.segmenter.load_state_dict(load_model(peer / "start.pth").segmenter.state_dict())
    noted = Noted()
    trainer = lightning.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        precision="64-true",
        callbacks=[noted],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * STEPS, batch_size=None))  # type: ignore[arg-type]
    return noted.steps


def theirs(peer: Path, found: Any) -> Steps:
    """Return the steps of mmsegmentation, under our names: its auxiliary loss is multiplied by its weight."""
    steps = []
    for number, said in enumerate(found["steps"], 1):
        losses = {"train/loss": said["loss"], "train/loss_aux": said["aux.loss_ce"] / 0.4, "lr": said["lr"]}
        steps.append((losses, read_network(peer / f"step{number}.pth")[2]))
    return steps


def errors(got: Steps, want: Steps, start: State) -> dict[str, float]:
    """Return the largest relative errors: of losses and rates, of tensors, and of how these have changed."""
    worst = {"losses": 0.0, "weights": 0.0, "changes": 0.0}
    assert len(got) == len(want) == STEPS
    for (losses, state), (said, expected) in zip(got, want, strict=True):
        assert losses.keys() == said.keys() and state.keys() == expected.keys()
        for key, value in said.items():
            worst["losses"] = max(worst["losses"], abs(losses[key] / value - 1))
        for key, tensor in expected.items():
            off = float((state[key] - tensor).abs().max())
            moved = float((tensor - start[key]).abs().max())
            worst["weights"] = max(worst["weights"], off / float(tensor.abs().max()))
            worst["changes"] = max(worst["changes"], off / moved)
    return worst


@pytest.mark.filterwarnings("ignore")
def test_losses_and_all_weights_after_each_step_are_mmsegs(
    peer: Path, found: Any, cityscapes: Path, batch: dict[str, Any]
) -> None:
    want, start = theirs(peer, found), read_network(peer / "start.pth")[2]
    assert len(start) > 300 and any("aux_head" in name for name in start)
    worst = errors(ours(peer, cityscapes, batch), want, start)
    print(", ".join(f"{key} {value:.1e}" for key, value in worst.items()))
    assert all(value <= TOLERANCE for value in worst.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "word",
    ["recipe.average=labelled", "recipe.ends_at_last_step=false", "optim.decay_norm_and_bias=false"],
)
def test_another_setting_would_be_seen(
    word: str, peer: Path, found: Any, cityscapes: Path, batch: dict[str, Any]
) -> None:
    start = read_network(peer / "start.pth")[2]
    worst = errors(ours(peer, cityscapes, batch, word), theirs(peer, found), start)
    print(", ".join(f"{key} {value:.1e}" for key, value in worst.items()))
    assert worst["changes"] > 1000 * TOLERANCE


@pytest.mark.parametrize("target", ["target", "plain"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("average", ["labelled", "all"])
def test_a_loss_is_mmsegs(
    average: Any, weighted: bool, target: str, found: Any, logits: dict[str, np.ndarray]
) -> None:
    """Where it has one: it fails for weighted classes and ignored pixels, whatever the average."""
    said = found["losses"][f"{average} {target}{' weighted' if weighted else ''}"]
    weights = logits["weights"].tolist() if weighted else None
    if weighted and average == "all":
        with pytest.raises(ConfigError, match=r"loss\.average=labelled with loss\.class_weights"):
            CrossEntropy(255, weights, average)
        average = "labelled"  # the same without ignored pixels
    if weighted and target == "target":
        assert said is None
        return
    values = torch.from_numpy(logits["logits"]), torch.from_numpy(logits[target]).long()
    assert float(CrossEntropy(255, weights, average)(*values)) == pytest.approx(said, rel=1e-6)


def test_the_rates_are_those_of_its_schedule(found: Any) -> None:
    factor = poly(50, 1.0, 0.9, 0.01, 0, ends_at_last_step=True)
    assert [factor(k) for k in range(50)] == pytest.approx(found["rates"], rel=1e-12)
    assert found["rates"][-1] == pytest.approx(0.01)
