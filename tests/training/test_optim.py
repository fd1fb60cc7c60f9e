"""Equal step for step to what it was; parameter groups against the rule and against timm; what cannot work is refused."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import timm.optim
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.models.backbone import Backbone
from isaseg.models.criss_cross import CrissCrossAttention
from isaseg.models.segmenter import build_segmenter
from isaseg.training.optim import make_optimizer, parameter_groups
from isaseg.training.schedules import constant, one_cycle
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, loaded


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_segmenter(
        Backbone("test_resnet", output_stride=8), 3, CrissCrossAttention, 8, aux_channels=4
    )


def built(*words: str) -> Any:
    """Return what the configuration of these words makes of a network: optimizer and schedule."""
    return config.build(compose_overrides(*words).optim, "optim")


def small(optimizer: Any, model: nn.Module, **settings: Any) -> Optimizer:
    """Return an optimizer at a constant rate."""
    given = {
        "lr": 0.1,
        "weight_decay": 0.0,
        "total_steps": 10,
        "decay_norm_and_bias": True,
        "head_lr_mult": 1.0,
    }
    made, _ = make_optimizer(
        model, optimizer, partial(constant, warmup_steps=0), **{**given, "layer_decay": None, **settings}
    )
    return made


# ---------------------------------------------------------------- as it was

# Of the functions sgd_poly and adamw_one_cycle at f7d24fb, which had no parts: what was set, the rates of the
# last group, and the first two values of each parameter after twelve steps.
AS_IT_WAS = {
    "sgd_poly recipe.lr=0.02 recipe.weight_decay=0.1 recipe.head_lr_mult=10 optim.decay_norm_and_bias=false "
    "optim.schedule.warmup_steps=3": (
        [
            0.06666666666666667,
            0.12329033476593794,
            0.16973322935783738,
            0.1543779013447141,
            0.1388506325323214,
        ]
        + [0.1231275137944637, 0.10717734625362932, 0.09095778546815808, 0.0744082116022603]
        + [0.057434917749851745, 0.03987437329504384, 0.021368147566446935],
        [0.2742913067340851, 0.3657601475715637, 0.10137235373258591, 0.19812354445457458]
        + [-0.6652538180351257, -0.7203150987625122, -0.617087185382843, -0.6613293290138245],
    ),
    "adamw_one_cycle": (
        [0.00016, 0.00208, 0.004, 0.003902113032590307, 0.003618033988749895, 0.0031755705045849463]
        + [0.002618033988749895, 0.002, 0.0013819660112501053, 0.0008244294954150539, 0.0003819660112501053]
        + [9.788696740969294e-05],
        [0.47535404562950134, 0.6002834439277649, 0.2257751077413559, 0.35056471824645996]
        + [-0.02156916819512844, 0.10128574073314667, -0.2514686584472656, -0.13747693598270416],
    ),
}


@pytest.mark.parametrize("words", AS_IT_WAS)
def test_the_published_optimizers_are_what_they_were_step_for_step(words: str) -> None:
    rates, values = AS_IT_WAS[words]
    network = nn.ModuleDict({"backbone": nn.Linear(3, 2), "head": nn.Linear(2, 3)})
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.copy_(torch.arange(p.numel()).view_as(p) / 8 - i / 4 + 0.5)
    optimizer, scheduler = built(*f"optim={words} trainer.max_steps=12".split())(network)
    seen = []
    for step in range(12):
        seen.append(optimizer.param_groups[-1]["lr"])
        for p in network.parameters():
            p.grad = p.detach() / 2 + step / 16
        optimizer.step()
        scheduler.step()
    assert seen == rates  # to the bit
    assert [v for p in network.parameters() for v in p.flatten()[:2].tolist()] == pytest.approx(
        values, rel=1e-6
    )


# ---------------------------------------------------------------- groups


def settings(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return (lr, weight_decay) of each parameter by name."""
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("decay_norm_and_bias", [False, True])
@pytest.mark.parametrize("mult", [1.0, 10.0])
@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_every_parameter_is_in_one_group_and_the_head_learns_faster(
    decay_norm_and_bias: bool, mult: float, layer_decay: float | None, model: nn.Module
) -> None:
    groups = parameter_groups(model, 0.1, 0.01, decay_norm_and_bias, mult, layer_decay)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    found = {(name.split(".")[0], lr) for name, (lr, _) in settings(model, groups).items()}
    layers = {("backbone", 0.1 * 0.5**n) for n in range(1, 6)} if layer_decay else {("backbone", 0.1)}
    assert found == {*layers, ("head", 0.1 * mult), ("aux_head", 0.1 * mult)}


