"""What is evaluated in the benchmark, the same for two code bases. Imports torch alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

# classes, coarse logits at stride 8, picture
SETS = {"cityscapes": (19, (128, 256), (1024, 2048)), "ade20k": (150, (64, 86), (512, 683))}
KINDS = ("regions", "noise")


def logits_and_target(name: str, kind: str) -> tuple[Tensor, Tensor]:
    """Return coarse logits (1, K, h, w) and labels uint8 (H, W), a tenth of them wrong and some ignored.

    Args:
        name: A key of SETS.
        kind: regions: smooth with a little noise, as a trained network's are; noise: no two neighbours agree.
    """
    classes, coarse, size = SETS[name]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, classes, *coarse, generator=generator)
    few = torch.randn(1, classes, coarse[0] // 12, coarse[1] // 12, generator=generator)
    logits = noise if kind == "noise" else 0.3 * noise + F.interpolate(4 * few, coarse, mode="bicubic")
    target = F.interpolate(logits.argmax(1, keepdim=True).float(), size)[0, 0].to(torch.uint8)
    wrong = torch.randint(classes, size, generator=generator, dtype=torch.uint8)
    target = torch.where(torch.rand(size, generator=generator) < 0.1, wrong, target)
    target[: size[0] // 20] = 255
    return logits, target


def picture(height: int, width: int) -> Tensor:
    """Return a picture, uint8 RGB (3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    few = torch.rand(1, 3, height // 16, width // 16, generator=generator)
    return (255 * F.interpolate(few, (height, width), mode="bilinear")[0]).to(torch.uint8)
