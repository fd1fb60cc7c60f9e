"""mmsegmentation's ISANet with random weights: its checkpoint, and its logits. Run by the Python that has mmseg.

usage: isanet.py TASK.json
The task: `config` (a file below mmseg's configs), `seed`, `images` (.npy files, uint8 RGB (H, W, 3)), `output` (a folder,
where `checkpoint.pth` is left, as mmengine saves it, and `I.npy`, the logits (K, H, W) of image I).
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mmseg_import  # noqa: F401, I001  (first: its stand-in for mmcv.ops, without which mmseg does not import)
import mmseg
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmseg.datasets import CityscapesDataset
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import nn


def build(config: str) -> tuple[nn.Module, Config]:
    """Return the model of a configuration, applied to whole images, and the configuration."""
    cfg = Config.fromfile(str(Path(mmseg.__file__).parent / ".mim" / "configs" / config))
    cfg.model.pretrained = None
    cfg.model.test_cfg = {"mode": "whole"}
    return revert_sync_batchnorm(MODELS.build(cfg.model)), cfg


def randomise(model: nn.Module) -> None:
    """Give every norm random weights, and statistics by which signals stay of size one.

    Not the variance of its input but the mean square: what random weights give hardly varies, and divided by its own
    deviation it would magnify rounding a thousand times, in their network alike.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.3, 1.0)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.momentum = 1.0
    blobs = F.interpolate(1.5 * torch.randn(2, 3, 5, 6), size=(128, 160), mode="bilinear")
    image = blobs + 0.3 * torch.randn(2, 3, 128, 160)
    heads = (model.decode_head, model.auxiliary_head)
    with torch.no_grad():
        features = model.train().extract_feat(image)
        for head in heads:
            head.forward(features)
        for norm in norms:
            norm.running_var += norm.running_mean**2
            norm.running_mean += norm.running_var.sqrt() * 0.4 * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    for head in heads:
        nn.init.normal_(head.conv_seg.weight, 0.0, 0.1)


@torch.no_grad()
def predict(model: nn.Module, image: np.ndarray) -> torch.Tensor:
    """Return logits (K, H, W) of an image, uint8 RGB (H, W, 3), by all the steps that mmseg takes."""
    bgr = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    sample = SegDataSample(metainfo={"ori_shape": bgr.shape[1:], "img_shape": bgr.shape[1:]})
    (result,) = model.test_step({"inputs": [bgr], "data_samples": [sample]})
    return result.seg_logits.data


def main() -> None:
    """Do the task."""
    task = json.loads(Path(sys.argv[1]).read_text())
    register_all_modules()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(task["seed"])
    model, cfg = build(task["config"])
    randomise(model)
    model.eval()
    images = [np.load(path) for path in task["images"]]
    level = predict(model, images[0]).mean((1, 2))
    model.decode_head.conv_seg.bias.data -= 0.7 * level  # so that more than one class wins
    meta = {"cfg": cfg.pretty_text, "dataset_meta": CityscapesDataset.METAINFO, "iter": 40000}
    output = Path(task["output"])
    torch.save({"meta": meta, "state_dict": model.state_dict()}, output / "checkpoint.pth")
    for number, image in enumerate(images):
        np.save(output / f"{number}.npy", predict(model, image).numpy())


if __name__ == "__main__":
    main()
