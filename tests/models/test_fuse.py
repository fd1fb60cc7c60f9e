"""Fused copies for inference: the same function without batch norms, wherever a network may be used."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from isaseg import config
from isaseg.models import context_modules
from isaseg.models.attention_kernels import by_definition
from isaseg.models.backbone import Backbone
from isaseg.models.baselines import SelfAttention2d
from isaseg.models.criss_cross import PlainCrissCross
from isaseg.models.fuse import FusedBlock, fuse
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import Segmenter, build_segmenter
from tests.conftest import compose_overrides
from tests.models.references import made, random_map, randomise, relative
from tests.reliability.small import STRESS

# Of the layers of another option
DEEPER = {"convnext_base", "hrnet_w48", "hrnet_w48_openseg", "resnet101_csail"}
DEEPER |= {"resnet101_d8", "resnet101d_d8", "resnet101s_d8"}
# test_families.py fuses every family
BACKBONES = ["efficientnet_lite0", "hrnet_w18", "resnet50d_d8", "tiny_d8"]
if STRESS:
    BACKBONES = sorted({path.stem for path in (config.conf_dir() / "backbone").glob("[!_]*.yaml")} - DEEPER)
ISA = partial(InterlacedSparseAttention, group_size=(4, 4))
BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "isa": ISA,
    "isa, narrow values": partial(ISA, value_channels=8),
    "isa, wide values without bias": partial(ISA, value_channels=40, value_bias=False),
    "isa, masked": partial(ISA, mask_padding=True, depth=2),
    "dense": SelfAttention2d,
    "criss-cross": PlainCrissCross,
}


def make(backbone: str = "tiny_d8", attention: Callable[[int], nn.Module] = ISA, **kwargs: Any) -> Segmenter:
    """Return a float32 network in evaluation mode with random weights and random statistics."""
    torch.manual_seed(0)
    built = config.build(compose_overrides(f"backbone={backbone}").backbone, "backbone")
    segmenter = build_segmenter(built, 5, attention, 16, aux_channels=None, **kwargs)
    for norm in norms(segmenter):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        nn.init.normal_(norm.running_mean, 0, 0.2)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 2)  # type: ignore[arg-type]
    return segmenter.eval()


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def image(height: int = 65, width: int = 72, batch: int = 1) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=noise, dtype=torch.uint8)


# ---------------------------------------------------------------- the function is the same


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_fused_network_has_no_norm_and_computes_the_same(backbone: str) -> None:
    segmenter = make(backbone)
    assert norms(segmenter)
    fused = segmenter.fuse()
    assert not norms(fused)
    found = fused(image())
    assert relative(found, segmenter(image())) <= 1e-5
    assert torch.equal(fused.fuse()(image()), found)
    assert relative(segmenter.double().fuse()(image()), segmenter(image())) <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("name", context_modules())
def test_every_context_module_is_fused(name: str) -> None:
    segmenter = make(attention=context_modules()[name], negative_slope=0.01).double()
    fused = segmenter.fuse()
    assert not norms(fused)
    assert relative(fused(image()), segmenter(image())) <= 1e-10


@torch.no_grad()
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("size", [(24, 20), (13, 9), (1, 7)])
@pytest.mark.parametrize("tokens", [1, 100, 10**6])
def test_blocks_are_fused_however_many_tokens_run_at_a_time(
    name: str, size: tuple[int, int], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isaseg.models.interlaced._TOKENS", tokens)
    module = made(BLOCKS[name], 24)
    fused = fuse(module)
    assert any(isinstance(part, FusedBlock) for part in fused.modules())
    x = random_map(2, 24, *size)
    torch.testing.assert_close(fused(x), module(x), rtol=0, atol=1e-11)
    assert fused(x[:0]).shape == (0, 24, *size)


@torch.no_grad()
def test_a_block_takes_fewer_products() -> None:
    """Query and key share one, and the output projection is in the values."""
    seen: list[str] = []
    fused = fuse(randomise(ISA(24)))
    for name, part in fused.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda *_, name=name: seen.append(name))
    fused(random_map(1, 24, 8, 8))
    assert sorted(seen) == [
        f"{stage}_range.{layer}"
        for stage in ("long", "short")
        for layer in ("key.1", "query.1", "query_key", "value")
    ]


@torch.no_grad()
def test_synchronised_norms_are_folded_with_their_activations() -> None:
    module = convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))).eval()
    x = torch.randn(2, 3, 6, 6)
    assert relative(fuse(module)(x), module(x)) <= 1e-5 and (module(x) == 0).any()


class TwoReaders(nn.Module):
    """A backbone model whose first norm may be folded; the second convolution feeds more than its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.depends_on_values = False

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn1(self.conv1(x)).relu()
        if self.depends_on_values and x.sum() > 0:
            x = 2 * x
        x = self.conv2(x)
        return [x, self.bn2(x) + x]


