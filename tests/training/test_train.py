"""The entry point as a user calls it: real processes, real folders, exit codes."""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from isaseg.errors import CheckpointError
from isaseg.runs.history import read_history
from isaseg.training.module import SCORES
from isaseg.training.run import train
from tests import fakes, forked
from tests.reliability.small import SMALL, STRESS

ROOT = Path(__file__).parents[2]
TINY = ["trainer.max_steps=4", "trainer.val_check_interval=2", "data.batch_size=2", "data.val_length=4"]


def run(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return forked.run("train.py", *words, cwd=cwd, seconds=300, children=False, **env)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, subprocess.CompletedProcess[str]]:
    work = tmp_path_factory.mktemp("run")
    result = run(*TINY, f"output_dir={work / 'out'}", cwd=work, **{forked.CURVES: "yes"})
    assert result.returncode == 0, result.stderr
    (folder,) = (work / "out" / "lamps_isa").iterdir()
    return work, folder, result


def test_a_run_leaves_what_the_readme_says(
    finished: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    work, folder, result = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {
        *SCORES,
        "test/boundary_mIoU",
        "test/image_mIoU",
        "step",
        "val/group_acc",
        "seconds_per_step",
    } <= metrics.keys()
    assert 0 <= metrics["val/mIoU"] <= 1
    assert metrics["step"] in (2, 4)
    assert 0 <= metrics["test/mIoU"] <= 1
    for name in ("config.yaml", "curves.png", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (folder / name).stat().st_size > 0, name
    pictures = list((folder / "pictures").glob("*.png"))
    assert len(pictures) >= 4
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 100
    assert read_history(folder).curves["val/mIoU"].keys() == {2, 4}
    assert list((folder / "wandb").glob("**/*.wandb")), "an offline W&B run"
    assert "lamp" in result.stderr, "the per-class table"
    assert [p.name for p in work.iterdir()] == ["out"], "nothing outside the output folder"


def test_the_best_checkpoint_scores_what_metrics_json_says(
    finished: tuple[Path, Path, subprocess.CompletedProcess[str]],
) -> None:
    _, folder, _ = finished
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert checkpoint["global_step"] == metrics["step"]
    assert metrics["val/mIoU"] == pytest.approx(
        max(read_history(folder).curves["val/mIoU"].values()), abs=1e-6
    )


def test_a_folder_with_another_run_gives_neither_its_score_nor_its_weights(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    common = [*TINY, "data.crop_size=[32,32]", "backbone=tiny_d8", "pictures=0", "logger=csv"]
    common += ["score_test=false", f"run_dir={tmp_path}", "trainer.accelerator=cpu"]
    train(compose(*common))
    (tmp_path / "wandb_id.txt").write_text("of-the-first")
    with pytest.raises(CheckpointError, match=r"expected the configuration with which '.*\.ckpt'"):
        train(compose(*common, "attention=none"))
    assert train(compose(*common, "score_test=true"))["test/mIoU"] >= 0, "the split that was left out"
    (tmp_path / "pictures").mkdir(exist_ok=True)
    (tmp_path / "pictures" / "00_of_the_first.png").touch()
    other = train(compose(*common, "attention=none", "resume=never", "trainer.max_steps=2"))
    assert not list((tmp_path / "pictures").iterdir())
    assert other["step"] == 2
    assert not (tmp_path / "wandb_id.txt").exists()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2


def test_mixed_precision_trains_with_clipped_gradients(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    small = ["trainer.max_steps=1", "data.batch_size=2", "data.val_length=2", "data.crop_size=[64,64]"]
    small += ["logger=csv", "score_test=false", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'run'}"]
    cfg = compose(*small, "optim=adamw_one_cycle", "trainer.precision=bf16-mixed")
    assert cfg.trainer.gradient_clip_val == 1
    assert train(cfg)["step"] == 1


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    result = run("experiment=cityscapes_isa", "data.root=/nowhere", f"output_dir={tmp_path / 'out'}")
    assert result.returncode == 2, result.stderr
    assert "data set not found" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error:") == 1
    assert not list(tmp_path.glob("out/*/*/checkpoints"))


def make_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for folder, shape, suffix in (("images", (40, 56, 3), "jpg"), ("masks", (40, 56), "png")):
        for split in ("train", "val"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                pixels = rng.integers(0, 256 if folder == "images" else 2, shape, np.uint8)
                Image.fromarray(pixels).save(root / folder / split / f"a {i}.{suffix}")
    return root


def test_a_fault_in_the_users_folder_stops_before_the_first_step(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(root / "masks/train/a 2.png")  # an unknown label
    result = run(*folder_arguments(root), f"run_dir={tmp_path / 'run'}")
    assert result.returncode == 2, result.stderr
    assert "a 2" in result.stderr, "names the file"
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_fault_that_a_loaders_worker_meets_is_one_sentence_too(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    for i in range(3):
        (root / f"images/train/a {i}.jpg").write_bytes(b"nothing")
    result = run(
        *folder_arguments(root), "check_data=false", "data.num_workers=1", f"run_dir={tmp_path / 'run'}"
    )
    assert result.returncode == 2, result.stderr
    assert re.search(r"^error: expected .*a \d\.jpg", result.stderr, re.MULTILINE), result.stderr
    assert "Traceback" not in result.stderr


def folder_arguments(root: Path) -> list[str]:
    return [
        "data=folder",
        "backbone=tiny",
        "backbone.pretrained=false",
        f"data.root={root}",
        "data.classes=[left,right]",
        "data.crop_size=[32,32]",
        "data.batch_size=2",
        "trainer.max_steps=2",
        "logger=csv",
    ]


SHORT = [*SMALL, "backbone.pretrained=false", "trainer.max_steps=2", "data.num_workers=0"]
SHORT += ["data.val_length=3", "check_data=true"]
FAKES: dict[str, Callable[..., Path] | None] = {
    "lamps_isa": None,
    "cards_isa": None,
    "camvid_isa": fakes.make_fake_camvid,
    "camvid_pretrained": fakes.make_fake_camvid,
    "ade20k_isa": fakes.make_fake_ade20k,
    "cityscapes_isa": fakes.make_fake_cityscapes,
    "lip_isa": fakes.make_fake_lip,
    "pascal_voc_isa": fakes.make_fake_pascal_voc,
    "pascal_context_isa": fakes.make_fake_pascal_context,
    "coco_stuff_isa": fakes.make_fake_coco_stuff,
    "finetune": fakes.make_fake_folder,
}
REAL = {
    "cityscapes_isa": "cityscapes",
    "ade20k_isa": "ade20k",
    "lip_isa": "lip",
    "pascal_voc_isa": "voc2012",
    "pascal_context_isa": "pascal_context",
    "coco_stuff_isa": "coco_stuff10k",
}
SAMPLES = ROOT.parent / "shared" / "data"


def test_every_experiment_is_tried() -> None:
    """Those of HRNet differ in the network and in values that tests/protocols compares with their sources."""
    hrnets = {f"{name}_hrnet" for name in REAL}
    assert {path.stem for path in (ROOT / "conf" / "experiment").glob("[!_]*.yaml")} == {*FAKES, *hrnets}


@pytest.mark.parametrize("experiment", FAKES)
def test_every_experiment_runs_a_step_in_its_real_layout(
    experiment: str, compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """With batches of validation images of different sizes."""
    fake = FAKES[experiment]
    words = [f"experiment={experiment}", *(["data.classes=[a,b,c]"] if experiment == "finetune" else [])]
    root = [f"data.root={fake(tmp_path / 'a root', n=3)}"] if fake else []
    few = ["trainer.max_steps=1", "data.val_length=2"]
    metrics = train(compose(*words, *SHORT, *few, *root, f"run_dir={tmp_path / 'run'}"))
    assert "test/mIoU" not in metrics
    assert metrics["step"] == 1
    assert 0 <= metrics["val/mIoU"] <= 1
    assert len(metrics["val/IoU"]) == compose(*words).data.num_classes


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no real samples beside the project")
# test_damage.py reads the samples of every data set
@pytest.mark.parametrize("experiment", REAL if STRESS else ["pascal_voc_isa"])
def test_every_experiment_trains_and_validates_on_real_samples(
    experiment: str, compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    few = [f"data.root={SAMPLES / REAL[experiment]}", "data.val_length=1", "check_data=false"]
    few += ["trainer.max_steps=1"]
    metrics = train(compose(f"experiment={experiment}", *SHORT, *few, f"run_dir={tmp_path / 'run'}"))
    assert metrics["step"] == 1
    assert 0 <= metrics["val/mIoU"] <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc, which is Linux's")
def test_freed_memory_is_not_faulted_in_again() -> None:
    """160 MB of tensors, taken and freed ten times; without the request, the kernel takes most of it back each time."""
    script = (
        "import resource, torch\n"
        "from isaseg.training import memory\n"
        "memory.keep_freed_memory()\n"
        "def use(): [torch.ones(2**22) for _ in range(10)]\n"
        "for _ in range(3): use()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): use()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    pages = 160 * 2**20 // resource.getpagesize()
    assert int(result.stdout) < pages, "less than a tenth of what was touched"


def test_a_run_cut_before_its_first_validation_and_one_without_a_step_left_end_well(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    words = [*SHORT, f"run_dir={tmp_path}"]
    first = train(compose(*words))
    assert first["seconds_per_step"] > 0
    (tmp_path / "checkpoints" / "best.ckpt").unlink()
    (tmp_path / "metrics.json").unlink()
    again = train(compose(*words))
    assert (again["val/mIoU"], again["step"]) == (first["val/mIoU"], 2)
    assert again["seconds_per_step"] is None, "nothing was measured"
    (tmp_path / "metrics.json").write_text(json.dumps(first))
    tested = train(compose(*words, "score_test=true"))
    assert "test/mIoU" in tested
    assert tested["seconds_per_step"] == first["seconds_per_step"]
