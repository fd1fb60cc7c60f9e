"""Trade time for memory in training: compute a block a second time instead of keeping its intermediate results."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isaseg.models.cores import Core


def run_block(module: nn.Module, x: Tensor, core: Core, *, recompute: bool) -> Tensor:
    """Return `module(x, core)`. With `recompute`, training keeps `x` alone, and the backward pass runs the module again.

    Batch norms count the batch once.
    """
    out: Tensor
    if not (recompute and module.training):
        out = module(x, core)
    elif torch.compiler.is_compiling():  # its backward graph has no running statistics
        out = checkpoint(module, x, core, use_reentrant=False)
    else:
        contexts = partial(_contexts, module)
        out = checkpoint(module, x, core, use_reentrant=False, context_fn=contexts)
    return out


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _as_they_were(module)


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
