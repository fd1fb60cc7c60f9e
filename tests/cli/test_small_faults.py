"""What a new user types wrong in the first minutes: right, or one sentence."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import forked
from tests.conftest import compose_overrides
from tests.fakes import make_fake_cityscapes
from tests.reliability.small import STRESS, attempted

ROOT = Path(__file__).parents[2]
CPU = "trainer.accelerator=cpu"
SMALL = ["head.channels=8", "head.aux_channels=null", "data.num_workers=0", "trainer.max_steps=1", CPU]


MISTAKES = [
    (["attention=null"], "expected a value for attention, got none"),
    (["data=3"], "no option '3' in the group data; options: ade20k, "),
    (["data=-1e5"], "no option '-1e5' in the group data; options: ade20k, "),
    (["logger=false"], "no option 'false' in the group logger; options: "),
    (["+trainer.fast_dev_run=true"], "no trainer.fast_dev_run, got one; trainer.max_steps=2 "),
    (["trainer=gpu"], "a GPU for trainer.accelerator=gpu, .* got none .*; set trainer=default, which"),
    (["trainer=ddp"], "a GPU for trainer.accelerator=gpu"),
    (
        ["backbone=resnet18", "backbone.pretrained=true"],
        "the hub, https://huggingface.co, cannot be reached .*[^.]; where .*set backbone.weights=FILE",
    ),
    (["trainer=ddp", CPU], "got trainer.devices=-1, .*set trainer=default trainer.accelerator=cpu "),
    (["trainer=ddp", CPU, "trainer.devices=2"], "trainer.sync_batchnorm=false on a CPU"),
    (["~loss.class_weights", "experiment=null", "name=x"], "~loss.class_weights, which is null already;"),
    (["~loss.class_weight"], "'loss.class_weight' to remove; did you mean 'loss.class_weights'"),
    (["+head.chan=8"], r"key 'head.chan'; did you mean 'channels'\? \(~head.chan removes it\)$"),
    (["+head.zzz=8"], "key 'head.zzz'; .known here: channels, dropout, "),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES)
def test_a_mistake_is_one_sentence(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attempted(*words, "trainer.max_steps=1") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(said, err.strip()), err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("words", "said"), MISTAKES if STRESS else MISTAKES[:2])
def test_so_it_is_from_the_command(words: list[str], said: str, tmp_path: Path) -> None:
    done = forked.run("train.py", *words, "trainer.max_steps=1", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert re.search(said, done.stderr.strip()), done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_configuration_of_a_data_set_is_shown(tmp_path: Path) -> None:
    done = forked.run("train.py", "data=folder", "data.classes=[a,b]", "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "\nname: finetune\n" in done.stdout


def test_a_published_experiment_with_a_small_backbone(tmp_path: Path) -> None:
    """It asks no hub, reads and shows a part of the data set, of different sizes, and says its score in per cent."""
    data = make_fake_cityscapes(tmp_path / "data", 4)
    for path in sorted(data.glob("*/val/*/*"))[::2]:
        with Image.open(path) as picture:
            picture.crop((0, 0, 48, 32)).save(path)
    words = [
        "experiment=cityscapes_isa",
        "backbone=tiny",
        f"data.root={data}",
        "data.crop_size=[32,32]",
        *SMALL,
    ]
    done = forked.run("train.py", *words, "data.batch_size=2", "run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "warning: Cityscapes train has 4 images, the published split 2975: scores do not" in done.stderr
    assert "sizes do not match" not in done.stdout + done.stderr
    said = re.findall(r"mIoU ([\d.]+) %", done.stderr)
    again = forked.run("train.py", *words, "data.batch_size=2", "run_dir=run", cwd=tmp_path)
    assert f"run is complete (mIoU {said[-1]} % at step 1)" in again.stderr


def test_weights_of_the_hub_are_for_published_backbones_alone() -> None:
    published = compose_overrides("experiment=cityscapes_isa")
    assert published.backbone.pretrained is True
    assert compose_overrides("experiment=cityscapes_isa", "backbone=resnet18").backbone.pretrained is True
    assert compose_overrides("experiment=cityscapes_isa", "backbone=tiny_d8").backbone.pretrained is False
    assert compose_overrides("experiment=finetune", "backbone=tiny").backbone.pretrained is False
    assert compose_overrides("experiment=finetune").backbone.pretrained is True
    assert compose_overrides("backbone=tiny", "backbone.pretrained=true").backbone.pretrained is True


@pytest.mark.parametrize("has_venv", [True, False])
def test_another_python_says_which_one_has_the_packages(has_venv: bool, tmp_path: Path) -> None:
    """Of a checkout without packages: -S -I leaves out those of this one."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "Makefile").touch()
    if has_venv:
        (tmp_path / ".venv").mkdir()
    for script in sorted((tmp_path / "src").glob("*.py")):
        line = [sys.executable, "-S", f"src/{script.name}", "--help"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: isaseg's packages are not installed in this Python 3.")
        assert done.stderr.count("\n") == 1
        install = "" if has_venv else "make -C . install, then "
        way = f"run {install}source .venv/bin/activate, or .venv/bin/python src/{script.name} ..."
        assert way in done.stderr
    far = subprocess.run(
        [sys.executable, "-S", str(script), "--help"], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert f"source {tmp_path}/.venv/bin/activate, or {tmp_path}/.venv/bin/python {script} ..." in far.stderr
