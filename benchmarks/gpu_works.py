"""The measured processes of `gpu`: passes through blocks, steps and evaluations of ISANet, losses and labels."""

from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig

from benchmarks.serve import Answer, Work, one_by_one, serve
from benchmarks.step import training_step
from benchmarks.works import (
    SETS,
    autocast,
    feature_map,
    images_and_target,
    logits_and_target,
    pass_through,
    smooth_image,
)
from isaseg import config
from isaseg.inference.apply import Inference, predict_labels
from isaseg.inference.labels import labels_from_coarse
from isaseg.inference.metrics import count_each
from isaseg.models.baselines import SelfAttention2d
from isaseg.models.fuse import fuse
from isaseg.models.interlaced import InterlacedSparseAttention
from isaseg.models.segmenter import Segmenter, build_segmenter

BLOCKS = {"isa": InterlacedSparseAttention, "dense": SelfAttention2d}
COMPILED = ", compiled"  # ends the kind of a work

Make = Callable[[str, str], Work]


def setting(data: str, *words: str) -> DictConfig:
    """Return the configuration of a data set's experiment, as mmsegmentation trains it, from random weights."""
    return config.compose_from(
        "train", [f"experiment={data}_isa", "protocol=mmseg", "pretrained=false", *words]
    )


def block_works(task: dict[str, Any]) -> Make:
    """Return what makes passes through a block, such as `isa forward 128`."""

    def make(work: str, kind: str) -> Work:
        name, mode, side = work.split()
        module = BLOCKS[name](task["channels"]).to(task["device"])
        run = fuse(module) if mode == "forward" else module
        x = feature_map(task["channels"], int(side), task["device"])
        x = x.contiguous(memory_format=torch.channels_last)
        return pass_through(run, run, x, mode == "training", kind)

    return make


def network_works(task: dict[str, Any]) -> Make:
    """Return what makes steps and evaluations, such as `resnet50_d8 cityscapes step`."""
    device = task["device"]

    def make(work: str, kind: str) -> Work:
        name, data, what = work.split()
        cfg = setting(data, f"backbone={name}", *task["words"])
        backbone = config.build(cfg.backbone, "backbone")
        attention = config.build(cfg.attention, "attention")
        network = (
            build_segmenter(backbone, cfg.data.num_classes, attention, **cfg.head).channels_last().to(device)
        )
        products = kind.removesuffix(COMPILED)
        if what == "evaluation":
            return _evaluation(network.fuse(), products, task["picture"] or SETS[data][2], device)
        if kind != products:  # as training compiles it
            step: Any = network
            step.coarse_with_aux = torch.compile(network.coarse_with_aux, backend=task["compiler"])
        optimizer, _ = config.build(cfg.optim, "optim")(network)
        loss = config.build(cfg.loss, "loss").to(device)
        images, target = images_and_target(
            cfg.data.batch_size, cfg.data.crop_size, device, cfg.data.num_classes
        )
        return training_step(network.train(), loss, optimizer, images, target, products)

    return make


def _evaluation(network: Segmenter, kind: str, size: tuple[int, int], device: str) -> Work:
    image = smooth_image(*size).to(device)
    classes = network.head.classifier.out_channels
    target = torch.zeros(size, dtype=torch.uint8, device=device)

    def work() -> None:
        with autocast(kind, device):
            labels = predict_labels(network, image[None], Inference())
        count_each(labels, target[None], classes, 255)

    return work


def loss_works(task: dict[str, Any]) -> Make:
    """Return what makes losses forward and backward, such as `ce cityscapes`, and `labels cityscapes`."""
    device = task["device"]

    def make(work: str, kind: str) -> Work:
        what, data = work.split()
        dtype = getattr(torch, kind)
        if what == "labels":
            logits, size = logits_and_target(data, "regions")[0].to(device, dtype), SETS[data][2]
            return lambda: labels_from_coarse(logits, [size], False)
        cfg = setting(data, f"loss={what}", *task["words"])
        loss = config.build(cfg.loss, "loss").to(device)
        batch, (height, width), classes = cfg.data.batch_size, cfg.data.crop_size, cfg.data.num_classes
        _, target = images_and_target(batch, (height, width), device, classes)
        coarse = torch.randn(batch, classes, height // 8, width // 8, device=device, dtype=dtype)
        coarse.requires_grad_()

        def step() -> None:
            loss(coarse, target).backward()
            coarse.grad = None

        return step

    return make


def _start(task: dict[str, Any]) -> Answer:
    torch.backends.cudnn.benchmark = True  # as trainer=gpu
    parts = {"block": block_works, "network": network_works, "loss": loss_works}
    return one_by_one(parts[task["part"]](task))


if __name__ == "__main__":
    serve(_start)
