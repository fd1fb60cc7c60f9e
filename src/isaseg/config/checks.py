"""The check of a configuration, before anything is built."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from isaseg.config.composition import conf_dir
from isaseg.config.targets import check_targets
from isaseg.config.values import check_keys, suggest
from isaseg.errors import ConfigError
from isaseg.trust import refuse_trust

Group = dict[str, Any]


class _Run(TypedDict):
    """A training configuration. What is built from a group checks its keys, by the signature of its constructor."""

    name: Annotated[str, Field(pattern=r"\w", description="text with a letter or digit in it")]
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # the limit of NumPy and Lightning
    resume: Annotated[str, Field(description="auto, must, never, extend or the path of a checkpoint")]
    stale: Literal["warn", "refuse", "retrain"]
    init_from: str | None
    init_parts: Annotated[
        list[Literal["backbone", "attention", "head"]],
        Field(min_length=1, description="a list of backbone, attention and head, at least one of them"),
    ]
    init_sha256: str | None
    check_data: bool
    score: Literal["best", "last"]
    score_test: bool
    pretrained: bool
    pictures: NonNegativeInt
    checkpoint_every_n_steps: PositiveInt
    compile: bool
    aux_weight: Annotated[float, Field(ge=0, le=1000)]
    output_dir: str
    run_dir: str | None
    attention: Group
    backbone: Group
    callbacks: NotRequired[Group]  # none with callbacks=[]
    data: Group
    head: Group
    logger: NotRequired[Group]  # none with logger=[]
    loss: Group
    optim: Group
    recipe: Group
    trainer: Group
    test: NotRequired[Group]  # how `evaluate` applies the network, from a recipe


class _Head(TypedDict):
    channels: PositiveInt
    dropout: Annotated[float, Field(ge=0, le=1)]
    aux_channels: PositiveInt | None
    align_corners: bool
    norm: NotRequired[Literal["batch", "inplace_abn"]]
    init: NotRequired[Literal["torch", "mmseg", "paddleseg"]]
    negative_slope: NotRequired[float]  # of the networks of openseg that were saved with plain norms


class _Recipe(TypedDict):
    protocol: str
    of: str | None
    lr: float
    weight_decay: float
    head_lr_mult: float
    min_lr: float
    value_bias: bool
    ends_at_last_step: bool
    average: Literal["labelled", "all"]
    class_weights: list[float] | None
    ohem: Group


class _Trainer(TypedDict):
    """Narrower than Lightning's own, which takes -1 and fractions of an epoch too."""

    max_steps: PositiveInt
    val_check_interval: PositiveInt
    accumulate_grad_batches: PositiveInt
    log_every_n_steps: PositiveInt
    gradient_clip_val: NonNegativeFloat | None


# Trainer arguments that would silently shorten a run or a score, or that the run sets itself
_OTHERWISE = dict.fromkeys(("max_epochs", "min_epochs", "min_steps"), "set trainer.max_steps")
_OTHERWISE |= dict.fromkeys(
    ("limit_val_batches", "limit_test_batches", "limit_predict_batches"), "set data.val_length"
)
_OTHERWISE |= {name: f"add a node to {name}, see conf/{name}" for name in ("logger", "callbacks")}
_OTHERWISE |= dict.fromkeys(
    ("barebones", "plugins", "reload_dataloaders_every_n_epochs", "use_distributed_sampler"),
    "leave it out, since the run sets what it needs",
)
_OTHERWISE |= {
    "fast_dev_run": "trainer.max_steps=2 data.val_length=4 make a short run",
    "limit_train_batches": "set trainer.max_steps",
    "overfit_batches": "train on a data set of few images",
    "max_time": "end the run by Ctrl-C or SIGTERM, and the same command continues it",
    "check_val_every_n_epoch": "set trainer.val_check_interval, in steps",
    "enable_checkpointing": "checkpoints are always kept; set checkpoint_every_n_steps",
    "enable_model_summary": "~callbacks.model_summary leaves the table out",
    "enable_progress_bar": "leave it out: a file gets sparse lines, a terminal a bar",
    "default_root_dir": "set output_dir or run_dir",
    "profiler": "use trainer=profile",
}

# Keys that follow from another one, which is set instead
_SAME = {
    "loss.ignore_index": "data.ignore_index",
    "data.transform.ignore_index": "data.ignore_index",
    "data.transform.crop_size": "data.crop_size",
    "data.max_steps": "trainer.max_steps",
    "data.accumulate": "trainer.accumulate_grad_batches",
}


