"""ISA inside somebody's own network: torch.export with named dimensions."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from isaseg.models.interlaced import InterlacedSparseAttention
from tests.models.references import random_map


def own_network(group_size: tuple[int, int], **kwargs: Any) -> nn.Sequential:
    torch.manual_seed(0)
    isa = InterlacedSparseAttention(4, group_size=group_size, **kwargs)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), isa, nn.Conv2d(4, 2, 3, padding=1)).double()


@pytest.mark.parametrize(
    "kwargs", [{"group_size": (8, 8)}, {"group_size": (4, 4), "mask_padding": True}], ids=str
)
def test_an_exported_program_serves_every_size(kwargs: dict[str, Any]) -> None:
    network = own_network(**kwargs).eval()
    sizes = {0: Dim("batch", min=1, max=8), 2: Dim("h", min=16, max=512), 3: Dim("w", min=16, max=512)}
    program = torch.export.export(network, (random_map(2, 2, 70, 94),), dynamic_shapes=(sizes,))
    for shape in ((1, 64, 64), (3, 90, 121), (2, 16, 31)):
        x = random_map(shape[0], 2, *shape[1:])
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-9, atol=1e-9)