@torch.no_grad()
@pytest.mark.parametrize("depends_on_values, left", [(False, 1), (True, 2)])
def test_a_norm_of_a_backbone_stays_where_folding_could_change_something(
    depends_on_values: bool, left: int
) -> None:
    backbone = Backbone("test_resnet")
    backbone.model = model = TwoReaders()
    model.depends_on_values = depends_on_values
    randomise(backbone).float()
    fused = fuse(backbone)
    assert len(norms(fused)) == left
    for got, want in zip(fused(image()), backbone(image()), strict=True):
        assert relative(got, want) <= 1e-5


# ---------------------------------------------------------------- what a copy is


def test_the_network_itself_stays_as_it_is() -> None:
    segmenter = build_segmenter(Backbone("test_resnet", output_stride=8), 5, ISA, 16).train()
    before = copy.deepcopy(segmenter.state_dict())
    state = torch.get_rng_state()
    fused = segmenter.fuse()
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part.training for part in fuse(segmenter.head).modules())
    assert segmenter.training and all(p.requires_grad for p in segmenter.parameters())
    assert all(torch.equal(value, before[key]) for key, value in segmenter.state_dict().items())
    assert fused.aux_head is None
    assert not any(part.training for part in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    ours = {p.data_ptr() for p in segmenter.parameters()}
    assert not any(p.data_ptr() in ours for p in fused.parameters())


def test_a_fused_network_refuses_to_train() -> None:
    fused = make().fuse()
    for module in (fused, nn.Sequential(fused)):
        with pytest.raises(RuntimeError, match="got a fused one; train the network it was made from"):
            module.train()
    assert not any(part.training for part in fused.modules())


def test_a_gradient_with_respect_to_the_input_is_right() -> None:
    """Of weights there is none."""
    module = randomise(ISA(24))
    x = random_map(2, 24, 24, 20).requires_grad_()
    upstream = random_map(2, 24, 24, 20, seed=2)
    got, want = (torch.autograd.grad(m(x), x, upstream)[0] for m in (fuse(module), module))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


# ---------------------------------------------------------------- where it may run


@torch.no_grad()
@pytest.mark.parametrize("name", BLOCKS)
def test_under_autocast_a_block_fused_or_not_is_as_exact_as_its_definition(name: str) -> None:
    module = made(BLOCKS[name], 24)
    x = random_map(2, 24, 24, 20)
    want = module(x)
    errors = []
    module.float()
    for version, context in (
        (fuse(module), nullcontext()),
        (module, nullcontext()),
        (module, by_definition()),
    ):
        with torch.autocast("cpu", torch.bfloat16), context:
            out = version(x.float())
        assert out.dtype is torch.bfloat16
        errors.append(float((out.double() - want).norm() / want.norm()))
    assert max(errors[:2]) <= 1.25 * errors[2] + 1e-3


@torch.no_grad()
def test_fake_tensors_and_exports_see_the_same_network() -> None:
    segmenter = make()
    fused, x = segmenter.fuse(), image(64, 80)
    program = torch.export.export(fused, (x,))
    assert not any("norm" in str(node.target) for node in program.graph.nodes)
    assert relative(program.module()(x), segmenter(x)) <= 1e-5
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    assert relative(compiled(x), segmenter(x)) <= 1e-5
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert fused(torch.zeros(1, 3, 64, 80, dtype=torch.uint8)).shape == (1, 5, 64, 80)


@torch.no_grad()
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("half", [False, True])
def test_on_a_gpu_it_is_the_same_network(half: bool) -> None:
    segmenter = make("resnet50_d8").cuda()
    x = image(128, 136).cuda()
    want = segmenter.cpu().double()(x.cpu()).float()
    fused = segmenter.float().cuda().fuse()
    with torch.autocast("cuda", torch.bfloat16) if half else nullcontext():
        assert relative(fused(x).float().cpu(), want) <= (0.05 if half else 1e-3)
