"""What `modules` compares: context modules, and the parts of them that are run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.serve import Work
from isaseg import config
from isaseg.models.attend import by_definition
from isaseg.models.attention import InterlacedSparseAttention
from isaseg.models.block import conv_norm_act
from isaseg.models.cores import dense
from isaseg.models.regroup import interlace, split_windows

# name: configuration; those that end in "-held" run by their definition, with all scores in memory
MODULES = {
    "dense": ["attention=dense"],
    "dense-held": ["attention=dense"],
    "isa": ["attention=isa"],
    "isa-held": ["attention=isa"],
    "criss-cross-1": ["attention=criss_cross", "attention.recurrence=1"],
    "criss-cross-2": ["attention=criss_cross", "attention.recurrence=2"],
    "pyramid-pooling": ["attention=pyramid_pooling"],
    "aspp": ["attention=aspp"],
    "double-attention": ["attention=double_attention"],
    "cgnl": ["attention=cgnl"],
}


class Setting(NamedTuple):
    """How parts are run.

    Attributes:
        channels: Of the input, and of the context module.
        device: E.g. cpu or cuda.
        dtype: E.g. float32.
    """

    channels: tuple[int, int] = (2048, 512)
    device: str = "cpu"
    dtype: str = "float32"

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Create tensors on the device and in the type of the setting."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(getattr(torch, self.dtype))
        try:
            with torch.device(self.device):
                yield
        finally:
            torch.set_default_dtype(before)


def rules(name: str) -> AbstractContextManager[None]:
    """Return the context in which a module runs."""
    return by_definition() if name.endswith("-held") else nullcontext()


def context_module(name: str, setting: Setting) -> nn.Module:
    """Return a module of MODULES in evaluation mode."""
    cfg = config.compose_from("train", MODULES[name])
    with setting.placed():
        module: nn.Module = config.build(cfg.attention, "attention")(setting.channels[1])
    return module.eval()


def prepare(module: nn.Module, part: str, side: int, setting: Setting) -> tuple[Work, list[Tensor]]:
    """Return a function that runs a part, and the tensors that exist before: weights and inputs.

    Args:
        module: Context module.
        part: "block" is the context module; "reduction" a 3x3 convolution with batch norm and ReLU, the same before every
            module; "head" the reduction, then the module; "scores", for dense attention and ISA, the scores and the
            contexts alone, given queries, keys and values in their groups.
        side: Height and width of the map.
        setting: How the part is run.
    """
    with setting.placed():
        if part == "scores":
            groups = _grouped(module, side)
            return lambda: _attend(groups), [tensor for group in groups for tensor in group]
        if part != "block":
            reduction = conv_norm_act(*setting.channels, 3).eval()
            module = reduction if part == "reduction" else nn.Sequential(reduction, module)
        x = torch.randn(1, setting.channels[part == "block"], side, side)
    return lambda: module(x), [x, *module.parameters(), *module.buffers()]


def _attend(groups: list[list[Tensor]]) -> None:
    for query, key, value in groups:
        dense(query, key, value)  # freed before the next stage attends


def _grouped(module: nn.Module, side: int) -> list[list[Tensor]]:
    """Return random queries, keys and values of each attention of ISA or dense attention, in their groups."""
    stages: list[tuple[Any, Any]] = [("block", lambda x, group_size: x)]
    group_size = getattr(module, "group_size", (1, 1))
    if isinstance(module, InterlacedSparseAttention):
        stages = [("long_range", interlace), ("short_range", split_windows)]
    side += -side % max(group_size)
    found = []
    for name, split in stages:
        stage: Any = module.get_submodule(name)
        widths = (stage.key_channels, stage.key_channels, stage.value_channels)
        maps = [torch.randn(1, width, side, side) for width in widths]
        found.append([split(x, group_size) for x in maps])
    return found
