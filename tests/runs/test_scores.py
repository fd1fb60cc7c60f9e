"""The scores that a run leaves: metrics.json, the table of classes, confusion matrix and curves."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from isaseg.runs.loggers import HistoryLogger, NeverFatalWandbLogger
from isaseg.runs.run_folder import write_json
from isaseg.runs.scores import class_table, log_classes, plot_curves, run_metrics

NAN = float("nan")
CLASSES = ("sky", "road", "lamp [/lit]")  # Rich would read the last as markup
SCORES = {
    "mIoU": torch.tensor(0.5),
    "mAcc": torch.tensor(0.625),
    "aAcc": torch.tensor(0.875),
    "boundary_mIoU": torch.tensor(0.375),
    "image_mIoU": torch.tensor(0.6875),
    "iou": torch.tensor([0.25, NAN, 0.75]),
    "acc": torch.tensor([0.5, NAN, 0.75]),
    "boundary_iou": torch.tensor([0.125, NAN, 0.625]),
}


def test_the_table_shows_absent_classes_as_absent() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(class_table(CLASSES, SCORES))
    lines = console.export_text().splitlines()
    (road,) = [line for line in lines if "road" in line]
    assert road.count("absent") == 3
    assert any("lamp [/lit]" in line for line in lines)
    (footer,) = [line for line in lines if "│ mean" in line]
    assert re.findall(r"[\d.]+", footer) == ["50.00", "62.50", "37.50"]
    assert any("(aAcc) 87.50 %" in line for line in lines)
    assert any("of an image 68.75 %" in line for line in lines)


def test_metrics_are_strict_json_with_null_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    values = {"val/mIoU": torch.tensor(0.5), "step": 7, "seconds_per_step": NAN}
    write_json(path, run_metrics(values, CLASSES, {"val": SCORES, "test": SCORES}))
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "val/mIoU": 0.5,
        "step": 7,
        "seconds_per_step": None,
        "val/IoU": {"sky": 0.25, "road": None, "lamp [/lit]": 0.75},
        "test/IoU": {"sky": 0.25, "road": None, "lamp [/lit]": 0.75},
    }
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize(
    "content",
    [
        "step,train/loss,val/mIoU\n10,2.5,\n20,1.5,0.5\n20,1.5,0.5\n15,2,\n",
        "step,train/loss\n",
        "step,val/mIoU\n1,nan\n",
    ],
)
def test_curves_are_drawn_from_any_metrics_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(content)
    plot_curves(tmp_path)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 600


def test_classes_go_to_wandb_and_not_to_metrics_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        NeverFatalWandbLogger, "log_payload", lambda self, payload, step=None: sent.append(payload)
    )
    scores = {**SCORES, "matrix": torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 3]])}
    log_classes([HistoryLogger(tmp_path), NeverFatalWandbLogger(tmp_path, "isaseg")], CLASSES, scores)
    assert sent[0]["val/classes"].data == [
        ["sky", 0.25, 0.5, 0.125],
        ["road", None, None, None],
        ["lamp [/lit]", 0.75, 0.75, 0.625],
    ]
    assert sent[1]["val/confusion"][0].image.width > 300
    assert not (tmp_path / "metrics.csv").exists()
