"""ISA inside somebody's own network: torch.compile with sizes that change, torch.export with named dimensions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from isaseg.models.interlaced import InterlacedSparseAttention
from tests.models.references import random_map
from tests.reliability.small import STRESS


def own_network(group_size: tuple[int, int], **kwargs: Any) -> nn.Sequential:
    torch.manual_seed(0)
    isa = InterlacedSparseAttention(4, group_size=group_size, **kwargs)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), isa, nn.Conv2d(4, 2, 3, padding=1)).double()


@pytest.mark.skipif(not STRESS, reason="inductor works on symbols for minutes: make test-stress")
@pytest.mark.parametrize("group_size", [(8, 8), (4, 4)])
def test_a_compiled_network_trains_at_every_size(
    group_size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing stale
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)
    torch.compiler.reset()
    network = own_network(group_size)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=graphs)
    state = {k: v.clone() for k, v in network.state_dict().items()}
    for height, width in ((70, 94), (64, 64), (90, 120)):
        answers: list[list[Tensor]] = []
        for module in (network, compiled):
            network.load_state_dict(state)
            x = random_map(2, 2, height, width).requires_grad_()
            out = module(x)
            gradients = torch.autograd.grad(out.square().sum(), (x, *network.parameters()))
            answers.append([out, *gradients, *(v.clone() for v in network.state_dict().values())])
        for a, b in zip(*answers, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
    assert graphs.frame_count == 1


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
