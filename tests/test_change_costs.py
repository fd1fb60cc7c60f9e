"""What a change costs: the files that CONTRIBUTING.md shows, in a copy of the tree, are all that it takes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import forked

ROOT = Path(__file__).parents[1]
ADDED = re.compile(r"^\+\+\+ b/(\S+)\n((?:\+(?!\+\+ ).*\n)+)", re.MULTILINE)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a copy of the tree, with the files of CONTRIBUTING.md and nothing else changed."""
    copy = tmp_path / "copy"
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    files = ADDED.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert len(files) == 6
    for name, text in files:
        assert not (copy / name).exists()
        (copy / name).write_text("".join(line[1:] for line in text.splitlines(keepends=True)))
    return copy


# What the process has imported of the tree that is tested is to be that of the copy.
SCRIPT = """
import runpy, sys
for name in [name for name in sys.modules if name.split(".")[0] in ("isaseg", "hydra_plugins")]:
    del sys.modules[name]
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tree: Path, script: str, *words: str) -> str:
    (tree / "copied.py").write_text(SCRIPT)
    done = forked.run(tree / "copied.py", str(tree / "src" / script), *words, cwd=tree)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_context_module_a_data_set_and_a_backbone_are_new_files_alone(tree: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for folder in ("photos", "labels"):
            (tree / "fields" / split / folder).mkdir(parents=True)
        for number in range(count):
            photo = Image.fromarray(random.integers(0, 256, (80, 96, 3), np.uint8))
            photo.save(tree / "fields" / split / "photos" / f"{number}.jpg")
            label = Image.fromarray(random.integers(0, 3, (80, 96)).astype(np.uint8))
            label.save(tree / "fields" / split / "labels" / f"{number}.png")
    words = ["attention=global_mean", "data=fields", f"data.root={tree / 'fields'}", "backbone=mobilenetv3"]
    words += ["trainer.max_steps=2", "data.batch_size=2", "data.num_workers=0"]
    words += ["head.channels=16", "head.aux_channels=8", "pictures=0"]
    run(tree, "train.py", *words, "logger=csv", "score_test=false", "run_dir=run")
    metrics = json.loads((tree / "run" / "metrics.json").read_text())
    assert metrics["step"] == 2
    facts = json.loads((tree / "run" / "facts.json").read_text())
    assert facts["attention_label"] == "global-mean" and facts["attention_mult_adds"] == 0
    # the checkpoint describes the new parts: it can be evaluated from the file alone
    words = ["checkpoint=run/checkpoints/last.ckpt", f"data.root={tree / 'fields'}", "output=scores"]
    said = run(tree, "evaluate.py", *words)
    assert "crop" in said
    assert json.loads((tree / "scores" / "metrics.json").read_text())["mIoU"] == pytest.approx(
        metrics["val/mIoU"]
    )
