"""mmsegmentation's evaluation, timed. Run as a script by the Python that has mmseg, not by ours."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmseg_import  # type: ignore[import-not-found]  # noqa: F401

# isort: split
import mmseg  # type: ignore[import-not-found]
import torch
from mmengine.config import Config  # type: ignore[import-not-found]
from mmengine.model import revert_sync_batchnorm  # type: ignore[import-not-found]
from mmseg.evaluation import IoUMetric  # type: ignore[import-not-found]
from mmseg.models.utils import resize  # type: ignore[import-not-found]
from mmseg.registry import MODELS  # type: ignore[import-not-found]
from mmseg.structures import SegDataSample  # type: ignore[import-not-found]
from mmseg.utils import register_all_modules  # type: ignore[import-not-found]
from serve import serve, timed_work  # type: ignore[import-not-found]
from torch import Tensor
from work import SETS, logits_and_target, picture  # type: ignore[import-not-found]


def areas(labels: Tensor, target: Tensor, classes: int) -> list[list[float]]:
    """Return intersection, union, prediction and label areas of each class."""
    found = IoUMetric.intersect_and_union(labels, target.to(labels), classes, 255)
    return [x.tolist() for x in found]


def labels_work(name: str, kind: str) -> Callable[[], list[list[float]]]:
    """Return the way from coarse logits to areas: of its decode head, postprocess_result and IoUMetric."""
    logits, target = logits_and_target(name, kind)
    classes, _, size = SETS[name]

    def work() -> list[list[float]]:
        full = resize(logits, size=size, mode="bilinear", align_corners=False, warning=False)
        return areas(full[0].argmax(dim=0, keepdim=True).squeeze(), target, classes)

    return work


def network_work(size: list[int]) -> Callable[[], list[list[float]]]:
    """Return the way from a picture to areas, through ISANet R-50 with random weights."""
    file = Path(mmseg.__file__).parent / ".mim/configs/isanet/isanet_r50-d8_4xb2-40k_cityscapes-512x1024.py"
    cfg = Config.fromfile(str(file))
    cfg.model.pretrained = None
    network = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    image = picture(*size).flip(0)  # it reads BGR
    target = torch.zeros(size, dtype=torch.uint8)

    def work() -> list[list[float]]:
        sample = SegDataSample(metainfo={"ori_shape": tuple(size), "img_shape": tuple(size)})
        with torch.no_grad():
            (done,) = network.test_step({"inputs": [image], "data_samples": [sample]})
        return areas(done.pred_sem_seg.data.squeeze(), target, 19)

    return work


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what mmseg prints is no answer
    register_all_modules()
    torch.set_num_threads(1)
    task = json.loads(sys.stdin.readline())

    def make(work: str, kind: str) -> Callable[[], Any]:
        return network_work(task["size"]) if work == "network" else labels_work(work, kind)

    serve(timed_work(make), {"version": mmseg.__version__}, answers)


if __name__ == "__main__":
    main()
