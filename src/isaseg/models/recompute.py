"""Trade time for memory in training: compute a part of a network a second time instead of keeping what it made."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(module: nn.Module, *arguments: Any) -> Tensor:
    """Return `module(*arguments)`, keeping the arguments alone until the backward pass, which runs it again.

    Batch norms count the batch once.
    """
    out: Tensor
    if torch.compiler.is_compiling():  # whose backward graph has no running statistics
        out = checkpoint(module, *arguments, use_reentrant=False)
        return out
    contexts: Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
    contexts = partial(_contexts, module)
    out = checkpoint(module, *arguments, use_reentrant=False, context_fn=contexts)
    return out


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _as_they_were(module)


@contextmanager
def _as_they_were(module: nn.Module) -> Iterator[None]:
    """Give the buffers, such as running statistics, the values back that they have now."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
