"""Small networks and pictures, and what lies in a folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image

from isaseg.inference.apply import Inference, in_strips, views
from isaseg.models.segmenter import Segmenter, build_described
from isaseg.models.tensor_files import save_safetensors
from tests import composed

PALETTE = [[10 * i, 255 - 20 * i, i] for i in range(7)]


def make_checkpoint(path: Path, num_classes: int, scale: float = 1.0, **known: Any) -> Path:
    """Write a network whose logits are `scale` times those of random weights."""
    description = {
        "backbone": {"name": "test_resnet", "out_indices": [1]},
        "attention": {"name": "InterlacedSparseAttention", "group_size": [2, 2]},
        "head": {"channels": 8, "dropout": 0.1, "aux_channels": None, "align_corners": False},
        "num_classes": num_classes,
        **known,
    }
    torch.manual_seed(0)
    segmenter = build_described(description).eval()
    with torch.no_grad():  # so that all classes occur
        torch.nn.init.normal_(segmenter.head.classifier.weight)
        logits = segmenter.coarse(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
        segmenter.head.classifier.bias -= logits.mean((0, 2, 3))
        segmenter.head.classifier.weight *= scale
        segmenter.head.classifier.bias *= scale
    save_safetensors(segmenter, description, path)
    return path


@torch.no_grad()
def predict_logits(segmenter: Segmenter, image: torch.Tensor, how: Inference) -> torch.Tensor:
    """Return what `predict_labels` takes the argmax of, float32 (B, K, H, W), held whole."""
    each = in_strips(segmenter, views(image, how), (image.shape[2], image.shape[3]), how)
    return torch.stack([torch.cat(list(strips), dim=1) for strips in each])


def compose_from(*words: str) -> DictConfig:
    return composed.compose_from("evaluate", ["checkpoint=none", *words])


def save_picture(path: Path, height: int = 40, width: int = 56, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    pixels = np.kron(coarse, np.ones((4, 4, 1), np.uint8))[:height, :width]
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB") if path.suffix == ".jpg" else picture)
