"""Attention blocks in evaluation: batch norms folded into the matrices, a few groups at a time, in the cache of a CPU.

A block has five matrices on its way from tokens to tokens; in evaluation its batch norms are factors and terms of them.
What is computed for a few groups at a time never leaves the cache, and is written once, in the order in which the next
stage attends, so that a stage makes one pass over the map. Pure PyTorch.

Legend as in attention.py; N tokens.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm

from isaseg.models.attend import attend, is_by_definition, without_autocast
from isaseg.models.regroup import AXES, Grid, Layout

_TOKENS = 2048  # at a time: 4 MB of 512 channels
_PIECES = 64  # of a map that is larger
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_linear_pointwise"
)

_ONEDNN_BF16 = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Layer(NamedTuple):
    """A matrix on tokens, and what follows it.

    Attributes:
        weight: (outputs, inputs), or the same packed by oneDNN.
        bias: (outputs,) or None.
        slope: Of the activation below zero: 0 is ReLU, 1 none.
        onednn: Whether oneDNN multiplies.
    """

    weight: Tensor
    bias: Tensor | None
    slope: float
    onednn: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, outputs) for `x` (N, inputs)."""
        if self.onednn:
            # nearly twice MKL's rate on AMD's processors, and the activation costs nothing
            name, slopes = {0.0: ("relu", []), 1.0: ("none", [])}.get(
                self.slope, ("leaky_relu", [self.slope])
            )
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, slopes, "")
            return out
        return activate(F.linear(x, self.weight, self.bias), self.slope)


class Folded(NamedTuple):
    """An attention block in evaluation; query and key have their scale and their norms in them."""

    query_key: Layer
    query: Layer
    key: Layer
    value: Layer
    proj: Layer | None  # None: it is in the values
    slope: float  # of the activation at the end


def serves(x: Tensor, module: nn.Module) -> bool:
    """Tell whether `run` may be asked: on a CPU, in evaluation, without gradients and graphs, of blocks as published.

    On a GPU the norms take little, and comparing weights would wait for it. A hook in a block wants its layers to run.
    """
    if torch.is_grad_enabled() or is_by_definition() or x.device.type != "cpu" or not len(x):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    parts = list(module.modules())
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return False
    if any(part.training for part in parts if isinstance(part, _BatchNorm)):  # which then counts the batch
        return False
    return all(_layers(part) is not None for part in parts if hasattr(part, "key_channels"))


def run(x: Tensor, stages: Sequence[tuple[nn.Module, Layout]], grid: Grid) -> Tensor:
    """Return what the stages make of a map that is a multiple of the group size.

    Args:
        x: (B, C, H, W), of the size of `grid`.
        stages: Blocks, and which groups each attends in.
        grid: How the map is cut.

    Returns:
        (B, C, H, W), channels-last.
    """
    # a map of (B, Q_h, P_h, Q_w, P_w, C), whatever the order of its memory
    x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).view(*grid, x.shape[1])
    for number, (block, kind) in enumerate(stages):
        next_kind: Layout = "map" if number + 1 == len(stages) else stages[number + 1][1]
        x = _stage(x, block, kind, next_kind)
    return x.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


def _stage(x: Tensor, block: Any, kind: Layout, next_kind: Layout) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    layers = fold(block, dtype)
    axes, next_axes = (*AXES[kind], 5), (*AXES[next_kind], 5)
    sizes = [x.shape[axis] for axis in next_axes[:5]]
    out = x.new_empty((*sizes, block.channels), dtype=dtype).permute(*(next_axes.index(a) for a in range(6)))
    source, target = x.permute(axes), out.permute(axes)  # (3 axes of groups, 2 of tokens, C)
    tokens = source.shape[3:5].numel()
    with without_autocast("cpu"):
        for few in _pieces(source.shape[:3], tokens, _at_a_time(x)):
            these = source[few]
            context = _attended(layers, these.reshape(-1, these.shape[-1]).to(dtype), tokens)
            target[few].copy_(activate(context, layers.slope).view(*these.shape[:5], -1))
            del context  # before the next is made
    return out


def _attended(layers: Folded, x: Tensor, tokens: int) -> Tensor:
    """Return (N, C) for `x` (N, C), groups of `tokens` one after the other; without the activation at the end."""
    query_key = layers.query_key(x)
    width = query_key.shape[1] // 2
    query, key = layers.query(query_key[:, :width]), layers.key(query_key[:, width:])
    value = layers.value(x)
    q, k, v = (t.view(-1, tokens, t.shape[1]) for t in (query, key, value))
    context = attend(q, k, v, 1.0).reshape(len(x), -1)
    return context if layers.proj is None else layers.proj(context)


