"""Tensors of a GPU that is not there: operators are recorded with shapes and types, and nothing is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isaseg.models import resized_loss

_NO_KERNEL = {"aten.empty.memory_format", "aten.new_empty.default", "aten._unsafe_view.default"}


class Watched(TorchDispatchMode):
    """Records every operator, and refuses float64 anywhere but on the CPU: Apple's GPUs have none.

    Attributes:
        calls: Name, and types of the tensors that went in, of each operator.
        copies: How many tensors went from one device to another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[torch.dtype]]] = []
        self.copies = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in (*tensors, *made):
            if tensor.device.type != "cpu" and tensor.dtype in (torch.float64, torch.complex128):
                raise AssertionError(f"{func} has {tensor.dtype} on {tensor.device}")
        self.copies += str(func) == "aten._to_copy.default" and made[0].device != tensors[0].device
        if any(tensor.device.type != "cpu" for tensor in made):
            self.calls += [] if func.is_view else [(str(func), [t.dtype for t in tensors])]
        return out

    def kernels(self) -> list[str]:
        """Return the operators that start a kernel on the device."""
        return [name for name, _ in self.calls if name not in _NO_KERNEL]


@contextmanager
def watched() -> Iterator[Watched]:
    """Record what runs on tensors of a device; reading a number of one is an error."""
    resized_loss._kept_matrix.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), Watched() as watch:
        yield watch
    resized_loss._kept_matrix.cache_clear()
