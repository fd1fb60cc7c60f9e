"""mmsegmentation's side of the benchmarks, run as a script by the Python that has it.

Of ours it imports nothing but `serve` and `works`.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmseg_import  # type: ignore[import-not-found]  # noqa: F401

# isort: split
import cv2
import mmseg  # type: ignore[import-not-found]
import torch
import works  # type: ignore[import-not-found]
from mmengine.config import Config  # type: ignore[import-not-found]
from mmengine.model import revert_sync_batchnorm  # type: ignore[import-not-found]
from mmengine.structures import PixelData  # type: ignore[import-not-found]
from mmseg.evaluation import IoUMetric  # type: ignore[import-not-found]
from mmseg.models.decode_heads import isa_head  # type: ignore[import-not-found]
from mmseg.models.utils import resize  # type: ignore[import-not-found]
from mmseg.registry import MODELS, TRANSFORMS  # type: ignore[import-not-found]
from mmseg.structures import SegDataSample  # type: ignore[import-not-found]
from mmseg.utils import register_all_modules  # type: ignore[import-not-found]
from serve import Answer, Timer, Work, one_by_one, serve  # type: ignore[import-not-found]
from torch import Tensor, nn


def network_of(config: str, size: tuple[int, int] | None = None) -> Any:
    """Return the network of one of its ISANet configurations, with random weights."""
    cfg = Config.fromfile(str(Path(mmseg.__file__).parent / ".mim/configs/isanet" / config))
    cfg.model.pretrained = None
    if size is not None:
        cfg.model.data_preprocessor.size = size
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def block(channels: int) -> Any:
    """Return an ISAHead that is only its block: what comes before and after it does nothing."""
    width = {"in_channels": channels, "channels": channels, "isa_channels": channels // 2}
    norm_cfg = {"type": "BN"}
    head = isa_head.ISAHead(down_factor=(8, 8), num_classes=1, in_index=0, norm_cfg=norm_cfg, **width)
    isa_head.torch = SimpleNamespace(cat=lambda maps, dim: maps[0])
    head.in_conv, head.out_conv, head.cls_seg = nn.Identity(), nn.Identity(), nn.Identity()
    return head


def attention(task: dict[str, Any]) -> Answer:
    """Return the timer of passes such as `forward 128` through the block, which takes contiguous maps only."""
    head = block(task["channels"]).to(task["device"])

    def make(work: str, kind: str) -> Work:
        mode, side = work.split()
        x = works.feature_map(task["channels"], int(side), task["device"])
        return works.pass_through(head, lambda x: head([x]), x, mode == "training", kind)

    return Timer(make)


def blocks(task: dict[str, Any]) -> Answer:
    """Return what answers for passes such as `isa forward 128` and `dense training 128`."""
    torch.backends.cudnn.benchmark = True  # as in its default_runtime.py
    channels, device = task["channels"], task["device"]

    def make(work: str, kind: str) -> Work:
        name, mode, side = work.split()
        head = block(channels).to(device)
        x = works.feature_map(channels, int(side), device)
        call = head.global_relation if name == "dense" else lambda x: head([x])
        return works.pass_through(head, call, x, mode == "training", kind)

    return one_by_one(make)


def training_step(task: dict[str, Any]) -> Answer:
    """Return the timer of a training step of ISANet R-50 as its ADE20K configuration says, with SGD."""
    device, size = task["device"], (task["side"], task["side"])
    network = network_of("isanet_r50-d8_4xb4-80k_ade20k-512x512.py", size).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images, target = works.images_and_target(task["batch"], size, device)
    meta = {"img_shape": size, "ori_shape": size}
    samples = [SegDataSample(gt_sem_seg=PixelData(data=t[None]), metainfo=meta) for t in target]

    def step(kind: str) -> None:
        data = network.data_preprocessor({"inputs": list(images), "data_samples": samples}, True)
        with works.autocast(kind, device):
            loss, _ = network.parse_losses(network(**data, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Timer(lambda work, kind: lambda: step(kind))


def areas(labels: Tensor, target: Tensor, classes: int) -> list[list[float]]:
    """Return the areas of intersection, union, prediction and labels of each class."""
    return [x.tolist() for x in IoUMetric.intersect_and_union(labels, target.to(labels), classes, 255)]


def labels_work(name: str, kind: str) -> Work:
    """Return the way from coarse logits to areas: through its decode head, postprocess_result and IoUMetric."""
    logits, target = works.logits_and_target(name, kind)
    classes, _, size = works.SETS[name]

    def work() -> list[list[float]]:
        full = resize(logits, size=size, mode="bilinear", align_corners=False, warning=False)
        return areas(full[0].argmax(dim=0, keepdim=True).squeeze(), target, classes)

    return work


def network_work(size: list[int]) -> Work:
    """Return the way from an image to areas, through ISANet R-50."""
    network = network_of("isanet_r50-d8_4xb2-40k_cityscapes-512x1024.py").eval()
    image = works.smooth_image(*size).flip(0)  # it reads BGR
    target = torch.zeros(size, dtype=torch.uint8)

    def work() -> list[list[float]]:
        sample = SegDataSample(metainfo={"ori_shape": tuple(size), "img_shape": tuple(size)})
        with torch.no_grad():
            (done,) = network.test_step({"inputs": [image], "data_samples": [sample]})
        return areas(done.pred_sem_seg.data.squeeze(), target, 19)

    return work


def evaluation(task: dict[str, Any]) -> Answer:
    """Return the timer of the ways from logits, and from an image, to areas."""
    size = task["size"]
    return Timer(lambda work, kind: network_work(size) if work == "network" else labels_work(work, kind))


def pipeline(task: dict[str, Any]) -> Answer:
    """Return what times the samples of its training pipeline over a list of files."""
    cv2.setNumThreads(1)
    resize, zero, pairs = task["resize"], task["reduce_zero_label"], task["pairs"]
    scale = resize["size"][::-1] if "size" in resize else (resize["long_side"], resize["short_side"])
    ratio_range, keep_ratio = tuple(task["scale"]), "size" not in resize
    steps: list[dict[str, Any]] = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "reduce_zero_label": zero},
        {"type": "RandomResize", "scale": tuple(scale), "ratio_range": ratio_range, "keep_ratio": keep_ratio},
        {"type": "RandomCrop", "crop_size": tuple(task["crop_size"]), "cat_max_ratio": 0.75},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    transforms = [TRANSFORMS.build(step) for step in steps]
    common = {"reduce_zero_label": zero, "label_map": None}
    samples = [{"img_path": image, "seg_map_path": mask, **common} for image, mask in pairs]
    return works.Samples(partial(transformed, transforms, samples), list, task["samples"]).answer


def transformed(transforms: list[Any], samples: list[dict[str, Any]], index: int) -> Any:
    """Return sample `index`, counted around the list."""
    found: Any = {**samples[index % len(samples)], "seg_fields": []}
    for transform in transforms:
        found = transform(found)
    return found


def start(task: dict[str, Any]) -> Answer:
    """Return what answers for the benchmark of a task."""
    register_all_modules()
    starts = {"attention": attention, "step": training_step, "evaluate": evaluation, "data": pipeline}
    starts["gpu"] = blocks
    return starts[task["benchmark"]](task)


if __name__ == "__main__":
    serve(start, version=mmseg.__version__)
