"""What runs in place of the definition computes the same: outputs, gradients, statistics, half precision, graphs."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isaseg.models.attention_kernels import by_definition
from isaseg.models.baselines import SelfAttention2d
from tests.models.references import (
    Size,
    made,
    make_isa,
    published_like,
    random_map,
    relative,
    replace_relu,
)
from tests.models.test_contract import make

SHORT_CUTS: list[dict[str, Any]] = [
    {},
    {"order": "short_long"},
    {"order": "long"},
    {"order": "short"},
    {"value_channels": 8},
    {"value_channels": 40, "value_bias": False},
    {"key_channels": 5, "depth": 2},
    {"mask_padding": True},
    {"recompute": True},
    {"heads": 2, "position_bias": 2},
    {"residual": True, "depth": 2},
]


@pytest.mark.parametrize(
    ("kwargs", "dtype", "bound"),
    [(kwargs, torch.float64, 1e-10) for kwargs in SHORT_CUTS]
    + [(kwargs, torch.float32, 1e-5) for kwargs in ({}, {"mask_padding": True}, {"recompute": True})],
)
@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    group=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    training=st.booleans(),
)
def test_what_runs_is_the_definition(
    kwargs: dict[str, Any],
    dtype: torch.dtype,
    bound: float,
    batch: int,
    height: int,
    width: int,
    group: Size,
    training: bool,
) -> None:
    """Outputs, gradients and running statistics, in training and in evaluation, with and without gradients.

    In float32, a norm over few positions makes much of a rounding: then the error may be that of the definition; and
    where a ReLU's input is next to 0, a rounding decides on its gradient, so that a smooth function stands in its place.
    """
    isa = published_like(dtype, group_size=group, **kwargs)
    if dtype is torch.float32:
        replace_relu(isa, nn.Softplus)
    isa.train(training and batch * height * width > 1)
    x, upstream = (random_map(batch, 24, height, width, seed=seed) for seed in (1, 5))
    state = {k: v.clone() for k, v in isa.state_dict().items()}

    def answer(as_defined: bool, dtype: torch.dtype = dtype) -> list[Tensor]:
        isa.to(dtype).load_state_dict(state)
        x_ = x.to(dtype).requires_grad_()
        with by_definition() if as_defined else nullcontext():
            out = isa(x_)
            gradients = torch.autograd.grad(out, (x_, *isa.parameters()), upstream.to(dtype))
        # some are nothing but rounding: of a bias before a norm
        largest = max(float(g.abs().max()) for g in gradients)
        statistics = [v / v.abs().max() for k, v in isa.state_dict().items() if "running" in k]
        parts = [out.detach() / out.detach().abs().max(), *(g / largest for g in gradients), *statistics]
        return [part.double() for part in parts]

    def error(one: list[Tensor], other: list[Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    ours, want = answer(False), answer(True)
    if error(ours, want) > bound:
        assert dtype is torch.float32 and isa.training
        exact = answer(True, torch.float64)
        assert error(ours, exact) <= 3 * error(want, exact)
    if not isa.training:
        isa = published_like(dtype, group_size=group, **kwargs)
        want = answer(True)
        with torch.no_grad():
            for layout in (torch.contiguous_format, torch.channels_last):
                out = isa(x.to(dtype).contiguous(memory_format=layout))
                assert error([out / out.abs().max()], want[:1]) <= bound


@pytest.mark.parametrize("size", [(8, 8), (32, 24), (33, 40)])
def test_dense_attention_runs_as_its_definition(size: Size) -> None:
    """Fewer and more positions than a CPU holds the scores of."""
    module = made(SelfAttention2d, 24)
    x = random_map(2, 24, *size)
    with by_definition():
        want = module(x)
    assert relative(module(x), want) <= 1e-12
    with torch.no_grad():
        assert relative(module(x), want) <= 1e-12


@torch.no_grad()
def test_a_norm_in_training_mode_sees_the_whole_map() -> None:
    """In a block in evaluation mode, whose groups would otherwise run a few at a time."""
    isa = make_isa(group_size=(4, 4))
    isa.get_submodule("short_range.query.1").train()
    state = {k: v.clone() for k, v in isa.state_dict().items()}
    x, answers = random_map(2, 6, 64, 64), []
    for context in (by_definition(), nullcontext()):
        isa.load_state_dict(state)
        with context:
            answers.append([isa(x), *(v.clone() for v in isa.state_dict().values())])
    for got, want in zip(*answers, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_and_an_export_compute_the_same() -> None:
    isa, x = make_isa(group_size=(4, 4)), random_map(2, 6, 61, 64)
    for graph in (torch.jit.trace(isa, x), torch.export.export(isa, (x,)).module()):
        torch.testing.assert_close(graph(x), isa(x), rtol=0, atol=1e-7)  # a trace has a scale in float32


@pytest.mark.parametrize("name", ["isa", "dense, narrow values"])
def test_recomputing_keeps_less_and_changes_nothing(name: str) -> None:
    module = make(name).train()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    x = random_map(2, 16, 24, 20).requires_grad_()
    answers, kept = [], []
    for recompute in (False, True):
        module.load_state_dict(state)
        module.recompute = recompute  # type: ignore[assignment]
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            out = module(x)
        kept.append(sum(saved.values()))
        gradients = torch.autograd.grad(out.square().sum(), (x, *module.parameters()))
        answers.append((out, *gradients, *(v.clone() for v in module.state_dict().values())))
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    assert kept[1] < 0.4 * kept[0]