def _at_a_time(x: Tensor) -> int:
    return max(_TOKENS, x.shape[:5].numel() // _PIECES)


def _pieces(groups: Sequence[int], tokens: int, most: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut three axes of groups, of `tokens` each, into pieces of at most about `most` tokens."""
    steps, one = [], tokens
    for size in reversed(groups):
        steps.append(min(max(most // one, 1), size))
        one *= size
    cuts = [
        [slice(n, n + step) for n in range(0, size, step)]
        for size, step in zip(groups, reversed(steps), strict=True)
    ]
    yield from product(*cuts)


def activate(x: Tensor, slope: float) -> Tensor:
    """Apply (leaky) ReLU in place; a slope of 1 is none."""
    if slope == 1:
        return x
    return x.relu_() if slope == 0 else F.leaky_relu_(x, slope)


# ---------------------------------------------------------------- folding

_Made = tuple[list[Tensor], list[float], dict[torch.dtype, "Folded"]]
# of each block copies of its tensors, its other numbers, and what was made from them for each type
_kept: WeakKeyDictionary[nn.Module, _Made] = WeakKeyDictionary()


@torch.no_grad()
def fold(block: Any, dtype: torch.dtype) -> Folded:
    """Return the matrices of a block in evaluation, kept until a number of the block changes.

    Its tensors are compared with copies, number by number, which takes a tenth of the time of folding: what torch counts
    as changes of a tensor leaves out those by `tensor.data` and by fused optimisers.

    Raises:
        ValueError: If a layer of the block is not one that can be folded.
    """
    layers = _layers(block)
    if layers is None:
        raise ValueError("expected a block of 1x1 convolutions, batch norms and ReLUs, got other layers")
    tensors, numbers = [*block.parameters(), *block.buffers()], _numbers(layers)
    copies, known, made = _kept.get(block, ([], [], {}))
    if not copies or numbers != known or not all(map(_equal, copies, tensors)):
        copies, made = [t.clone() for t in tensors], {}
        _kept[block] = (copies, numbers, made)
    if dtype in made:
        return made[dtype]
    made[dtype] = _fold(layers, block.channels, dtype)
    return made[dtype]


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if isinstance(one, FakeTensor):  # which has no numbers
        return isinstance(other, FakeTensor)
    return not isinstance(other, FakeTensor) and torch.equal(one, other)


def _numbers(layers: list[list[nn.Module]]) -> list[float]:
    """Return what else a fold depends on: the epsilon of each norm, the slope of each activation."""
    parts = [part for some in layers for part in some]
    return [getattr(part, "eps", getattr(part, "negative_slope", 0.0)) for part in parts]


class _Affine(NamedTuple):
    """weight (outputs, inputs), bias, slope of the activation after it."""

    weight: Tensor
    bias: Tensor | None
    slope: float


def _layers(block: nn.Module) -> list[list[nn.Module]] | None:
    """Return the layers of query, key, value and output projection, or None if one cannot be folded."""
    found = []
    for name, steps in (("query", 2), ("key", 2), ("value", 0), ("proj", 1)):
        part = block.get_submodule(name)
        layers = list(part) if isinstance(part, nn.Sequential) else [part]
        convs, norms, acts = layers[0::3], layers[1::3], layers[2::3]
        if len(layers) != max(3 * steps, 1) or not (
            all(isinstance(c, nn.Conv2d) and c.kernel_size == (1, 1) and c.groups == 1 for c in convs)
            and all(isinstance(n, _BatchNorm) and n.running_mean is not None for n in norms)
            and all(isinstance(a, (nn.ReLU, nn.LeakyReLU)) for a in acts)
        ):
            return None
        found.append(layers)
    # one product makes the first layers of queries and keys, with one activation
    return found if _slope(found[0][2]) == _slope(found[1][2]) else None


def _slope(activation: nn.Module) -> float:
    return float(getattr(activation, "negative_slope", 0.0))


def _fold(layers: list[list[nn.Module]], channels: int, dtype: torch.dtype) -> Folded:
    query, key, value, proj = ([_affine(part[n : n + 3]) for n in range(0, len(part), 3)] for part in layers)
    scale = query[1].weight.shape[0] ** -0.5
    second = _Affine(query[1].weight * scale, _times(query[1].bias, scale), query[1].slope)
    both = _Affine(
        torch.cat([query[0].weight, key[0].weight]),
        torch.cat([query[0].bias, key[0].bias]),  # type: ignore[list-item]
        query[0].slope,
    )
    (values,), (out,) = value, proj
    last = out._replace(slope=1.0)  # its activation is applied where the map is written
    wide = values.weight.shape[0] >= channels
    if wide:  # through both matrices at once: the weights of a position sum to 1
        bias = last.bias if values.bias is None else out.weight @ values.bias + last.bias  # type: ignore[operator]
        values = _Affine(out.weight @ values.weight, bias, 1.0)
    return Folded(
        _ready(both, dtype),
        _ready(second, dtype),
        _ready(key[1], dtype),
        _ready(values, dtype),
        None if wide else _ready(last, dtype),
        out.slope,
    )


def _affine(layers: list[nn.Module]) -> _Affine:
    """Return convolution, norm and activation as one affine map, in float32 at least."""
    conv: Any = layers[0]
    wide = torch.promote_types(conv.weight.dtype, torch.float32)
    weight, bias = conv.weight.flatten(1).to(wide), None if conv.bias is None else conv.bias.to(wide)
    if len(layers) == 1:
        return _Affine(weight, bias, 1.0)
    norm: Any = layers[1]
    factor = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight
    shift = -norm.running_mean * factor if norm.bias is None else norm.bias - norm.running_mean * factor
    if bias is not None:
        shift = shift + bias * factor
    return _Affine(weight * factor[:, None], shift, _slope(layers[2]))


def _times(bias: Tensor | None, factor: float) -> Tensor | None:
    return None if bias is None else bias * factor


def _ready(layer: _Affine, dtype: torch.dtype) -> Layer:
    weight = layer.weight.to(dtype).contiguous()
    bias = None if layer.bias is None else layer.bias.to(dtype)
    onednn = _ONEDNN and type(weight) is Tensor
    if onednn and dtype is torch.float32:
        return Layer(torch.ops.mkldnn._reorder_linear_weight(weight, _TOKENS), bias, layer.slope, True)
    return Layer(weight, bias, layer.slope, onednn and dtype is torch.bfloat16 and _ONEDNN_BF16)
