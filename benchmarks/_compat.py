"""The private names of torch that the benchmarks use; a test names the version they were checked with.

- `FakeTensorMode`: documented, but not public: pytorch#113456.
- `TorchDispatchMode`: documented in torch's notes on extending it, in a module with an underscore.
- oneDNN's product with reordered weights, which is the fastest of a CPU; public functions reach it only when compiled:
  pytorch#139387.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["FakeTensorMode", "TorchDispatchMode", "onednn_linear"]


def onednn_linear(x: Tensor, weight: Tensor) -> Callable[[], Tensor] | None:
    """Return a function that computes x weight^T by oneDNN; None where this torch has no such operator.

    Args:
        x: (N, C), on the CPU.
        weight: (D, C).
    """
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return None
    if x.dtype is torch.float32:  # in other types it takes weights as they are
        weight = ops._reorder_linear_weight(weight, len(x))
    return lambda: ops._linear_pointwise(x, weight, None, "none", [], "")
