"""A new data set costs a function, a JSON and a YAML, and nothing else: written into a copy of the tree, it trains."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.forked import ROOT
from tests.reliability.small import SMALL

TOY = """
from isaseg.data.index import PNG, SplitFiles
from isaseg.data.info import dataset_info
from isaseg.data.source import FileSource

INFO = dataset_info("toy")


def toy(split: str, root: str | None) -> FileSource | None:
    files = SplitFiles(INFO, split, root)
    if split == "test":
        return None
    return FileSource(INFO, split, files.pairs(files.find(f"images/{split}"), files.find(f"labels/{split}", PNG)))
"""
YAML = """
defaults: [_common]
name: toy
num_classes: 2
crop_size: [32, 32]
source:
  _target_: isaseg.data.sets.toy.toy
  root: ${data.root}
"""
FACTS = {
    "title": "Toy",
    "classes": ["sky", "ground"],
    "palette": [[0, 0, 255], [0, 99, 0]],
    "ids": {"0": 255, "1": 0, "2": 1},
    "ignore_index": 255,
    "splits": {"train": 4, "val": 2},
    "layout": ["images/{train,val}/NAME.png", "labels/{train,val}/NAME.png"],
}


def test_a_data_set_written_from_nothing_trains(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "src/isaseg/data/sets/toy.py").write_text(f'"""Toy."""\n{TOY}')
    (tree / "src/isaseg/data/classes/toy.json").write_text(json.dumps(FACTS))
    (tree / "conf/data/toy.yaml").write_text(YAML)
    rng = np.random.default_rng(0)
    for number in range(6):
        for kind, pixels in (
            ("images", rng.integers(256, size=(40, 50, 3))),
            ("labels", rng.integers(3, size=(40, 50))),
        ):
            path = tmp_path / "toy" / kind / ("val" if number > 3 else "train") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    words = [
        *SMALL,
        "data=toy",
        f"data.root={tmp_path / 'toy'}",
        "loss.class_weights=null",
        "trainer.max_steps=2",
    ]
    words += ["check_data=true", "data.strict_size=true", "data.num_workers=0", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, str(tree / "src" / "train.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["step"] == 2
