"""The LightningModule that a configuration describes, and the description of its network for a checkpoint."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.checkpoints.parts import copy_parts
from isaseg.data.adopted import Data
from isaseg.errors import CheckpointError, ConfigError, IsasegError
from isaseg.files import sha256
from isaseg.inference.apply import Inference, check_applies
from isaseg.inference.label_files import label_format
from isaseg.models.backbone import Backbone
from isaseg.models.contract import check_loss, check_parts
from isaseg.models.segmenter import Segmenter, build_segmenter, check_described
from isaseg.runs.run_folder import read_facts
from isaseg.training.module import SegmentationModule

log = logging.getLogger(__name__)


def build_module(cfg: DictConfig, datamodule: Data) -> SegmentationModule:
    """Return the LightningModule of a configuration.

    Raises:
        ConfigError: If a part refuses its arguments.
    """
    _say_whose_weights(cfg)
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
        segmenter.description = description
        label_format(description)
        scaling = OmegaConf.select(cfg, "test.scaling", default="file")
        check_applies(segmenter, Inference(scaling=scaling))
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(
            f"evaluate, predict and export could not use a checkpoint of this network: {error}"
        ) from error
    loss, settings = config.build(cfg.loss, "loss"), _plain(cfg.loss)
    check_loss(loss, cfg.data.num_classes, cfg.data.ignore_index)
    make_optimizer = config.build(cfg.optim, "optim")
    make_optimizer(segmenter)  # what it refuses, it refuses before anything is written
    if not on_cpu:  # there it is of no use, and changes how backward passes round
        segmenter.channels_last()
    module = SegmentationModule(
        segmenter,
        loss,
        make_optimizer,
        cfg.data.num_classes,
        cfg.data.ignore_index,
        cfg.aux_weight,
        weights if isinstance(weights := settings.get("class_weights"), list) else None,
        "all" if settings.get("average") == "all" else "labelled",
        datamodule.source("val").groups,
        description,
        config.identity(cfg),
    )
    # with it, the model summary counts FLOPs
    module.example_input_array = torch.zeros(1, 3, *cfg.data.crop_size, dtype=torch.uint8)
    return module


def _say_whose_weights(cfg: DictConfig) -> None:
    """Say in one line that a network of openseg begins with timm's weights of ImageNet, not with its own."""
    is_openseg = cfg.recipe.protocol.startswith("openseg") and cfg.backbone.get("name") == "resnet101s"
    if is_openseg and cfg.backbone.get("pretrained") and not cfg.backbone.get("bgr"):
        log.info(
            "timm's weights of ImageNet with their own mean and deviation; openseg's are those of CSAIL: "
            "backbone=resnet101_csail backbone.weights=resnet101-imagenet.pth"
        )


def describe(cfg: DictConfig, datamodule: Data) -> dict[str, Any]:
    """Return the description of the network, as `build_described` takes it."""
    return {
        **config.describe_network(cfg),
        "num_classes": cfg.data.num_classes,
        "data": cfg.data.name,
        "protocol": cfg.recipe.protocol,
        "classes": list(datamodule.classes),
        "palette": datamodule.source("val").palette.tolist(),
    }


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def begin_from(
    cfg: DictConfig, segmenter: Segmenter, datamodule: Data, resume: Path | None
) -> dict[str, Any]:
    """Copy the weights of `init_from` into the network of a run that begins; return what facts.json says of it.

    Args:
        cfg: Of `config.initialised`.
        segmenter: Receives the weights.
        datamodule: Names the classes.
        resume: The checkpoint with which the run goes on, beside the facts of how it began; None for one that begins.

    Raises:
        IsasegError: If the file does not load, or has changed since the configuration was made from it.
    """
    if cfg.init_from is None:
        return {}
    known = {"init_from": cfg.init_from, "init_sha256": cfg.init_sha256}
    if resume is not None:
        held = read_facts(resume.parent.parent)
        return known | {key: held.get(key) for key in ("init_kept", "init_new")}
    path = config.initial_file(cfg)
    if (found := sha256(path)) != cfg.init_sha256:
        raise ConfigError(
            f"expected '{path}' to be the file that gave the configuration ({cfg.init_sha256}), got another one "
            f"({found}); run the same command again"
        )
    return known | copy_parts(segmenter, path, cfg.init_parts, datamodule.classes)
