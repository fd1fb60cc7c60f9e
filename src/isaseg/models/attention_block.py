"""The attention block inside every stage.

Legend: B batch, C channels, H W map, D key channels, V value channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isaseg.models.attention_cores import Core
from isaseg.models.attention_kernels import attend, is_by_definition, without_autocast
from isaseg.models.layers import Cost, Pointwise, conv_norm_act, pointwise, width
from isaseg.models.regroup import for_any_size, viewed


class AttentionBlock(nn.Module):
    """Project to query, key and value, attend, project back: the block inside each ISA stage.

    Query and key are two 1x1 convolutions each with batch norm and ReLU, the value is one plain 1x1 convolution, and the
    output is a 1x1 convolution with batch norm and ReLU. There is no residual (mmsegmentation's ISAHead; openseg has the
    same block with `value_bias=False`). The batch norm and ReLU at the end give the next stage an input of the same
    scale (openseg#35). Every layer treats all positions alike, so a block may run on groups as well as on whole maps.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        value_channels: int | None = None,
        value_bias: bool = True,
        heads: int = 1,
    ) -> None:
        super().__init__()
        keys, values = width(key_channels, channels // 2), width(value_channels, channels)
        if int(heads) != heads or heads < 1 or keys % heads or values % heads:
            raise ValueError(
                f"expected heads of at least 1 that divide key_channels={keys} and value_channels={values}, got {heads=}"
            )
        self.heads = int(heads)  # into which the core cuts the channels
        self.channels, self.key_channels, self.value_channels = channels, keys, values
        self.query = nn.Sequential(*conv_norm_act(channels, keys), *conv_norm_act(keys, keys))
        self.key = nn.Sequential(*conv_norm_act(channels, keys), *conv_norm_act(keys, keys))
        self.value = Pointwise(channels, values, bias=value_bias)
        self.proj = conv_norm_act(values, channels)

    def forward(self, x: Tensor, core: Core) -> Tensor:
        """Return (B, C, H, W) for `x` (B, C, H, W).

        Args:
            x: The map, or the groups of one as a batch.
            core: Maps query, key and value to the context. Its weights sum to 1 for each position.
        """
        out: Tensor
        if not self._merges(x):
            out = self.proj(core(self.query(x), self.key(x), self.value(x)))
            return out
        conv, *rest = self.proj
        with without_autocast(x.device.type):
            weight, bias = project_values(self.value, conv)  # type: ignore[arg-type]
        out = core(self.query(x), self.key(x), pointwise(x, weight, bias))
        for layer in rest:
            out = layer(out)
        return out

    def may_merge(self) -> bool:
        """Return whether the output projection may be applied to the values, which it may not across heads."""
        return self.heads == 1 and self.value_channels >= self.channels

    def _merges(self, x: Tensor) -> bool:
        """Return whether the output projection is applied to the values, which saves one product over all positions.

        It costs a product of the two weights instead, and more in the attention if values are narrower than the map. The
        layers themselves are then not called, nor are their hooks.
        """
        if is_by_definition() or torch.compiler.is_exporting() or not self.may_merge():
            return False
        return torch.compiler.is_compiling() or x[:, 0].numel() > self.channels

    def cost_of(self, positions: int, score_entries: int) -> Cost:
        """Return the cost for a map of `positions` pixels with `score_entries` in the attention maps of each head."""
        conv = (
            2 * (self.channels + self.key_channels) * self.key_channels
            + 2 * self.channels * self.value_channels
        )
        attention = score_entries * (self.key_channels + self.value_channels)
        return Cost(positions * conv + attention, attention, score_entries * self.heads)


def run_block(module: nn.Module, x: Tensor, core: Core, *, recompute: bool) -> Tensor:
    """Return `module(x, core)`. With `recompute`, training keeps `x` alone, and the backward pass runs the module again.

    Batch norms count the batch once.
    """
    out: Tensor
    if torch.compiler.is_compiling() and not for_any_size():
        out = _by_token(module, x, core, recompute and module.training)
    elif not (recompute and module.training):
        out = module(x, core)
    else:
        contexts = (nullcontext(), _as_they_were(module))  # of the forward pass and of its repetition
        out = checkpoint(module, x, core, use_reentrant=False, context_fn=lambda: contexts)
    return out


def _by_token(module: nn.Module, x: Tensor, core: Core, recompute: bool) -> Tensor:
    """Run a block on the tokens of a map as a list, whose strides are numbers.

    With products of H and W in the strides, torch.export guesses an order of the axes in the norm of a map and cannot
    prove it.
    """
    size = (x.shape[0], x.shape[2], x.shape[3])

    def tokens(x: Tensor) -> Tensor:
        return viewed(x.permute(0, 2, 3, 1), size[0] * size[1] * size[2], x.shape[1], 1, 1)

    def maps(x: Tensor) -> Tensor:
        return viewed(x, *size, x.shape[1]).permute(0, 3, 1, 2)

    def core_of_tokens(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tokens(core(maps(q), maps(k), maps(v)))

    return maps(_run(module, tokens(x), core_of_tokens, recompute))


def run_on_tokens(
    module: nn.Module, x: Tensor, recompute: bool, heads: int = 1, bias: Tensor | None = None
) -> Tensor:
    """Return (G, L, C) for tokens `x` (G, L, C), each of which attends to its group of L, see `attend`.

    The block gets every token as a map of one pixel, (G L, C, 1, 1), since the strides of these are numbers.
    """
    number, length, channels = x.shape

    def core(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.reshape(number, length, t.shape[1]) for t in (q, k, v))
        context = attend(q, k, v, (q.shape[2] / heads) ** -0.5, few=True, heads=heads, bias=bias)
        return context.reshape(number * length, v.shape[2], 1, 1)

    return _run(module, x.reshape(number * length, channels, 1, 1), core, recompute).reshape(
        number, length, -1
    )


def _run(module: nn.Module, tokens: Tensor, core: Core, recompute: bool) -> Tensor:
    """Run a block; its recomputation needs no `_as_they_were`: the backward graph has no running statistics."""
    out: Tensor = checkpoint(module, tokens, core, use_reentrant=False) if recompute else module(tokens, core)
    return out


@contextmanager
def _as_they_were(module: nn.Module) -> Iterator[None]:
    """Restore the buffers, such as running statistics, at the end."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def project_values(value: nn.Conv2d, proj: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """Return weight (C, C, 1, 1) and bias of the output projection applied to the values.

    The attention weights of a position sum to 1, so a bias may be added before attending or after it.
    """
    outer = proj.weight.flatten(1)
    bias = proj.bias
    if value.bias is not None:
        bias = outer @ value.bias if bias is None else outer @ value.bias + bias
    return (outer @ value.weight.flatten(1))[:, :, None, None], bias
