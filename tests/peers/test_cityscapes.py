"""The official Cityscapes scripts, where they are installed (`make peers`), read our label files and agree on scores."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isaseg.checkpoints.loading import load_model
from isaseg.config import compose_from
from isaseg.data.info import dataset_info
from isaseg.inference import predict
from isaseg.inference.evaluate import evaluate_model
from isaseg.inference.label_files import known_format
from isaseg.models.tensor_files import save_safetensors
from tests import fakes
from tests.inference.tiny import make_checkpoint
from tests.peers.peer import PEER, run_peer


def _is_installed() -> bool:
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('cityscapesscripts') is None)"
    return PEER.exists() and subprocess.run([str(PEER), "-c", find]).returncode == 0


needed = pytest.mark.skipif(not _is_installed(), reason="cityscapesscripts is not installed: make peers")
pytestmark = [pytest.mark.peers, needed]


def official(submission: Path, truth: list[Path], output: Path) -> dict[str, Any]:
    output.mkdir()
    task = {"submission": str(submission), "truth": [str(path) for path in truth], "output": str(output)}
    run_peer("cityscapes_reader.py", task, output)
    result: dict[str, Any] = json.loads((output / "result.json").read_text())
    return result


def test_what_predict_writes_has_the_official_score_that_evaluate_gives(tmp_path: Path) -> None:
    """From files in the official layout to label files and to metrics.json; some classes are in no file."""
    data = fakes.make_fake_cityscapes(tmp_path / "data", 3)
    truth = sorted(data.glob("gtFine/val/*/*_labelIds.png"))
    for path in truth:
        raw = np.array(Image.open(path))
        raw[np.isin(raw, (27, 28, 31))] = 0  # truck, bus, train; 0 is ignored
        Image.fromarray(raw).save(path)
    checkpoint = make_checkpoint(tmp_path / "model.safetensors", 19, data="cityscapes")
    model = load_model(checkpoint)
    model.segmenter.head.classifier.bias.data[[14, 16]] = -1000.0  # truck and train are not predicted either
    save_safetensors(model.segmenter, model.description, checkpoint)
    words = [f"checkpoint={checkpoint}", f"input={data}/leftImg8bit/val", f"output={tmp_path}/out"]
    assert predict.predict_pictures(compose_from("predict", words)) == 0
    shutil.make_archive(str(tmp_path / "submission"), "zip", tmp_path / "out" / "labels")
    words = [f"checkpoint={checkpoint}", f"data.root={data}", "data=cityscapes", "data.num_workers=0"]
    metrics = evaluate_model(
        compose_from("evaluate", [*words, "worst=0", f"output={tmp_path}/scores"]), model
    )
    scores = official(tmp_path / "submission.zip", truth, tmp_path / "read")["scores"]
    known = dataset_info("cityscapes")
    assert [name for name in known.classes if metrics["IoU"][name] is None] == ["truck", "train"]
    for name, iou in metrics["IoU"].items():
        theirs = scores["classScores"][name]
        assert math.isnan(theirs) if iou is None else iou == pytest.approx(theirs, abs=1e-9)
    assert metrics["mIoU"] == pytest.approx(scores["averageScoreClasses"], abs=1e-9)
    assert metrics["IoU"]["bus"] == 0


def test_ids_and_colours_are_those_of_its_table(tmp_path: Path) -> None:
    (tmp_path / "empty.zip").touch()
    shutil.make_archive(str(tmp_path / "empty"), "zip", tmp_path, "empty.zip")
    table = official(tmp_path / "empty.zip", [], tmp_path / "read")["labels"]
    form = known_format("cityscapes")
    theirs = {train: (raw, colour) for raw, train, colour in table if train not in (255, -1)}
    assert {k: (int(form.ids[k]), form.colours[k].tolist()) for k in range(19)} == theirs
