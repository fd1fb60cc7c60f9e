"""How mmsegmentation tests: the logits and labels of its own pipelines, and the settings of its configurations.

Run by the Python that has mmseg. usage: protocols.py TASK.json
The task: `output`, a folder; `settings`, files below mmseg's configs: what each says of testing goes to settings.json;
`picture`, a file; `models`, each with `name`, `config`, `seed` and `cases`. Of each model NAME is left NAME.pth, and of
each of its cases NAME_CASE.npy, the result (K, H, W), and NAME_CASE_labels.npy. A case has `name`, `test_cfg`, `scale`
(of Resize, width and height) or None, and `ratios` (of TestTimeAug, each also mirrored) or None.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import isanet  # first: with it mmseg can be imported
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmseg.datasets import CityscapesDataset
from mmseg.models.segmentors import SegTTAModel
from mmseg.utils import register_all_modules
from torch import Tensor, nn


def settings(config: str) -> dict[str, Any]:
    """Return what a configuration says of testing."""
    cfg = Config.fromfile(str(Path(isanet.mmseg.__file__).parent / ".mim" / "configs" / config))
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


@torch.no_grad()
def main() -> None:
    """Do the task."""
    task = json.loads(Path(sys.argv[1]).read_text())
    register_all_modules()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    output = Path(task["output"])
    (output / "settings.json").write_text(json.dumps({name: settings(name) for name in task["settings"]}))
    for part in task["models"]:
        torch.manual_seed(part["seed"])
        model, cfg = isanet.build(part["config"])
        isanet.randomise(model)
        meta = {"cfg": cfg.pretty_text, "dataset_meta": CityscapesDataset.METAINFO}
        torch.save({"meta": meta, "state_dict": model.state_dict()}, output / f"{part['name']}.pth")
        model.eval()
        for case in part["cases"]:
            model.test_cfg = ConfigDict(case["test_cfg"])
            ways = (several, case["ratios"]) if case["ratios"] else (single, case["scale"])
            result, labels = ways[0](model, task["picture"], ways[1])
            stem = f"{part['name']}_{case['name']}"
            np.save(output / f"{stem}.npy", result.numpy())
            np.save(output / f"{stem}_labels.npy", labels.numpy().astype(np.uint8))


if __name__ == "__main__":
    main()