def test_norms_and_biases_do_not_decay_unless_asked(model: nn.Module) -> None:
    norms = {
        f"{m}.{p}"
        for m, child in model.named_modules()
        if isinstance(child, nn.BatchNorm2d)
        for p in ("weight", "bias")
    }
    got = settings(model, parameter_groups(model, 0.1, 0.01, False))
    spared = {name for name, (_, decay) in got.items() if decay == 0}
    assert norms < spared
    assert spared == norms | {n for n in got if n.endswith("bias")} | {"head.attention.gamma"}
    assert {decay for name, (_, decay) in got.items() if name not in spared} == {0.01}
    everything = settings(model, parameter_groups(model, 0.1, 0.01, True))
    assert {decay for _, decay in everything.values()} == {0.01}


def test_frozen_parameters_are_left_out(model: nn.Module) -> None:
    stem = next(iter(model.backbone.parameters()))  # type: ignore[union-attr, operator]
    stem.requires_grad_(False)
    groups = parameter_groups(model, 0.1, 0.0, layer_decay=0.5)
    stem.requires_grad_(True)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p is not stem)


# Of each way in which timm takes features: a list of stages, a wrapped model, a model of its own.
LAYERED = [
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    "resnet18",
    "vit_tiny_patch16_224",
]
LAYERED += ["swin_tiny_patch4_window7_224", "mobilenetv4_conv_small", "vit_small_patch14_dinov2"]


@pytest.mark.parametrize("name", LAYERED)
def test_rates_by_layer_are_those_of_timm(name: str) -> None:
    """And so is what timm says should not decay; without reaching for random numbers."""
    backbone = Backbone(name, out_indices=[-1])
    before = torch.get_rng_state()
    got = settings(
        nn.ModuleDict({"backbone": backbone}),
        parameter_groups(nn.ModuleDict({"backbone": backbone}), 0.1, 0.01, False, layer_decay=0.5),
    )
    assert torch.equal(before, torch.get_rng_state())
    with torch.device("meta"):
        whole: Any = timm.create_model(name, num_classes=5)
    named = {id(p): n for n, p in whole.named_parameters()}
    spared = getattr(whole, "no_weight_decay", set)()
    groups = param_groups_layer_decay(whole, 0.01, spared, layer_decay=0.5)
    wanted = {named[id(p)]: (0.1 * g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    found = 0
    for key, pair in got.items():
        timms = key.removeprefix("backbone.model.")
        timms = timms if timms in wanted else timms.removeprefix("model.")
        timms = timms if timms in wanted else timms.replace("_", ".", 1)
        assert pair == pytest.approx(wanted[timms]), key
        found += 1
    assert found == len(list(backbone.parameters())) > 5
    assert len({rate for rate, _ in got.values()}) >= 4


def test_a_backbone_that_does_not_know_its_layers_has_no_layer_decay() -> None:
    own = nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 1), "head": nn.Conv2d(4, 2, 1)})
    with pytest.raises(
        ConfigError, match=r"layers_above\(\) for optim.layer_decay=0.5, got Conv2d; set .*null"
    ):
        parameter_groups(own, 0.1, 0.0, layer_decay=0.5)
    assert len(parameter_groups(own, 0.1, 0.0)) == 1
    unknown = nn.ModuleDict({"backbone": Backbone("poolformer_s12", out_indices=[-1])})
    with pytest.raises(
        ConfigError, match="got backbone.name='poolformer_s12'; set .* optim.layer_decay=null"
    ):
        parameter_groups(unknown, 0.1, 0.0, layer_decay=0.5)


