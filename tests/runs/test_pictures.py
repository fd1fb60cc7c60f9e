"""The pictures that a run leaves: truth and prediction in the colours of the classes."""

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from isaseg.runs import pictures
from isaseg.runs.guarded_loggers import GuardedLogger

CLASSES = ("sky", "road", "lamp")


class Data:
    classes = CLASSES
    ignore_index = 255
    palette = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)

    def source(self, split: str) -> Any:
        return self

    def length(self, split: str) -> int:
        return 4

    def samples(self, split: str, wanted: list[int]) -> Any:
        assert split == "val"
        image, mask = torch.full((3, 20, 30), 128, dtype=torch.uint8), torch.zeros(20, 30).long()
        names = ("a/x 1.jpg", "b", "c", "d")
        return [{"image": image, "mask": mask, "id": names[place]} for place in wanted]


class AlwaysOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

    def forward(self, image: Tensor, size: Any = None) -> Tensor:
        assert not self.training
        return self.bias[None, :, None, None].expand(len(image), 3, *image.shape[-2:])


def test_samples_are_spread_and_no_more_than_there_are() -> None:
    assert [s.id for s in pictures.validation_samples(Data(), 2)] == ["a/x 1.jpg", "c"]
    assert len(pictures.validation_samples(Data(), 9)) == 4
    assert pictures.validation_samples(Data(), 0) == []


def test_pictures_show_truth_and_prediction_in_the_palette(tmp_path: Path) -> None:
    model = AlwaysOne().train()
    pictures.save_pictures(model, Data(), tmp_path / "pictures", 3)
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


def test_pictures_of_one_name_in_two_folders_are_both_logged() -> None:
    logged: dict[str, Any] = {}
    logger = Mock(spec=GuardedLogger, log_images=lambda key, images, step: logged.update(images))
    mask = torch.zeros(20, 30).long()
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    samples = [pictures.Sample(image, mask, name) for name in ("a/1", "b/1")]
    pictures.log_pictures([logger], samples, [mask, mask], Data(), 5)  # type: ignore[arg-type]
    assert list(logged) == ["00_1", "01_1"]


def test_a_picture_of_nothing_but_ignored_and_of_great_size(tmp_path: Path) -> None:
    mask = torch.full((900, 1800), 255)
    sample = pictures.Sample(torch.zeros(3, 900, 1800, dtype=torch.uint8), mask, "a")
    pictures.save_picture(tmp_path / "p.png", sample, mask, Data())
    assert (tmp_path / "p.png").stat().st_size < 200_000


def test_wandb_overlays_carry_the_class_names() -> None:
    sample = pictures.Sample(torch.zeros(3, 20, 30, dtype=torch.uint8), torch.full((20, 30), 255), "a")
    image = pictures.wandb_image(sample, torch.zeros(20, 30).long(), Data(), (20, 40))
    assert image.image.size == (40, 20) and image.image.getpixel((35, 5)) == (255, 255, 255), "padded"
    assert set(image._masks) == {"ground_truth", "prediction"}
    assert image._caption == "a"


def test_what_changed_is_green_where_it_is_right_now_and_red_where_it_was(tmp_path: Path) -> None:
    truth = torch.tensor([0, 1, 2, 0, 255]).repeat_interleave(6).repeat(20, 1)
    now = torch.tensor([0, 0, 2, 1, 0]).repeat_interleave(6).repeat(20, 1)
    before = torch.tensor([0, 1, 0, 2, 1]).repeat_interleave(6).repeat(20, 1)
    sample = pictures.Sample(torch.zeros(3, 20, 30, dtype=torch.uint8), truth, "a")
    pictures.save_picture(tmp_path / "a.png", sample, now, Data(), before)
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    row = [tuple(pixel) for pixel in pixels[pixels.shape[0] * 2 // 5]]
    last = row[4 * len(row) // 5 :]
    shown = [(232, 232, 232), (213, 60, 40), (0, 150, 90), (120, 120, 120), (255, 255, 255)]
    counts = [last.count(tuple(np.uint8(colour))) for colour in shown]
    assert min(counts[:4]) > 20 and max(counts[:4]) - min(counts[:4]) < 4, counts
    assert [c for c in dict.fromkeys(last) if c in shown[:4]] == shown[:4], "from left to right"
