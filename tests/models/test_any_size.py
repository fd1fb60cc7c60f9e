"""ISA inside somebody's own network: torch.compile with sizes that change, torch.export with named dimensions."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
import torch._inductor.config
from torch import Tensor, nn
from torch.export import Dim

from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.regroup import groups_of, regroup
from tests.models.references import random_map
from tests.reliability.small import STRESS


def own_network(group_size: tuple[int, int], **kwargs: Any) -> nn.Sequential:
    torch.manual_seed(0)
    isa = InterlacedSparseAttention(4, group_size=group_size, **kwargs)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), isa, nn.Conv2d(4, 2, 3, padding=1)).double()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own check looks at it
def test_a_regrouping_is_an_operator_as_torch_wants_it() -> None:
    size, group_size = [7, 9], [2, 4]
    for kind, other in (("long_range", "short_range"), ("short_range", "long_range")):
        x = random_map(2, 3, *size).requires_grad_()
        tokens = torch.rand(*groups_of(2, size, group_size, kind), 3, requires_grad=True)
        for argument, given, wanted in ((x, "map", kind), (tokens, kind, "map"), (tokens, kind, other)):
            torch.library.opcheck(regroup, (argument, 2, size, group_size, given, wanted))


def trains_alike(
    network: nn.Module, compiled: nn.Module, sizes: list[tuple[int, int]], tolerance: float
) -> None:
    state = {k: v.clone() for k, v in network.state_dict().items()}
    for size in sizes:
        answers: list[list[Tensor]] = []
        for module in (network, compiled):
            network.load_state_dict(state)
            x = random_map(2, 2, *size).requires_grad_()
            out = module(x)
            gradients = torch.autograd.grad(out.square().sum(), (x, *network.parameters()))
            answers.append([out, *gradients, *(v.clone() for v in network.state_dict().values())])
        for a, b in zip(*answers, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


MORE: list[dict[str, Any]] = [{}, {"recompute": True}, {"mask_padding": True}]


@pytest.mark.parametrize("kwargs", [{"order": "long"}, *(MORE if STRESS else [])], ids=str)
def test_one_graph_serves_every_size(kwargs: dict[str, Any]) -> None:
    torch.compiler.reset()
    network = own_network((4, 2), **kwargs)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=graphs)
    trains_alike(network, compiled, [(70, 94)], 1e-9)
    compilations = graphs.frame_count
    trains_alike(network, compiled, [(64, 64), (90, 120)], 1e-9)
    assert graphs.frame_count == compilations


@pytest.mark.skipif(not STRESS, reason="a compiler of C++ works for minutes: make test-stress")
def test_a_network_compiled_by_inductor_trains_at_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `mask_padding`, of which maps inductor cannot compare the strides on a CPU."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing stale
    torch.compiler.reset()
    network = own_network((8, 8))
    # on a CPU, any two convolutions make inductor compile anew for each size
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    with torch._inductor.config.patch(compile_threads=1):
        trains_alike(network, compiled, [(70, 94), (64, 64), (90, 120)], 1e-8)


def test_an_exported_program_serves_every_size() -> None:
    """With a mask, whose graph contains that without one."""
    network = own_network((4, 4), mask_padding=True).eval()
    sizes = {0: Dim("batch", min=1, max=8), 2: Dim("h", min=16, max=512), 3: Dim("w", min=16, max=512)}
    program = torch.export.export(network, (random_map(2, 2, 70, 94),), dynamic_shapes=(sizes,))
    for shape in ((1, 64, 64), (3, 90, 121), (2, 16, 31)):
        x = random_map(shape[0], 2, *shape[1:])
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-9, atol=1e-9)