def check_nodes(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration resolved, once each `_target_` is known to be allowed and to take the keys beside it.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    plain = _resolved(cfg)
    _check_trainer(plain.get("trainer"))
    check_targets(plain)
    return plain


def check_sections(cfg: DictConfig) -> dict[str, Any]:
    """Return a training configuration resolved, once its sections without a `_target_` are known to be valid.

    Nothing is imported for it, so that a sweep can check all of its jobs first.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    plain = _resolved(cfg)
    # a key of the user's own may hold what others interpolate
    own = re.findall(r"\$\{(\w+)", str(OmegaConf.to_container(cfg)))
    _check_section("", plain, _Run, own)
    _check_section("head", plain["head"], _Head)
    for name in ("callbacks", "logger"):
        _check_named(name, plain.get(name, {}))
    _check_section("recipe", plain["recipe"], _Recipe)
    _check_trainer(plain["trainer"])
    _check_section("trainer", {key: plain["trainer"].get(key) for key in _Trainer.__annotations__}, _Trainer)
    return plain


def check(cfg: DictConfig) -> None:
    """Check a training configuration: missing values, unknown keys, types, ranges, keys that must agree.

    Raises:
        ConfigError: Naming the dotted key, its value and what was expected.
    """
    plain = check_sections(cfg)
    check_targets(plain)
    _check_recipe(cfg)
    _check_agreement(cfg)


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        text = str(error)
        if missing := re.search(r"Missing mandatory value: (\S+)", text):
            raise ConfigError(
                f"expected a value for {missing[1]}, got none; give it as {missing[1]}=VALUE"
            ) from None
        where = f"{error.full_key} of the configuration" if error.full_key else "the configuration"
        raise ConfigError(f"{where} does not resolve: {text.splitlines()[0]}") from error
    assert isinstance(plain, dict)
    refuse_trust(map(str, plain))
    return {str(key): value for key, value in plain.items()}


def _check_section(name: str, node: Mapping[str, Any], section: Any, more: Iterable[str] = ()) -> None:
    known = get_type_hints(section, include_extras=True)
    known = {key: get_args(a)[0] if get_origin(a) is NotRequired else a for key, a in known.items()}
    if absent := sorted(section.__required_keys__ - node.keys()):
        raise ConfigError(f"expected a value for {f'{name}.{absent[0]}'.lstrip('.')}, got none")
    check_keys(name, node, dict.fromkeys(more, Any) | known, "")


def _check_named(name: str, nodes: Mapping[str, Any]) -> None:
    """Check a section of which each key is a name and each value a node that is built."""
    for key, node in nodes.items():
        if not re.fullmatch(r"\w+", str(key)):
            raise ConfigError(f"expected a name of letters, digits and _ in {name}, got {name}.{key}")
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(
                f"expected {name}.{key} to be a node with _target_, got {name}.{key}={node}; "
                f"{suggest(str(key), map(str, nodes.keys() - {key}))}add one by +{name}.NAME._target_=PACKAGE.CLASS, "
                f"leave one out by ~{name}.NAME"
            )


def _check_trainer(node: Any) -> None:
    """Check a trainer for arguments of Lightning's that work against the run, and for processes on a CPU."""
    if not isinstance(node, dict):
        return  # reported where its keys are checked
    for key, instead in _OTHERWISE.items():
        if key in node:
            raise ConfigError(f"expected no trainer.{key}, got one; {instead}")
    if node.get("accelerator") == "cpu":
        devices, synced = node.get("devices"), node.get("sync_batchnorm")
        if str(devices) == "-1" or synced:
            raise ConfigError(
                "expected trainer.devices as a number of processes and trainer.sync_batchnorm=false on a CPU, got "
                f"trainer.devices={devices}, trainer.sync_batchnorm={synced}; trainer=ddp is for GPUs: set "
                "trainer=default trainer.accelerator=cpu trainer.strategy=ddp trainer.devices=2"
            )


def prepare_devices(trainer: DictConfig) -> None:
    """Check that a trainer for GPUs has one, and let it use TF32 or not; training and evaluation begin with it.

    A configuration alone need not have a GPU, for it may be of another machine. TF32 is set by the two flags that
    everything reads: after torch's newer `fp32_precision` is set, Lightning's reading of the matmul precision fails.

    Raises:
        ConfigError: If this machine has none.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = bool(trainer.get("tf32"))
    accelerator = trainer.accelerator
    if accelerator in ("gpu", "cuda") and not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    ):
        raise ConfigError(
            f"expected a GPU for trainer.accelerator={accelerator}, as trainer=gpu and trainer=ddp set it, got none that "
            "torch can use on this machine; set trainer=default, which takes what there is, or trainer=cpu"
        )


def _check_agreement(cfg: DictConfig) -> None:
    """Check the keys of which one limits another."""
    for key, first in _SAME.items():
        value, wanted = OmegaConf.select(cfg, key), OmegaConf.select(cfg, first)
        if value not in (None, wanted):
            raise ConfigError(f"expected {key} to be {first}={wanted}, got {key}={value}; set {first} alone")
    lr, lowest = OmegaConf.select(cfg, "optim.lr"), OmegaConf.select(cfg, "optim.schedule.min_lr")
    if None not in (lr, lowest) and lowest >= lr:
        raise ConfigError(f"expected optim.schedule.min_lr below optim.lr={lr}, got {lowest}")
    ignored, count = OmegaConf.select(cfg, "data.ignore_index"), OmegaConf.select(cfg, "data.num_classes")
    if None not in (ignored, count) and ignored < count:
        raise ConfigError(f"expected data.ignore_index outside the classes 0 to {count - 1}, got {ignored}")
    weights = OmegaConf.select(cfg, "loss.class_weights")
    if OmegaConf.is_list(weights) and (len(weights) != count or min(weights) < 0):
        raise ConfigError(
            f"expected one weight of at least 0 for each of the {count} classes, got loss.class_weights={weights}; "
            "set loss.class_weights=null or give all of them"
        )
    if weights is not None and OmegaConf.select(cfg, "loss.average") == "all":
        raise ConfigError(
            "expected loss.average=labelled with loss.class_weights, got loss.average=all, but a pixel without a label "
            "has no weight; set loss.average=labelled or loss.class_weights=null"
        )


def _check_recipe(cfg: DictConfig) -> None:
    name, protocol = cfg.data.name, cfg.recipe.protocol
    if protocol == "none" or cfg.recipe.of == f"{name}_{protocol}":
        return
    found = [path.stem for path in (conf_dir() / "protocol").glob("*.yaml")]
    known = sorted(p for p in found if (conf_dir() / "recipe" / f"{name}_{p}.yaml").is_file())
    raise ConfigError(
        f"no values of protocol={protocol} are known for data={name}; choose protocol={' or '.join([*known, 'none'])}"
    )
