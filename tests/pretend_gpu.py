"""Count on a CPU what a host would wait for if a network were on a GPU."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READ = {
    torch.Tensor.tolist,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
}  # of a tensor on the CPU, no operator runs
_READS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::bincount",
}


class PretendGPU(TorchDispatchMode):
    """Counts reads of tensors that are on the device by `put`, or are computed from such.

    Attributes:
        reads: The operation of each: a number, a list, or a size that depends on values.
        uploads: How many tensors were made on a device from numbers of the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.uploads = 0
        self._there: dict[
            int, StorageWeakRef
        ] = {}  # while it is referred to, no other storage has its address
        self._calls = _Calls(self)

    def __enter__(self) -> Self:
        self._calls.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._calls.__exit__(kind, error, trace)

    def put(self, values: Iterable[object]) -> None:
        """Put the tensors among `values` on the device."""
        for tensor in values:
            if isinstance(tensor, Tensor):
                held = StorageWeakRef(tensor.untyped_storage())
                self._there.setdefault(held.cdata, held)

    def holds(self, values: Iterable[object]) -> bool:
        """Return whether one of `values` is a tensor on the device."""
        return any(isinstance(t, Tensor) and t.untyped_storage()._cdata in self._there for t in values)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tree_leaves((args, kwargs))
        there = self.holds(inputs)
        name = func._schema.name
        by_mask = name == "aten::index" and any(
            isinstance(t, Tensor) and t.dtype is torch.bool for t in inputs[1:]
        )
        if there and (name in _READS or by_mask):
            self.reads.append(name)
        out = func(*args, **(kwargs or {}))
        if there:
            self.put(tree_leaves(out))
        return out


class _Calls(TorchFunctionMode):
    def __init__(self, gpu: PretendGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READ and self.gpu.holds(args[:1]):
            self.gpu.reads.append(func.__name__)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            self.gpu.uploads += 1
        return func(*args, **kwargs)
