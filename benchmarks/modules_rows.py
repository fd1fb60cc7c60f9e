"""What the efficiency table compares: its rows, and what is run of each."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from isaseg import config
from isaseg.models.attend import by_definition
from isaseg.models.attention import InterlacedSparseAttention, SelfAttention2d
from isaseg.models.block import conv_norm_act
from isaseg.models.cores import dense
from isaseg.models.regroup import interlace, split_windows


class Row(NamedTuple):
    """A context module: its name in the table, its configuration, and whether its scores are held."""

    label: str
    overrides: tuple[str, ...]
    held: bool = False

    def rules(self) -> AbstractContextManager[None]:
        """Return the context in which the row runs."""
        return by_definition() if self.held else nullcontext()


ROWS = {
    "dense": Row("dense", ("attention=dense",)),
    "dense-held": Row("dense, scores held", ("attention=dense",), held=True),
    "isa": Row("ISA 8×8", ("attention=isa",)),
    "isa-held": Row("ISA 8×8, scores held", ("attention=isa",), held=True),
    "criss-cross-1": Row("criss-cross R=1", ("attention=criss_cross", "attention.recurrence=1")),
    "criss-cross-2": Row("criss-cross R=2", ("attention=criss_cross", "attention.recurrence=2")),
    "pyramid-pooling": Row("pyramid pooling", ("attention=pyramid_pooling",)),
    "aspp": Row("ASPP", ("attention=aspp",)),
    "double-attention": Row("double attention", ("attention=double_attention",)),
    "cgnl": Row("CGNL", ("attention=cgnl",)),
}


class Setting(NamedTuple):
    """How everything is run.

    Attributes:
        channels: Of the input, and of the context module.
        batch: B.
        train: Forward and backward instead of forward in evaluation mode.
        device: E.g. cpu or cuda.
        dtype: E.g. float32.
    """

    channels: tuple[int, int] = (2048, 512)
    batch: int = 1
    train: bool = False
    device: str = "cpu"
    dtype: str = "float32"


def build(row: Row, channels: int) -> nn.Module:
    """Return the context module of a row."""
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=list(row.overrides))
    module: nn.Module = config.build(cfg.attention, "attention")(channels)
    return module


def prepare(
    row: Row, part: str, side: int, setting: Setting, made: nn.Module | None = None
) -> tuple[Callable[[], Any], list[Tensor]]:
    """Return something to run, and the tensors that it needs: weights and inputs, which exist before it runs.

    Args:
        row: Context module.
        part: block: the context module alone; reduction: a 3x3 convolution with batch norm and ReLU, the same for every
            row; head: the reduction, then the module; scores: of dense attention and ISA the scores and contexts alone,
            given queries, keys and values in their groups.
        side: Height and width of the map.
        setting: How.
        made: The module, if it has been built.
    """
    with placed(setting):
        if part == "reduction":
            module: nn.Module = conv_norm_act(*setting.channels, 3)
        else:
            module = made or build(row, setting.channels[1])
        if part == "scores":
            groups = grouped(module, side)
            return lambda: _attend(groups), [t for qkv in groups for t in qkv]
        if part == "head":
            module = nn.Sequential(conv_norm_act(*setting.channels, 3), module)
        module.train(setting.train)
        width = setting.channels[part == "block"]
        x = torch.randn(setting.batch, width, side, side, requires_grad=setting.train)
    held = [x, *module.parameters(), *module.buffers()]
    return (lambda: _step(module, x)) if setting.train else (lambda: module(x)), held


def _attend(groups: list[list[Tensor]]) -> None:
    for query, key, value in groups:
        dense(query, key, value)  # the context of one stage is gone when the next attends


def _step(module: nn.Module, x: Tensor) -> None:
    out = module(x)
    out.backward(torch.ones_like(out))
    module.zero_grad()
    x.grad = None


@contextmanager
def placed(setting: Setting) -> Iterator[None]:
    """Let new tensors have the device and the type of a setting."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, setting.dtype))
    try:
        with torch.device(setting.device):
            yield
    finally:
        torch.set_default_dtype(before)


def grouped(module: nn.Module, side: int) -> list[list[Tensor]]:
    """Return random queries, keys and values of each attention of a module, in the groups in which they attend."""
    blocks: list[tuple[Any, Any]]
    if isinstance(module, SelfAttention2d):
        blocks, size = [(module.block, None)], side
    elif isinstance(module, InterlacedSparseAttention):
        size = side + -side % max(module.group_size)
        blocks = [
            (module.get_submodule("long_range"), interlace),
            (module.get_submodule("short_range"), split_windows),
        ]
    else:
        raise ValueError(f"expected dense attention or ISA, got {type(module).__name__}")
    found = []
    for block, split in blocks:
        maps = [
            torch.randn(1, int(width), size, size)
            for width in (block.key_channels, block.key_channels, block.value_channels)
        ]
        found.append([t if split is None else split(t, module.group_size) for t in maps])
    return found
