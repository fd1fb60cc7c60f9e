"""The LightningModule that a configuration describes, and the description of its network for a checkpoint."""

from typing import Any

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.checkpoints.description import NOT_DESCRIBED
from isaseg.checkpoints.loading import check_described
from isaseg.data.adopted import Data
from isaseg.errors import CheckpointError, ConfigError, IsasegError
from isaseg.inference.apply import Inference, check_applies
from isaseg.inference.label_files import label_format
from isaseg.models import context_modules
from isaseg.models.backbone import Backbone
from isaseg.models.contract import check_loss, check_parts
from isaseg.models.segmenter import build_segmenter
from isaseg.training.module import SegmentationModule


def build_module(cfg: DictConfig, datamodule: Data) -> SegmentationModule:
    """Return the LightningModule of a configuration.

    Raises:
        ConfigError: If a part refuses its arguments.
    """
    backbone: Backbone = config.build(cfg.backbone, "backbone")
    try:
        attention = config.build(cfg.attention, "attention")
        segmenter = build_segmenter(backbone, cfg.data.num_classes, attention, **_plain(cfg.head))
    except IsasegError:
        raise
    except Exception as error:  # a constructor of the user's own may raise anything
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise ConfigError(f"attention or head cannot be built: {reason}") from error
    on_cpu = cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    height, width = cfg.data.crop_size
    check_parts(segmenter, height, width, "cpu" if on_cpu else "cuda")
    description = describe(cfg, datamodule)
    try:
        check_described(description, segmenter)
        label_format(description)
        scaling = OmegaConf.select(cfg, "test.scaling", default="file")
        check_applies(segmenter, Inference(scaling=scaling))
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(
            f"evaluate, predict and export could not use a checkpoint of this network: {error}"
        ) from error
    loss = config.build(cfg.loss, "loss")
    check_loss(loss, cfg.data.num_classes, cfg.data.ignore_index)
    make_optimizer = config.build(cfg.optim, "optim")
    make_optimizer(segmenter)  # what it refuses, it refuses before anything is written
    module = SegmentationModule(
        segmenter,
        loss,
        make_optimizer,
        cfg.data.num_classes,
        cfg.data.ignore_index,
        cfg.aux_weight,
        weights if isinstance(weights := _plain(cfg.loss).get("class_weights"), list) else None,
        datamodule.source("val").groups,
        description,
        config.identity(cfg),
    )
    # with it, the model summary counts FLOPs
    module.example_input_array = torch.zeros(1, 3, *cfg.data.crop_size, dtype=torch.uint8)
    return module


def describe(cfg: DictConfig, datamodule: Data) -> dict[str, Any]:
    """Return the description of the network, as `build_described` takes it."""
    head = _plain(cfg.head)
    return {
        "backbone": _described(cfg.backbone, {Backbone: {}}),
        "attention": _described(
            cfg.attention, {kind: {"name": name} for name, kind in context_modules().items()}
        ),
        "num_classes": cfg.data.num_classes,
        "negative_slope": head.pop("negative_slope", 0.0),
        "head": head,
        "data": cfg.data.name,
        "protocol": cfg.recipe.protocol,
        "classes": list(datamodule.classes),
        "palette": datamodule.source("val").palette.tolist(),
    }


def _described(node: DictConfig, known: dict[type, dict[str, str]]) -> dict[str, Any]:
    """Return name and arguments of a part: of those that are `known` as they are named there, of others the class."""
    target = str(node["_target_"])
    left_out = {"_target_", "_partial_", "label"}
    name = known.get(get_object(target))
    left_out |= {"weights", "weights_sha256"} if name is None else NOT_DESCRIBED
    described = {key: value for key, value in _plain(node).items() if key not in left_out}
    if "pretrained" in described:
        described["pretrained"] = False  # the checkpoint has the weights
    return {**({"_target_": target} if name is None else name), **described}


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}
