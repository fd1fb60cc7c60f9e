"""What all code bases are measured on alike: inputs, passes through a block, samples. Imports torch alone."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# number of classes, size of the coarse logits (stride 8), size of the image
SETS = {"cityscapes": (19, (128, 256), (1024, 2048)), "ade20k": (150, (64, 86), (512, 683))}
LOGITS = ("regions", "noise")
CLASSES = 150  # of a training step


def set_tf32(on: bool) -> None:
    """Let products and convolutions of float32 run in TF32 on a GPU, or, with False, in float32 throughout.

    torch's newer settings, `fp32_precision`, are left alone: with TF32 set by them, whoever reads the older ones gets an
    error, and Lightning does at the start of each run on a GPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on  # torch itself begins with False for products and True here


def autocast(kind: str, device: str) -> AbstractContextManager[Any]:
    """Return autocast to `kind`, a floating-point type; for float32 and tf32 a context that does nothing.

    From the call on, TF32 is used if it is `kind`, and otherwise not.
    """
    set_tf32(kind == "tf32")
    if kind in ("float32", "tf32"):
        return nullcontext()
    return torch.autocast(device.split(":")[0], getattr(torch, kind))


def feature_map(channels: int, side: int, device: str) -> Tensor:
    """Return a map (1, C, side, side), the same in every process."""
    generator = torch.Generator(device).manual_seed(side)
    return torch.randn(1, channels, side, side, generator=generator, device=device)


def pass_through(
    module: Any, call: Callable[[Tensor], Tensor], x: Tensor, training: bool, kind: str
) -> Callable[[], None]:
    """Return a pass through a block: forward in evaluation mode, or forward and backward in training mode.

    Args:
        module: Holds the weights.
        call: Runs the module on `x`.
        x: Input, (1, C, H, W), in the memory format that suits the module.
        training: Which of the two.
        kind: Type of the products, see `autocast`.
    """
    x.requires_grad_(training)

    def forward() -> None:
        module.eval()
        with torch.no_grad(), autocast(kind, str(x.device)):
            call(x)

    def forward_and_backward() -> None:
        module.train()
        with autocast(kind, str(x.device)):
            out = call(x)
        torch.autograd.backward(out, torch.ones_like(out))
        module.zero_grad()
        x.grad = None

    return forward_and_backward if training else forward


def images_and_target(
    batch: int, size: Sequence[int], device: str, classes: int = CLASSES
) -> tuple[Tensor, Tensor]:
    """Return random images, uint8 RGB (B, 3, H, W), and labels, int64 (B, H, W), for `size` (H, W)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, classes, (batch, *size), generator=generator)
    return images.to(device), target.to(device)


def logits_and_target(name: str, kind: str) -> tuple[Tensor, Tensor]:
    """Return coarse logits (1, K, h, w) and labels uint8 (H, W), of which a tenth is wrong and some are ignored.

    Args:
        name: A key of SETS.
        kind: "regions" are smooth with a little noise, like the logits of a trained network; in "noise" no two
            neighbours agree.
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


def smooth_image(height: int, width: int) -> Tensor:
    """Return an image, uint8 RGB (3, H, W)."""
    generator = torch.Generator().manual_seed(1)
    few = torch.rand(1, 3, height // 16, width // 16, generator=generator)
    return (255 * F.interpolate(few, (height, width), mode="bilinear")[0]).to(torch.uint8)


class Samples(torch.utils.data.Dataset[Any]):
    """A data set whose samples are timed.

    Args:
        sample: Returns sample `i` for any i = 0, 1, 2, ...
        collate: Puts samples together.
        samples: How many are timed at a time.
    """

    def __init__(
        self, sample: Callable[[int], Any], collate: Callable[[list[Any]], Any], samples: int
    ) -> None:
        self.sample, self.collate, self.samples, self.start = sample, collate, samples, 0

    def __len__(self) -> int:
        """Return how many samples are timed at a time."""
        return self.samples

    def __getitem__(self, index: int) -> Any:
        """Return a sample that was not timed before."""
        return self.sample(self.start + index)

    def answer(self, question: dict[str, Any]) -> dict[str, float]:
        """Return the mean seconds of a sample; the kind of the question is the number of loader processes."""
        options: dict[str, Any] = {"num_workers": int(question["kind"]), "collate_fn": self.collate}
        batches = iter(torch.utils.data.DataLoader(self, 4, drop_last=True, **options))
        next(batches)  # starting the loader processes is not measured
        start = time.perf_counter()
        count = sum(1 for _ in batches)
        seconds = (time.perf_counter() - start) / (4 * count)
        self.start += self.samples
        return {"seconds": seconds}
