"""What mmsegmentation does with pictures and label maps. Run by the Python that has mmseg.

usage: mmseg_side.py TASK.json
The task: `output`, a folder; `settings`, files below mmseg's configs: what each says of testing goes to settings.json;
`models`, each with `name`, `config`, `seed` and `cases`. Of each model NAME, with random weights, is left NAME.pth, and
of each of its cases NAME_CASE.npy, the result (K, H, W), and NAME_CASE_labels.npy. A case has `name`, `picture` (a file),
`test_cfg`, `scale` (of Resize, width and height) or None, and `ratios` (of TestTimeAug, each also mirrored) or None.
`maps`, each with `pairs` (an .npz with prediction0, target0, ...) and `num_classes`: what IoUMetric finds goes to
scores.json, in this order: `areas` of intersection, union, prediction and label of each class; `float32`, its scores;
`float64`, what its formulas give for these areas in double precision.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mmseg_import  # noqa: F401, I001  (first: its stand-in for mmcv.ops, without which mmseg does not import)
import mmseg
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmseg.datasets import CityscapesDataset
from mmseg.evaluation import IoUMetric
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import Tensor, nn


def read_config(name: str) -> Config:
    """Return a configuration below mmseg's configs."""
    return Config.fromfile(str(Path(mmseg.__file__).parent / ".mim" / "configs" / name))


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
    features = model.train().extract_feat(image)
    for head in heads:
        head.forward(features)
    for norm in norms:
        norm.running_var += norm.running_mean**2
        norm.running_mean += norm.running_var.sqrt() * 0.4 * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.8, 1.25)
    for head in heads:
        nn.init.normal_(head.conv_seg.weight, 0.0, 0.1)


def settings(config: str) -> dict[str, Any]:
    """Return what a configuration says of testing."""
    cfg = read_config(config)
    resize = next(step for step in cfg.test_pipeline if step.type == "Resize")
    scaling, flipping = cfg.tta_pipeline[1].transforms[:2] if "tta_pipeline" in cfg else ([], [])
    return {
        "scale": list(resize.scale),
        "keep_ratio": resize.keep_ratio,
        "test_cfg": dict(cfg.model.test_cfg),
        "align_corners": cfg.model.decode_head.align_corners,
        "ratios": [step.scale_factor for step in scaling],
        "tta_keep_ratio": all(step.keep_ratio for step in scaling),
        "flips": [step.prob for step in flipping],
    }


def single(model: nn.Module, picture: str, scale: list[int] | None) -> tuple[Tensor, Tensor]:
    """Return logits and labels of one view."""
    steps = [{"type": "LoadImageFromFile"}, {"type": "PackSegInputs"}]
    if scale is not None:
        steps.insert(1, {"type": "Resize", "scale": tuple(scale), "keep_ratio": True})
    (found,) = model.test_step(pseudo_collate([Compose(steps)({"img_path": picture})]))
    return found.seg_logits.data, found.pred_sem_seg.data[0]


def several(model: nn.Module, picture: str, ratios: list[float]) -> tuple[Tensor, Tensor]:
    """Return the mean of the probabilities, of which SegTTAModel keeps the largest alone, and its labels."""
    views = [
        [{"type": "Resize", "scale_factor": ratio, "keep_ratio": True} for ratio in ratios],
        [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in (0.0, 1.0)],
        [{"type": "PackSegInputs"}],
    ]
    steps = [{"type": "LoadImageFromFile"}, {"type": "TestTimeAug", "transforms": views}]
    data = pseudo_collate([Compose(steps)({"img_path": picture})])
    found = []
    model.register_forward_hook(lambda *call: found.append(call[-1][0].seg_logits.data.clone()))
    (merged,) = SegTTAModel(module=model).test_step(data)
    model._forward_hooks.clear()
    assert len(found) == 2 * len(ratios)
    return sum(logits.softmax(0) for logits in found) / len(found), merged.pred_sem_seg.data[0]


def predict(task: dict[str, Any], output: Path) -> None:
    """Leave a model and the results of its cases."""
    torch.manual_seed(task["seed"])
    cfg = read_config(task["config"])
    cfg.model.pretrained = None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    randomise(model)
    meta = {"cfg": cfg.pretty_text, "dataset_meta": CityscapesDataset.METAINFO, "iter": 40000}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, output / f"{task['name']}.pth")
    model.eval()
    for case in task["cases"]:
        model.test_cfg = ConfigDict(case["test_cfg"])
        ways = (several, case["ratios"]) if case["ratios"] else (single, case["scale"])
        result, labels = ways[0](model, case["picture"], ways[1])
        stem = f"{task['name']}_{case['name']}"
        np.save(output / f"{stem}.npy", result.numpy())
        np.save(output / f"{stem}_labels.npy", labels.numpy().astype(np.uint8))


def scores(areas: list[Tensor]) -> dict[str, Any]:
    """Return aAcc, IoU and Acc, and their means."""
    found = IoUMetric.total_area_to_metrics(*areas)
    means = {f"m{key}": float(np.nanmean(found[key])) for key in ("IoU", "Acc")}
    return {"aAcc": float(found["aAcc"]), **{k: found[k].tolist() for k in ("IoU", "Acc")}, **means}


def score(task: dict[str, Any]) -> dict[str, Any]:
    """Return the areas and the scores of label maps."""
    pairs = np.load(task["pairs"])
    metric = IoUMetric()
    metric.dataset_meta = {"classes": [str(c) for c in range(task["num_classes"])]}
    for number in range(len(pairs) // 2):
        maps = (torch.from_numpy(pairs[f"{key}{number}"])[None] for key in ("prediction", "target"))
        prediction, target = ({"data": labels.long()} for labels in maps)
        metric.process({}, [{"pred_sem_seg": prediction, "gt_sem_seg": target}])
    areas = [sum(part) for part in zip(*metric.results, strict=True)]
    double = scores([area.double() for area in areas])
    return {"areas": [area.tolist() for area in areas], "float32": scores(areas), "float64": double}


@torch.no_grad()
def main() -> None:
    """Do the task."""
    task = json.loads(Path(sys.argv[1]).read_text())
    register_all_modules()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    output = Path(task["output"])
    (output / "settings.json").write_text(json.dumps({name: settings(name) for name in task["settings"]}))
    (output / "scores.json").write_text(json.dumps([score(part) for part in task["maps"]]))
    for part in task["models"]:
        predict(part, output)


if __name__ == "__main__":
    main()