class Own(nn.Module):
    """A backbone of a user's own, which names its upper layer first."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def layers_above(self) -> dict[str, int]:
        return {"upper.weight": 1, "lower.weight": 2}

    def no_weight_decay(self) -> set[str]:
        return {"lower.weight"}


def test_a_backbone_of_ones_own_may_know_its_layers_and_the_last_group_has_the_rate_of_the_head() -> None:
    network = nn.ModuleDict({"backbone": Own(), "head": nn.Linear(2, 2, bias=False)})
    groups = parameter_groups(network, 0.1, 0.01, False, head_lr_mult=0.5, layer_decay=0.5)
    assert settings(network, groups) == {
        "backbone.upper.weight": (0.05, 0.01),
        "backbone.lower.weight": (0.025, 0),
        "head.weight": (0.05, 0.01),
    }
    assert groups[-1]["lr"] == 0.05  # which is logged


# ---------------------------------------------------------------- optimizers


def test_defaults_are_the_published_ones(model: nn.Module) -> None:
    sgd, _ = built("optim=sgd_poly")(model)
    assert isinstance(sgd, SGD)
    assert [(g["momentum"], g["weight_decay"], g["nesterov"]) for g in sgd.param_groups] == [
        (0.9, 5e-4, False)
    ]
    adamw, _ = built("optim=adamw_poly")(model)
    assert isinstance(adamw, AdamW)
    assert {g["weight_decay"] for g in adamw.param_groups} == {0.0, 1e-2}


REFUSED = [
    (
        "torch.optim.LBFGS",
        "optim.weight_decay=0",
        "got LBFGS, which computes the loss several times a step",
    ),
    ("torch.optim.SparseAdam", "optim.weight_decay=0", "takes sparse gradients alone"),
    (
        "torch.optim.Rprop",
        "",
        r"expected optim.weight_decay=0 for Rprop, which has no weight decay, got 0.01",
    ),
    ("torch.optim.Muon", "", r"optim.optimizer: Muon cannot be built: Muon only supports 2D parameters"),
    ("timm.optim.Lookahead", "optim.weight_decay=0", "optim.optimizer: Lookahead cannot be built"),
    ("timm.optim.Adahessian", "", "got Adahessian, which needs second derivatives"),
]
CLASSES = [
    f"{where.__name__}.{name}"
    for where in (torch.optim, timm.optim)
    for name, kind in vars(where).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind.__module__.startswith(where.__name__)
]


@pytest.mark.parametrize(
    "name", sorted({*CLASSES} - {name for name, *_ in REFUSED} - {"torch.optim.Optimizer"})
)
def test_any_optimizer_of_torch_and_timm_steps_as_the_files_are(name: str) -> None:
    """Of AdamW's options, which give no argument; at the rate of the schedule, with decay by group."""
    torch.manual_seed(0)
    network = nn.ModuleDict({"backbone": nn.Conv2d(8, 8, 3), "head": nn.Conv2d(8, 2, 1)})
    optimizer, scheduler = built(
        "optim=adamw_poly", f"optim.optimizer._target_={name}", "trainer.max_steps=4", "optim.head_lr_mult=2"
    )(network)
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (1e-4, 1e-2), (1e-4, 0), (2e-4, 1e-2), (2e-4, 0),
    ]  # fmt: skip
    for _ in range(2):  # some note the gradients alone at first
        optimizer.step()
        scheduler.step()
    assert all((a != b).any() for a, b in zip(before, network.parameters(), strict=True))
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(1e-4)


