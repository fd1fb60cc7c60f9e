"""Copies of networks for inference: fewer products, no batch norms.

In evaluation a batch norm is an affine map and becomes part of the convolution before it. In an attention block query and
key share the product of their first layers, and the output projection is applied to the values where these are at least
as wide as the map. The function is the same up to rounding.
"""

import copy
from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeGuard, TypeVar

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, SyncBatchNormAct
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from isaseg.models.attention_block import AttentionBlock, project_values
from isaseg.models.attention_cores import Core
from isaseg.models.backbone import Backbone
from isaseg.models.layers import Pointwise
from isaseg.models.norms import is_norm

M = TypeVar("M", bound=nn.Module)


def fuse(module: M) -> M:
    """Return a copy of a network, or of a part of one, for inference: evaluation mode, no gradients, norms folded.

    A batch norm is folded if it follows a convolution in an `nn.Sequential` or, in a `Backbone`, if it is the only reader
    of a convolution's output. Other norms stay, and so does all inside a module of a class outside this project. The copy
    has other parameters than the module, and hooks on layers that are replaced are lost: it is not meant to be trained or
    saved.
    """
    fused: M = _fused(copy.deepcopy(module).requires_grad_(False))
    return fused.eval()


def _fused(module: nn.Module) -> Any:
    if not type(module).__module__.startswith(("isaseg.", "torch.nn.")):
        return module  # what its forward makes of its layers is not known
    if isinstance(module, Backbone):
        _fold_traced(module.model)
        for name, part in list(module.model.named_modules()):
            if _is_pointwise(part):
                module.model.set_submodule(name, _pointwise(part.weight, part.bias))
        return module
    for name, child in module.named_children():
        setattr(module, name, _fused(child))
    if type(module) is nn.Sequential:
        for place in range(len(module) - 1):
            if _folds(module[place], module[place + 1]):
                module[place + 1] = _fold(module[place], module[place + 1])
    return FusedBlock(module) if isinstance(module, AttentionBlock) else module


class FusedBlock(nn.Module):
    """An `AttentionBlock` for inference; see `fuse`.

    Args:
        block: The block, its norms already folded.
    """

    def __init__(self, block: AttentionBlock) -> None:
        super().__init__()
        (first_query, *query), (first_key, *key), (conv, *rest) = map(
            _layers, (block.query, block.key, block.proj)
        )
        for activation in (query[0], key[0]):
            activation.inplace = False  # autograd allows no in-place change of one of several views
        self.query_key = _pointwise(
            torch.cat([first_query.weight, first_key.weight]), torch.cat([first_query.bias, first_key.bias])
        )
        self.query, self.key = nn.Sequential(*query), nn.Sequential(*key)
        if not block.may_merge():
            self.value: nn.Conv2d = block.value
            self.proj = nn.Sequential(conv, *rest)
        else:
            self.value = _pointwise(*project_values(block.value, conv))
            self.proj = nn.Sequential(*rest)

    def forward(self, x: Tensor, core: Core) -> Tensor:
        """Return what the block returns."""
        query, key = self.query_key(x).chunk(2, dim=1)
        out: Tensor = self.proj(core(self.query(query), self.key(key), self.value(x)))
        return out


def _layers(part: Iterable[nn.Module]) -> list[Any]:
    return [layer for layer in part if not isinstance(layer, nn.Identity)]


def _pointwise(weight: Tensor, bias: Tensor | None) -> Pointwise:
    with torch.device("meta"):  # takes neither time nor random numbers for weights that are replaced
        conv = Pointwise(weight.shape[1], weight.shape[0], bias=bias is not None)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return conv


def _is_pointwise(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(part) is not nn.Conv2d or part.padding not in ((0, 0), "valid"):
        return False
    return part.kernel_size == part.stride == (1, 1) and part.groups == 1


# ---------------------------------------------------------------- batch norms


def _fold_traced(model: nn.Module) -> None:
    """Fold the norms of a model if torch.fx can trace its calls; otherwise leave it unchanged."""
    if not any(is_norm(part) for part in model.modules()):
        return
    try:
        graph = _Tracer().trace(model)
    except Exception:  # for control flow that depends on values, whatever it raises
        return
    parts = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = parts[str(before.target)], parts[node.target]
        if calls[before.target] == calls[node.target] == 1 and _folds(conv, norm):
            model.set_submodule(node.target, _fold(conv, norm))


class _Tracer(fx.Tracer):
    """Does not look into modules without children: some, such as timm's poolings, depend on the size of the map."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_norm(m) or not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _folds(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) in (nn.Conv2d, Pointwise, Conv2dSame) and is_norm(norm) and norm.running_mean is not None
    )


def _fold(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Give the convolution the norm's factors and shifts; return what remains of the norm, perhaps an activation."""
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return norm.act if isinstance(norm, BatchNormAct2d | SyncBatchNormAct) else nn.Identity()
