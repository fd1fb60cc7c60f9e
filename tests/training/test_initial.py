"""Fine-tuning: `init_from` takes network and weights of a file, and what it does not take is said."""

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from isaseg.checkpoints.loading import load_model, read_network
from isaseg.models.tensor_files import save_safetensors
from isaseg.training.run import train
from tests import forked
from tests import openseg_reference as reference
from tests.conftest import compose_overrides
from tests.fakes import make_fake_folder
from tests.reliability.small import SMALL, equal, said, train_in_processes, weights
from tests.reliability.test_interruptions import check_resumed

CLASSES = "data.classes=[sky,ground,thing]"
WORDS = ["data=folder", CLASSES, "data.crop_size=[32,32]", "data.batch_size=4", "data.num_workers=0"]
WORDS += ["loss.class_weights=null", "trainer.accelerator=cpu", "logger=csv", "pictures=0"]
WORDS += ["trainer.max_steps=2", "trainer.val_check_interval=2", "output_dir=out"]
# writes the weights before the first step, and may end the run there
KEEPER = """
import torch
from lightning.pytorch import Callback

class Keeper(Callback):
    def __init__(self, end: bool = False) -> None:
        self.end = end

    def on_train_start(self, trainer, module) -> None:
        torch.save(module.segmenter.state_dict(), "before.pt")
        if self.end:
            raise SystemExit(7)
"""

KEEPS = ["+trust=[keeper]", "+callbacks.keeper._target_=keeper.Keeper"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file, or a folder of one, of each kind."""
    folder = tmp_path_factory.mktemp("files")
    train(compose_overrides(*SMALL, "trainer.max_steps=2", f"run_dir={folder / 'run'}"))
    ours = folder / "run" / "checkpoints" / "best.ckpt"
    ours_model = load_model(ours)
    save_safetensors(ours_model.segmenter, ours_model.description, folder / "exported" / "best.safetensors")
    (folder / "exported" / "best.onnx").touch()
    torch.manual_seed(1)
    weights = reference.with_torch_norms(reference.raw_weights(reference.TORCH))
    torch.save({"state_dict": weights}, folder / "openseg.pth")
    return {"ours": ours, "exported": folder / "exported", "openseg": folder / "openseg.pth"}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder, with twelve pictures of three classes and a callback of the user's own."""
    make_fake_folder(tmp_path / "photos", n=6)
    (tmp_path / "keeper.py").write_text(KEEPER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(photos: Path, *words: str) -> CompletedProcess[str]:
    return forked.run("train.py", *WORDS, "data.root=photos", *words, cwd=photos)


def check_begins(photos: Path, given: Path, path: Path, number: int, name: str, end: bool = True) -> None:
    """Check that each tensor but those of the classifiers is the file's before the first step, bit for bit.

    Args:
        photos: The current folder.
        given: Value of init_from.
        path: The file itself.
        number: Of its classes.
        name: Of its backbone.
        end: End the run before its first step.
    """
    done = command(photos, f"init_from={given}", *KEEPS, f"+callbacks.keeper.end={end}")
    assert done.returncode == (7 if end else 0), done.stderr
    theirs = {name: t for name, t in read_network(path)[2].items() if "classifier" not in name}
    before: dict[str, Tensor] = torch.load("before.pt", weights_only=True)
    assert len(theirs) == len(before) - 4 > 100
    assert equal({name: before[name] for name in theirs}, theirs)
    assert before["head.classifier.weight"].shape[0] == 3
    (folder,) = {path.parent for path in (photos / "out").rglob("config.yaml")}
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["init_from"] == str(given)
    count = sum(name.startswith("backbone.") for name in theirs)
    assert facts["init_kept"].startswith(f"{count} tensors of backbone, ")
    assert facts["init_new"] == f"classifiers (the file has {number} classes, the data 3)"
    assert f"kept of '{path}': {facts['init_kept']}; new: {facts['init_new']}\n" in done.stderr
    backbone = OmegaConf.load(folder / "config.yaml").backbone
    assert (backbone.name, backbone.pretrained) == (name, False)
    assert backbone.get("bgr", False) == (name == "resnet50s")


@pytest.mark.parametrize(
    ("kind", "number", "name"), [("exported", 8, "test_resnet"), ("openseg", 5, "resnet50s")]
)
def test_a_run_begins_with_the_network_of_a_file(
    kind: str, number: int, name: str, files: dict[str, Path], photos: Path
) -> None:
    given = files[kind]
    check_begins(photos, given, given / "best.safetensors" if kind == "exported" else given, number, name)


def test_a_whole_run_is_complete_for_a_sweep_too(files: dict[str, Path], photos: Path) -> None:
    check_begins(photos, files["ours"], files["ours"], 8, "test_resnet", end=False)
    again = command(photos, "-m", f"init_from={files['ours']}", *KEEPS, "+callbacks.keeper.end=False")
    assert again.returncode == 0 and "1 of 1 runs are complete already" in again.stderr, again.stderr


def test_it_goes_on_after_a_kill_bit_for_bit(files: dict[str, Path], tmp_path: Path) -> None:
    """With rates by layer, a frozen stem and an average of the weights; frozen weights stay those of the file."""
    words = [*SMALL, "trainer.max_steps=6", "trainer.val_check_interval=3", "checkpoint_every_n_steps=2"]
    words += ["attention=isa", "optim.layer_decay=0.7", "backbone.freeze=[stem]", "callbacks=[default,ema]"]
    words += [f"init_from={files['ours']}", "data.seed=5"]
    assert train_in_processes([*words, "data.num_workers=0"], tmp_path / "whole") == [0], said(
        tmp_path / "whole"
    )
    check_resumed(words, (5,), (0, 0), tmp_path / "cut", tmp_path / "whole")
    facts = [json.loads((tmp_path / name / "facts.json").read_text()) for name in ("whole", "cut")]
    assert facts[0]["init_kept"] == facts[1]["init_kept"]
    assert facts[0]["init_new"] == ""
    ended, theirs = weights(tmp_path / "cut"), read_network(files["ours"])[2]
    stem = [name for name in theirs if name.startswith(("backbone.model.conv1.", "backbone.model.bn1."))]
    assert stem and all(torch.equal(ended[f"segmenter.{name}"], theirs[name]) for name in stem)
    assert not torch.equal(ended["segmenter.head.reduce.0.weight"], theirs["head.reduce.0.weight"])
