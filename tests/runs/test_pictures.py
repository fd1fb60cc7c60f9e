"""What a run leaves for people."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from isaseg.runs import pictures as report

NAN = float("nan")
CLASSES = ("sky", "road", "lamp")
SCORES = {
    "mIoU": torch.tensor(0.5),
    "mAcc": torch.tensor(0.625),
    "aAcc": torch.tensor(0.875),
    "iou": torch.tensor([0.25, NAN, 0.75]),
    "acc": torch.tensor([0.5, NAN, 0.75]),
}


class Data:
    classes = CLASSES
    ignore_index = 255
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def dataset(self, split: str) -> Any:
        assert split == "val"
        image, mask = torch.full((3, 20, 30), 128, dtype=torch.uint8), torch.zeros(20, 30).long()
        return [{"image": image, "mask": mask, "id": name} for name in ("a/x 1.jpg", "b", "c", "d")]


class AlwaysOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, image: Tensor, size: Any = None) -> Tensor:
        assert not self.training
        return self.bias[None, :, None, None].expand(len(image), 3, *image.shape[-2:])


def test_samples_are_spread_and_no_more_than_there_are() -> None:
    assert [s.id for s in report.samples(Data(), 2)] == ["a/x 1.jpg", "c"]
    assert len(report.samples(Data(), 9)) == 4
    assert report.samples(Data(), 0) == []


def test_pictures_show_truth_and_prediction_in_the_palette(tmp_path: Path) -> None:
    model = AlwaysOne().train()
    report.save_pictures(model, Data(), tmp_path / "pictures", 3)
    assert model.training
    names = sorted(os.listdir(tmp_path / "pictures"))
    assert names == ["00_x_1.png", "01_b.png", "02_c.png"]
    with Image.open(tmp_path / "pictures" / names[0]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    row = pixels[pixels.shape[0] // 2]
    width = len(row)
    assert row[width // 6].tolist() == [128, 128, 128]
    assert row[width // 2].tolist() == [255, 0, 0]
    assert row[5 * width // 6].tolist() == [0, 255, 0]


def test_a_picture_of_nothing_but_ignored_and_of_great_size(tmp_path: Path) -> None:
    mask = torch.full((900, 1800), 255)
    image = torch.zeros(3, 900, 1800, dtype=torch.uint8)
    report.save_picture(tmp_path / "p.png", image, mask, mask, Data.palette, 255, CLASSES)
    assert (tmp_path / "p.png").stat().st_size < 200_000


def test_the_table_shows_absent_classes_as_absent() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(report.class_table(CLASSES, SCORES))
    lines = console.export_text().splitlines()
    (road,) = [line for line in lines if "road" in line]
    assert road.count("absent") == 2
    (footer,) = [line for line in lines if "mIoU" in line]
    assert "50.00" in footer
    assert "62.50" in footer
    assert any("87.50" in line for line in lines)


def test_metrics_are_strict_json_with_null_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    values = {"val/mIoU": torch.tensor(0.5), "step": 7, "seconds_per_step": NAN}
    report.write_json(path, report.metrics(values, CLASSES, SCORES))
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "val/mIoU": 0.5,
        "step": 7,
        "seconds_per_step": None,
        "val/IoU": {"sky": 0.25, "road": None, "lamp": 0.75},
    }
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_the_confusion_matrix_is_kept_in_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "confusion.json"
    matrix = torch.tensor([[2**40 + 1, 0, 3], [0, 0, 0], [1, 0, 4]]).double()
    report.write_confusion(path, CLASSES, matrix)
    assert json.loads(path.read_text()) == {
        "classes": ["sky", "road", "lamp"],
        "matrix": [[2**40 + 1, 0, 3], [0, 0, 0], [1, 0, 4]],
    }


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
    report.plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 600


def test_the_later_row_of_a_step_holds(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,val/mIoU\n2,0.5\n4,0.25\n2,0.75\n")
    assert report._read_column(tmp_path / "metrics.csv", "val/mIoU") == {2: 0.75, 4: 0.25}


def test_wandb_overlays_carry_the_class_names() -> None:
    sample = report.Sample(torch.zeros(3, 20, 30, dtype=torch.uint8), torch.full((20, 30), 255), "a")
    image = report.wandb_image(sample, torch.zeros(20, 30).long(), CLASSES, 255)
    assert set(image._masks) == {"ground_truth", "prediction"}
    assert image._caption == "a"


def test_classes_go_to_wandb_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isaseg.runs.loggers import NeverFatalWandbLogger, make_loggers

    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(
        NeverFatalWandbLogger, "log_payload", lambda self, payload, step=None: sent.append(payload)
    )
    scores = {**SCORES, "matrix": torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 3]])}
    report.log_classes(make_loggers(tmp_path, wandb=True, mode="offline"), CLASSES, scores)
    assert sent[0]["val/classes"].data == [["sky", 0.25, 0.5], ["road", None, None], ["lamp", 0.75, 0.75]]
    assert sent[0]["val/confusion"].image.width > 300
