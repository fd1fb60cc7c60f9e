"""Slow references of the context modules that share no code with them, and modules whose norms do something."""

from collections.abc import Callable
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock
from isaseg.models.criss_cross import CrissCrossAttention
from isaseg.models.interlaced import InterlacedSparseAttention

Size = tuple[int, int]
Pattern = Callable[[Size, Size], bool]

# (H, W), (P_h, P_w): divisible, prime, one row, one column, smaller than the group, P = (1, 1), P = (H, W)
CASES: list[tuple[Size, Size]] = [
    ((4, 6), (2, 3)),
    ((8, 4), (4, 4)),
    ((7, 5), (2, 3)),
    ((7, 5), (4, 4)),
    ((1, 9), (2, 4)),
    ((9, 1), (4, 2)),
    ((3, 2), (8, 8)),
    ((1, 1), (3, 3)),
    ((4, 5), (1, 1)),
    ((4, 5), (4, 5)),
]


def randomise(module: nn.Module) -> nn.Module:
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, 0.2, 1.0)
            nn.init.normal_(cast(Tensor, child.running_mean), 0, 0.2)
            nn.init.uniform_(cast(Tensor, child.running_var), 0.1, 0.5)
        if isinstance(child, nn.GroupNorm):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, 0.2, 1.0)
        if isinstance(child, CrissCrossAttention):
            nn.init.constant_(child.gamma, 0.7)
        if isinstance(child, nn.ParameterDict):
            for table in child.values():
                nn.init.normal_(table)
    return module.double().eval()


def made(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Any:
    """Return a module with weights and statistics that are random, but the same in every run."""
    torch.manual_seed(0)
    return randomise(build(*args, **kwargs))


def random_map(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def offset(size: Size, group: Size) -> Size:
    """Return what published code pads at the top and left: half of the missing rows and columns."""
    return -size[0] % group[0] // 2, -size[1] % group[1] // 2


def lattice(group: Size) -> Pattern:
    return lambda a, b: (a[0] - b[0]) % group[0] == 0 and (a[1] - b[1]) % group[1] == 0


def window(group: Size) -> Pattern:
    return lambda a, b: a[0] // group[0] == b[0] // group[0] and a[1] // group[1] == b[1] // group[1]


def cross(a: Size, b: Size) -> bool:
    return a[0] == b[0] or a[1] == b[1]


def everything(a: Size, b: Size) -> bool:
    return True


def allowed(size: Size, pattern: Pattern, shift: Size = (0, 0)) -> Tensor:
    """Return which position may attend to which, (N, N), for a map `shift` away from its frame's corner."""
    cells = [(r + shift[0], c + shift[1]) for r, c in product(range(size[0]), range(size[1]))]
    return torch.tensor([[pattern(a, b) for b in cells] for a in cells])


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Dense attention under a mask (N, N), written out."""
    scores = q.flatten(2).transpose(1, 2) @ k.flatten(2) * scale
    weights = scores.exp() * mask
    weights = weights / weights.sum(-1, keepdim=True)
    return (v.flatten(2) @ weights.transpose(1, 2)).reshape(v.shape)


def project(layers: nn.Module, x_NC: Tensor) -> Tensor:
    """Apply 1x1 convolutions, batch norms in eval mode and ReLUs to a list of pixels, by their formulas."""
    for layer in layers if isinstance(layers, nn.Sequential) else [layers]:
        if isinstance(layer, nn.Conv2d):
            x_NC = x_NC @ layer.weight[:, :, 0, 0].T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            mean, var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
            x_NC = (x_NC - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
        else:
            assert isinstance(layer, nn.ReLU)
            x_NC = x_NC.clamp(min=0)
    return x_NC


def pixels_of(image: Tensor) -> dict[Size, Tensor]:
    """Return the positions of a map (C, H, W), row by row."""
    return {(r, c): image[:, r, c] for r, c in product(range(image.shape[1]), range(image.shape[2]))}


def reference_stage(
    block: AttentionBlock, pixels: dict[Size, Tensor], pattern: Pattern
) -> dict[Size, Tensor]:
    """Let each pixel attend to those that the pattern joins it with, one after the other."""
    x_NC = torch.stack(list(pixels.values()))
    q, k, v = (project(layers, x_NC) for layers in (block.query, block.key, block.value))
    context = []
    for n, cell in enumerate(pixels):
        group = [m for m, other in enumerate(pixels) if pattern(cell, other)]
        weights = torch.softmax(k[group] @ q[n] / q.shape[1] ** 0.5, dim=0)
        context.append(weights @ v[group])
    return dict(zip(pixels, project(block.proj, torch.stack(context)), strict=True))


def reference_isa(isa: InterlacedSparseAttention, x: Tensor) -> Tensor:
    """Compute the module pixel by pixel: zeros around the map take part unless `mask_padding`."""
    size, group = (x.shape[2], x.shape[3]), isa.group_size
    top, left = offset(size, group)
    inside = [(r + top, c + left) for r, c in product(range(size[0]), range(size[1]))]
    frame = (size[0] + -size[0] % group[0], size[1] + -size[1] % group[1])
    cells = inside if isa.mask_padding else list(product(range(frame[0]), range(frame[1])))
    images = []
    for image in x:
        zero = torch.zeros_like(image[:, 0, 0])
        pixels = {(r, c): image[:, r - top, c - left] if (r, c) in inside else zero for r, c in cells}
        for stage in isa.order.split("_"):
            block = cast(AttentionBlock, isa.get_submodule(f"{stage}_range"))
            pixels = reference_stage(block, pixels, (lattice if stage == "long" else window)(group))
        images.append(torch.stack([pixels[cell] for cell in inside], dim=1).view(-1, *size))
    return torch.stack(images)


@torch.no_grad()
def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def replace_relu(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, make())


def make_isa(**kwargs: Any) -> InterlacedSparseAttention:
    return cast(InterlacedSparseAttention, made(InterlacedSparseAttention, 6, **kwargs))


def published_like(dtype: torch.dtype, **kwargs: Any) -> InterlacedSparseAttention:
    """Return a module whose values are as wide as its maps, so that every short cut is taken."""
    torch.manual_seed(0)
    isa = InterlacedSparseAttention(24, **kwargs)
    return cast(InterlacedSparseAttention, randomise(isa).to(dtype))