def test_the_command_trains_with_an_optimizer_and_a_schedule_of_others(tmp_path: Path) -> None:
    """(With Muon and rates by layer: tests/reliability/test_interruptions.py.)"""
    own = "def steps(total_steps: int, by: float):\n    return lambda step: by ** (step / total_steps)\n"
    (tmp_path / "mylab.py").write_text(own)
    words = [
        "optim.optimizer._target_=timm.optim.Lion",
        "+optim.optimizer.betas=[0.9,0.98]",
        "+trust=[mylab]",
    ]
    words += [
        "optim/schedule=constant",
        "optim.schedule._target_=mylab.steps",
        "~optim.schedule.warmup_steps",
    ]
    words += ["+optim.schedule.by=0.5", "trainer.max_steps=2", "trainer.val_check_interval=2", "run_dir=run"]
    done = forked.run("train.py", *SMALL, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checkpoint = loaded(tmp_path / "run" / "checkpoints" / "last.ckpt")
    state = checkpoint["optimizer_states"][0]
    (rate,) = {group["initial_lr"] for group in state["param_groups"]}
    (last,) = checkpoint["lr_schedulers"]
    assert max(last["_last_lr"]) == rate * 0.5
    assert len(state["state"]) == sum(len(group["params"]) for group in state["param_groups"])


def test_muon_is_for_matrices_and_adamw_for_the_rest(model: nn.Module) -> None:
    optimizer, _ = built("optim=muon")(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    by_muon = {name: optimizer.state[p]["use_muon"] for name, p in model.named_parameters()}
    vectors = {name for name, p in model.named_parameters() if p.ndim < 2}
    assert vectors and not any(by_muon[name] for name in vectors)
    assert by_muon["head.reduce.0.weight"] and by_muon["backbone.model.layer1.0.conv2.weight"]
    for p in model.parameters():
        p.grad = None


REFUSED += [
    ("torch.optim.AdamW", "+optim.optimizer.betas=[2,0.9]", "AdamW cannot be built: Invalid beta"),
    ("torch.optim.AdamW", "+optim.optimizer.lr=1", "expected lr from optim.lr, got optim.optimizer.lr"),
    ("torch.optim.AdamW", "+optim.optimizer.weight_decay=1", "got optim.optimizer.weight_decay"),
    ("torch.optim.SGD", "optim/schedule=constant +optim.schedule.lr=1", "'optim.schedule.lr'"),
    ("torch.optim.SGD", "optim/schedule=cosine +optim.schedule.lr=1", "got optim.schedule.lr"),
    ("torch.optim.SGD", "~optim.optimizer._partial_", "optim.optimizer._partial_=true"),
    ("torch.optim.SGD", "~optim.schedule._partial_", "optim.schedule._partial_=true"),
    (
        "torch.optim.SGD",
        "optim/schedule=cosine optim.schedule.warmup_steps=4 trainer.max_steps=4",
        "shorter than the 4 steps of the run, got optim.schedule.warmup_steps=4; lower",
    ),
    (
        "torch.optim.SGD",
        "optim/schedule=constant ~optim.schedule.warmup_steps +optim.schedule.total_steps=2 "
        "optim.schedule._target_=torch.optim.lr_scheduler.OneCycleLR +optim.schedule.max_lr=0.1 "
        "+optim.schedule.cycle_momentum=false trainer.max_steps=4",
        "OneCycleLR for all 4 steps of the run, got total_steps=2; set .*max_steps",
    ),
]


@pytest.mark.parametrize(("name", "words", "said"), REFUSED)
def test_what_could_not_step_is_refused_in_one_sentence(
    name: str, words: str, said: str, model: nn.Module
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        built(f"optim.optimizer._target_={name}", *words.split())(model)
    assert "\n" not in str(caught.value)


def test_one_cycle_may_stay_at_its_peak() -> None:
    plain, held = one_cycle(100, 0.1, 2), one_cycle(150, 10 / 150, 2, hold=50 / 150)
    steps = [
        *range(11),
        *[10] * 49,
        *range(10, 100),
    ]  # of the one without: the peak, at step 10, lasts 50 steps
    assert [held(step) for step in range(150)] == pytest.approx([plain(step) for step in steps])
    assert [one_cycle(10, 0.2, 1, hold=1)(step) for step in (2, 9)] == [1, 1], "it never falls"


def test_a_schedule_may_be_a_class_of_torch(model: nn.Module) -> None:
    words = ["optim/schedule=constant", "~optim.schedule.warmup_steps"]
    steps = ["optim.schedule._target_=torch.optim.lr_scheduler.StepLR", "+optim.schedule.step_size=2"]
    optimizer, scheduler = built("optim=sgd_poly", *words, *steps)(model)
    seen = []
    for _ in range(5):
        seen.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])
    plateau = "optim.schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"
    with pytest.raises(ConfigError, match="ReduceLROnPlateau, which follows a score; choose another"):
        built("optim=sgd_poly", *words, plateau)(model)


def test_an_optimizer_of_ones_own_gets_what_it_names() -> None:
    def own(params: Any, lr: float) -> Optimizer:
        return SGD(params, lr=lr)

    assert small(own, nn.Linear(2, 2)).defaults["lr"] == 0.1
    with pytest.raises(ConfigError, match="to make an optimizer, got list"):
        small(lambda params: params, nn.Linear(2, 2))
    for step in (lambda self, closure=None: None, lambda self, **more: None):
        small(type("Fits", (SGD,), {"step": step}), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"got Bare; write `def step\(self, closure=None\)`"):
        small(type("Bare", (SGD,), {"step": lambda self: None}), nn.Linear(2, 2))


def test_fused_is_the_default_and_the_users_to_refuse(model: nn.Module) -> None:
    assert all(g["fused"] for g in small(AdamW, model).param_groups)
    assert not small(partial(AdamW, fused=False), model).param_groups[0]["fused"]
    assert small(partial(AdamW, foreach=True), model).param_groups[0]["foreach"]


def test_the_private_api_is_that_of_the_versions_it_was_written_for(model: nn.Module) -> None:
    """`_compat.unscaled_by_lightning`; Lightning above 2.6 may have lightning#21436, and bf16 then needs it no more."""
    assert lightning.__version__.startswith("2.6.") and torch.__version__.startswith("2.")
    assert AdamW(model.parameters(), fused=True)._step_supports_amp_scaling
    assert not small(AdamW, model)._step_supports_amp_scaling  # type: ignore[attr-defined]
