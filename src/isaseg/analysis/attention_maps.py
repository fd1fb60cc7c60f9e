"""What a position of a map attends to: the weights of each stage of a context module, and of all stages together.

The weights are read off the code that runs: the module is called as it is, and hooks record the input and the core of
each `AttentionBlock`. A core is linear in its values, so the gradient of its output at one position with respect to the
values is that position's row of weights. No formula of attention is repeated here.

Weights say where a position may take values from, and in what shares. They do not explain a prediction: between two
stages lie a projection, a norm and a ReLU, which the product of the weights leaves out, and the head concatenates the
position's own feature. Pure PyTorch.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isaseg.models.attention_block import AttentionBlock
from isaseg.models.attention_cores import Core
from isaseg.models.attention_kernels import by_definition
from isaseg.models.interlaced import InterlacedSparseAttention, ParallelInterlacedSparseAttention
from isaseg.models.regroup import pad_to_multiple
from isaseg.models.segmenter import Segmenter

Position = tuple[int, int]
_Call = tuple[AttentionBlock, Tensor, Core]


class AttentionMaps(NamedTuple):
    """Attention weights of M chosen positions of a map.

    If a map sums to less than 1, the rest lies on padding. Only an `InterlacedSparseAttention` without `mask_padding`
    attends to padding, if H or W is not a multiple of its group size. Several heads are averaged; a residual around a
    stage is left out.

    Attributes:
        stages: The weights of each stage, (M, H, W), in the order in which the stages run, by the name of their pattern,
            e.g. long_range, short_range, dense, along_rows; numbered from its second use on, `long_range_2`.
        product: The weights of all stages together, (M, H, W): for two stages sum_m w2(i, m) w1(m, j), the share that
            position j of the input has in position i of the output if values passed unchanged from stage to stage.
    """

    stages: dict[str, Tensor]
    product: Tensor


@torch.no_grad()
def attention_maps(module: nn.Module, x: Tensor, positions: Sequence[Position]) -> AttentionMaps:
    """Return the attention weights of a context module for chosen positions of its output.

    Besides what the module itself needs, it holds a few times M maps in memory, never the score matrix.

    Args:
        module: A context module whose stages are `AttentionBlock`s, e.g. isa, dense or axial, in evaluation mode.
        x: Its input, (1, C, H, W).
        positions: M positions (row, column) of the map.

    Raises:
        ValueError: If the module is in training mode or of another kind, or a position lies outside the map.
    """
    _check(module, x, positions)
    calls = _calls(module, x)
    if not calls:
        raise ValueError(
            f"expected a context module made of attention blocks, got {type(module).__name__}; choose one whose stages "
            "are `AttentionBlock`s, e.g. isa, dense or axial"
        )
    height, width = x.shape[-2:]
    top, left = 0, 0
    if isinstance(module, InterlacedSparseAttention) and not module.mask_padding:
        top, left = pad_to_multiple(x, module.group_size)[1]
    chosen = x.new_zeros(1, len(positions), *calls[0][1].shape[-2:])
    for number, (row, column) in enumerate(positions):
        chosen[0, number, top + row, left + column] = 1
    stages, product = [], chosen
    for block, inputs, core in reversed(calls):
        query, key = block.query(inputs), block.key(inputs)
        stages.append(_weights(core, query, key, chosen, block.heads))
        product = stages[-1] if product is chosen else _weights(core, query, key, product, block.heads)
    inside = [m[0, :, top : top + height, left : left + width] for m in (*reversed(stages), product)]
    return AttentionMaps(dict(zip(_names(calls), inside[:-1], strict=True)), inside[-1])


@torch.no_grad()
def image_attention(segmenter: Segmenter, image: Tensor, pixels: Sequence[Position]) -> AttentionMaps:
    """Return the attention weights of a network for chosen pixels of a picture.

    Args:
        segmenter: The network, in evaluation mode.
        image: uint8 RGB, (3, H, W).
        pixels: M pixels (row, column); each stands for the position of the context module's map in which it lies.

    Returns:
        Maps at the context module's own resolution, e.g. a quarter of H and W.

    Raises:
        ValueError: As in `attention_maps`, and if a pixel lies outside the picture.
    """
    if segmenter.training:
        raise ValueError(
            "expected a network in evaluation mode, got one in training mode; call segmenter.eval()"
        )
    x = segmenter.head.reduce(segmenter.backbone(image[None])[-1])
    size, map_size = (image.shape[-2], image.shape[-1]), (x.shape[-2], x.shape[-1])
    return attention_maps(segmenter.head.attention, x, [_cell(pixel, size, map_size) for pixel in pixels])


def weight_on(weights: Tensor, region: Tensor) -> Tensor:
    """Return the share of the weight that lies on a region of the picture, (M,).

    The weight of a position counts as spread evenly over the pixels that it stands for.

    Args:
        weights: A map of `AttentionMaps`, (M, h, w).
        region: Pixels of the picture, bool (H, W).
    """
    covered = F.interpolate(region[None, None].to(weights), size=weights.shape[-2:], mode="area")
    return (weights * covered[0]).sum((1, 2))


def _cell(pixel: Position, size: tuple[int, int], map_size: tuple[int, int]) -> Position:
    """Return the position of a map of `map_size` in which the middle of a pixel lies."""
    check_inside(pixel, size)
    row, column = ((2 * p + 1) * m // (2 * n) for p, n, m in zip(pixel, size, map_size, strict=True))
    return row, column


def _check(module: nn.Module, x: Tensor, positions: Sequence[Position]) -> None:
    if module.training:
        raise ValueError("expected a module in evaluation mode, got one in training mode; call module.eval()")
    if isinstance(module, ParallelInterlacedSparseAttention):
        raise ValueError(
            "expected a sequence of blocks, got ParallelInterlacedSparseAttention, which has them side by side; "
            "give one of module.blocks"
        )
    if x.ndim != 4 or len(x) != 1:
        raise ValueError(f"expected a map (1, C, H, W), got {tuple(x.shape)}")
    if not positions:
        raise ValueError("expected at least one position, got none")
    for position in positions:
        check_inside(position, (x.shape[2], x.shape[3]))


def check_inside(position: Position, size: tuple[int, int]) -> None:
    """Check that a position lies inside (H, W).

    Raises:
        ValueError: If it does not.
    """
    if not all(0 <= p < n for p, n in zip(position, size, strict=True)):
        raise ValueError(f"expected (row, column) to lie inside {size[0]} x {size[1]}, got {position}")


def _calls(module: nn.Module, x: Tensor) -> list[_Call]:
    """Run the module and return the attention blocks that ran, in order, each with its input and its core."""
    calls: list[_Call] = []

    def note(block: nn.Module, arguments: tuple[Tensor, Core]) -> None:
        assert isinstance(block, AttentionBlock)
        calls.append((block, *arguments))

    with ExitStack() as hooks, by_definition(hold_scores=False):  # in which each core maps whole maps
        for block in module.modules():
            if isinstance(block, AttentionBlock):
                hooks.callback(block.register_forward_pre_hook(note).remove)
        module(x)
    return calls


def _weights(core: Core, query: Tensor, key: Tensor, output: Tensor, heads: int) -> Tensor:
    """Return `output`, (1, M, H, W) weights of output positions, as weights of input positions, (1, M, H, W)."""
    count = output.shape[1]
    # One channel of values per map and head. With fewer than the keys have, torch picks a kernel that holds the scores.
    channels = max(count, query.shape[1] // heads)
    value = query.new_zeros(1, heads * channels, *query.shape[-2:])
    with torch.enable_grad():
        context = torch.unflatten(core(query, key, value.requires_grad_()), 1, (heads, channels))
        of_heads = output.expand(heads, -1, -1, -1)[None] / heads
        (weights,) = torch.autograd.grad(context[:, :, :count], value, of_heads)
    return torch.unflatten(weights, 1, (heads, channels))[:, :, :count].sum(1)


def _names(calls: Sequence[_Call]) -> list[str]:
    cores: list[Any] = [core if isinstance(core, partial) else partial(core) for _, _, core in calls]
    patterns = [core.keywords.get("kind", core.func.__name__) for core in cores]
    counts = [patterns[: place + 1].count(pattern) for place, pattern in enumerate(patterns)]
    return [p if count == 1 else f"{p}_{count}" for p, count in zip(patterns, counts, strict=True)]
