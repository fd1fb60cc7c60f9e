"""The two kinds of batch norm of the code bases: torch's, and openseg's InPlaceABN, which multiplies by |weight| + eps.

Source: openseg.pytorch master, lib/extensions/inplace_abn/src/inplace_abn_cuda.cu, forward_kernel and backward_kernel.
What InPlaceABN saves in memory is not repeated here, and neither is its activation, which is a module of its own.
"""

from typing import Any, Literal, get_args

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

Norm = Literal["batch", "inplace_abn"]

ABN_SLOPE = 0.01  # of InPlaceABN's activation below zero, lib/extensions/inplace_abn/bn.py, `slope`


class _Absolute:
    """A mixin whose `weight` reads as |weight| + eps, in `forward` too; the stored parameter keeps its sign."""

    _parameters: dict[str, Any]
    eps: float

    @property
    def weight(self) -> Tensor | None:
        """Return the factors (C,), None without affine parameters; the gradient at 0 is -1, as in InPlaceABN's kernel."""
        if "weight" not in self._parameters:
            raise AttributeError("weight")
        weight: Tensor | None = self._parameters["weight"]
        return None if weight is None else torch.where(weight > 0, weight, -weight) + self.eps


class AbsoluteNorm(_Absolute, nn.BatchNorm2d):  # type: ignore[misc]  # as is meant, `weight` cannot be set
    """`nn.BatchNorm2d` with the factor |weight| + eps."""


class AbsoluteSyncNorm(_Absolute, nn.SyncBatchNorm):  # type: ignore[misc]
    """`nn.SyncBatchNorm` with the factor |weight| + eps."""


class AbsoluteNormAct(_Absolute, BatchNormAct2d):  # type: ignore[misc]
    """timm's batch norm with an activation, with the factor |weight| + eps."""


class AbsoluteSyncNormAct(_Absolute, SyncBatchNormAct):  # type: ignore[misc]
    """timm's synchronised batch norm with an activation, with the factor |weight| + eps."""


_ABSOLUTE: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: AbsoluteNorm,
    nn.SyncBatchNorm: AbsoluteSyncNorm,
    BatchNormAct2d: AbsoluteNormAct,
    SyncBatchNormAct: AbsoluteSyncNormAct,
}
_PLAIN = {absolute: plain for plain, absolute in _ABSOLUTE.items()}


def set_norms(module: nn.Module, norm: Norm) -> None:
    """Make the batch norms of a new network those of `norm`.

    Raises:
        ValueError: If there is no such norm, or as `make_absolute`.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"expected norm to be one of {', '.join(get_args(Norm))}, got {norm=}")
    if norm == "inplace_abn":
        make_absolute(module)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a 2-d batch norm whose arithmetic is known: torch's, timm's, or one with |weight|."""
    return type(module) in _ABSOLUTE or type(module) in _PLAIN


def is_absolute(module: nn.Module) -> bool:
    """Return whether a module has a batch norm that multiplies by |weight| + eps."""
    return any(type(part) in _PLAIN for part in module.modules())


def make_absolute(module: nn.Module) -> None:
    """Let every batch norm of a network multiply by |weight| + eps; its tensors stay as they are.

    Raises:
        ValueError: If a norm is of a class whose use of `weight` is unknown.
    """
    for name, part in module.named_modules():
        is_known = is_norm(part) or getattr(part, "weight", None) is None
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not is_known:
            raise ValueError(
                f"expected norms of torch.nn.BatchNorm2d for head.norm=inplace_abn, got {type(part).__name__} in "
                f"{name or 'the network'}; set head.norm=batch"
            )
        part.__class__ = _ABSOLUTE.get(type(part), type(part))


def make_plain(module: nn.Module) -> None:
    """Let every batch norm of a network multiply by its weight again: the opposite of `make_absolute`."""
    for part in module.modules():
        part.__class__ = _PLAIN.get(type(part), type(part))


def make_leaky(part: nn.Module, slope: float) -> None:
    """Give the ReLUs of a part a slope below zero."""
    for parent in list(part.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU):
                setattr(parent, name, nn.LeakyReLU(slope))
