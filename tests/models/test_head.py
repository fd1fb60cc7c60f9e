"""The head: wiring, published sizes, frozen keys. test_devices.py trains it with every context module."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from isaseg.models.baselines import NoContext, SelfAttention2d
from isaseg.models.head import AuxHead, ContextHead
from isaseg.models.interlaced import InterlacedSparseAttention


class Constant(nn.Module):
    """A context of sevens, `copies` times as wide as the map."""

    def __init__(self, channels: int, copies: int = 1) -> None:
        super().__init__()
        self.out_channels = copies * channels

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self.out_channels, *x.shape[2:]), 7.0)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("copies", [1, 3])
def test_the_fusing_convolution_sees_context_then_map(copies: int) -> None:
    head = ContextHead(6, 8, 3, partial(Constant, copies=copies)).eval()
    seen: dict[str, Tensor] = {}
    head.reduce.register_forward_hook(lambda module, args, out: seen.update(x=out))
    head.fuse.register_forward_pre_hook(lambda module, args: seen.update(fused=args[0]))
    head(torch.randn(1, 6, 4, 5))
    width = 8 * copies
    assert seen["fused"].shape[1] == 2 * width
    assert (seen["fused"][:, :width] == 7).all()
    assert torch.equal(seen["fused"][:, width:], head.lift(seen["x"]))
    assert isinstance(head.lift, nn.Identity) == (copies == 1)


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        assert round(parameters(ContextHead(2048, 512, 19, InterlacedSparseAttention)) / 1e6, 3) == 11.815
        assert round(parameters(AuxHead(1024, 19)) / 1e6, 3) == 2.365


def test_the_context_module_is_all_that_differs() -> None:
    heads = [
        ContextHead(6, 8, 3, attention)
        for attention in (InterlacedSparseAttention, SelfAttention2d, NoContext)
    ]
    rest = [{k: v.shape for k, v in h.state_dict().items() if not k.startswith("attention.")} for h in heads]
    assert rest[0] == rest[1] == rest[2]


def test_state_dict_keys_are_frozen() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    blocks = {f"{b}.{k}" for b in ("reduce", "fuse") for k in ("0.weight", *(f"1.{n}" for n in norm))}
    keys = set(ContextHead(6, 8, 3, InterlacedSparseAttention).state_dict())
    assert {k for k in keys if not k.startswith("attention.")} == blocks | {
        "classifier.weight",
        "classifier.bias",
    }
    assert {k.split(".")[1] for k in keys if k.startswith("attention.")} == {"long_range", "short_range"}
    aux = {k for k in blocks if k.startswith("reduce")} | {"classifier.weight", "classifier.bias"}
    assert set(AuxHead(6, 3).state_dict()) == aux


@pytest.mark.parametrize(
    "head", [ContextHead(6, 8, 3, NoContext, dropout=0.5), AuxHead(6, 3, 8, dropout=0.5)]
)
def test_dropout_drops_whole_channels_in_training_alone(head: nn.Module) -> None:
    seen: list[Tensor] = []
    head.get_submodule("classifier").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(4, 6, 5, 5)
    head.eval()
    assert torch.equal(head(x), head(x))
    seen.clear()
    head.train()
    head(x)
    dropped = (seen[0] == 0).flatten(2)
    whole = dropped.all(-1)
    assert 4 < whole.sum() < 28  # of 32, half expected
    assert head.get_submodule("dropout").p == 0.5
