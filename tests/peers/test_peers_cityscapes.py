"""The official Cityscapes scripts, where they are installed (`make peers`), read our label files and agree on scores."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isaseg.config import compose_from
from isaseg.data.info import dataset_info
from isaseg.inference import predict
from isaseg.inference.label_files import known_format
from isaseg.inference.metrics import ConfusionMatrix
from tests import fakes
from tests.inference.tiny import make_checkpoint

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"


def _is_installed() -> bool:
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('cityscapesscripts') is None)"
    return PEER.exists() and subprocess.run([str(PEER), "-c", find]).returncode == 0


needed = pytest.mark.skipif(not _is_installed(), reason="cityscapesscripts is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]


def official(submission: Path, truth: list[Path], output: Path) -> dict[str, Any]:
    output.mkdir()
    task = {"submission": str(submission), "truth": [str(path) for path in truth], "output": str(output)}
    (output / "task.json").write_text(json.dumps(task))
    script = ROOT / "tests" / "peers" / "cityscapes_reader.py"
    command = [str(PEER), str(script), str(output / "task.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def agree(scores: dict[str, Any], truth: list[Path], predictions: list[np.ndarray]) -> None:
    """Compare with our confusion matrix of the train ids `predictions`."""
    table = np.full(256, 255, np.uint8)
    known = dataset_info("cityscapes")
    table[list(known.ids)] = list(known.ids.values())
    ours, raw = ConfusionMatrix(19), np.zeros((34, 34), np.int64)
    for path, labels in zip(truth, predictions, strict=True):
        with Image.open(path) as picture:
            target = np.asarray(picture)
        ours.update(torch.from_numpy(labels), torch.from_numpy(table[target]))
        np.add.at(raw, (target, known_format("cityscapes").ids[labels]), 1)
    assert scores["confMatrix"] == raw.tolist()
    found = ours.compute()
    for name, iou in zip(known.classes, found["iou"].tolist(), strict=True):
        theirs = scores["classScores"][name]
        assert (math.isnan(iou) and math.isnan(theirs)) or iou == pytest.approx(theirs, abs=1e-9)
    assert float(found["mIoU"]) == pytest.approx(scores["averageScoreClasses"], abs=1e-9)


def test_what_predict_writes_is_read_and_scored(tmp_path: Path) -> None:
    data = fakes.make_fake_cityscapes(tmp_path / "data", 3)
    checkpoint = make_checkpoint(tmp_path / "model.safetensors", 19, data="cityscapes")
    words = [f"checkpoint={checkpoint}", f"input={data}/leftImg8bit/val", f"output={tmp_path}/out"]
    assert predict.predict_pictures(compose_from("predict", words)) == 0
    shutil.make_archive(str(tmp_path / "submission"), "zip", tmp_path / "out" / "labels")
    truth = sorted(data.glob("gtFine/val/*/*_labelIds.png"))
    scores = official(tmp_path / "submission.zip", truth, tmp_path / "read")["scores"]
    back = {int(raw): train for train, raw in enumerate(known_format("cityscapes").ids)}
    predictions = []
    for path in truth:
        stem = path.name.replace("gtFine_labelIds", "leftImg8bit")
        with Image.open(tmp_path / "out" / "labels" / path.parent.name / stem) as picture:
            predictions.append(np.vectorize(back.__getitem__)(np.asarray(picture)).astype(np.uint8))
    agree(scores, truth, predictions)


def test_ids_and_colours_are_those_of_its_table(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").touch()
    shutil.make_archive(str(tmp_path / "empty"), "zip", tmp_path, "empty.zip")
    table = official(tmp_path / "empty.zip", [], tmp_path / "read")["labels"]
    form = known_format("cityscapes")
    theirs = {train: (raw, colour) for raw, train, colour in table if train not in (255, -1)}
    assert {k: (int(form.ids[k]), form.colours[k].tolist()) for k in range(19)} == theirs
