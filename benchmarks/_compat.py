"""The private names of torch that the benchmarks use; a test names the version they were checked with.

oneDNN's product with reordered weights is the fastest of a CPU. Public functions reach it only in compiled graphs:
pytorch#139387 proposed one and was closed.
"""

from collections.abc import Callable

import torch
from torch import Tensor


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
