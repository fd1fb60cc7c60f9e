"""How mmsegmentation trains: some steps, its loss and its schedule. Run by the Python that has mmseg.

usage: mmseg_training.py TASK.json
The task: `output`, a folder; `config`, a file below mmseg's configs; `seed`; `steps`; `batch`, an .npz with `image`,
uint8 BGR (B, 3, H, W), and `mask`, uint8 (B, H, W); `losses`, an .npz with `logits` (B, K, H, W), `target` and `plain`,
which has labels alone, and `weights` (K); `power`, `floor` and `length` of a schedule. Left are start.pth, its network
with random weights; step1.pth, step2.pth, ..., its weights and statistics after each step, all in float64; and
result.json, with `steps` (losses and rate of each), `losses` (of each case, null where it fails) and `rates`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import mmseg_side  # noqa: F401  (first: its stand-in, without which mmseg does not import)
import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.structures import PixelData
from mmseg.datasets import CityscapesDataset
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from mmseg_side import read_config
from torch import nn


def network(config: Any, seed: int) -> nn.Module:
    """Return its network without dropout, as it begins, but for random norms and biases, in float64.

    The last norm of a residual block begins with 0, which hides the block; with weights of one, a step of the published
    rate would move the first convolutions by more than their size.
    """
    torch.manual_seed(seed)
    config.model.pretrained = None
    for head in (config.model.decode_head, config.model.auxiliary_head):
        head.dropout_ratio = 0.0
    model = revert_sync_batchnorm(MODELS.build(config.model))
    model.init_weights()
    for name, part in model.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, *((0.1, 0.3) if name.endswith("bn3") else (0.5, 1.0)))
        if getattr(part, "bias", None) is not None:
            nn.init.normal_(part.bias, 0.0, 0.3)
    return model.double().train()


def scheduler(config: Any, optimizer: Any, length: int, **other: float) -> Any:
    """Return the schedule of a configuration, for another number of steps."""
    (node,) = config.param_scheduler
    return PARAM_SCHEDULERS.build({**node, **other, "end": length}, default_args={"optimizer": optimizer})


def train(task: dict[str, Any], output: Path) -> list[dict[str, float]]:
    """Take the steps; return losses and rate of each."""
    config = read_config(task["config"])
    model = network(config, task["seed"])
    meta = {"cfg": config.pretty_text, "dataset_meta": CityscapesDataset.METAINFO}
    torch.save({"meta": meta, "state_dict": model.state_dict()}, output / "start.pth")
    optimizer = build_optim_wrapper(model, config.optim_wrapper)
    schedule = scheduler(config, optimizer, task["steps"])
    batch = np.load(task["batch"])
    samples = []
    for mask in batch["mask"]:
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=torch.from_numpy(mask)[None].long())))
    model.data_preprocessor.size = batch["mask"].shape[1:]
    data = {"inputs": list(torch.from_numpy(batch["image"])), "data_samples": samples}
    found = []
    for step in range(1, task["steps"] + 1):
        (rate,) = set(optimizer.get_lr()["lr"])
        losses = model.train_step(data, optimizer)
        schedule.step()
        found.append({"lr": rate} | {key: float(value) for key, value in losses.items()})
        torch.save(model.state_dict(), output / f"step{step}.pth")
    return found


def losses(task: dict[str, Any]) -> dict[str, float | None]:
    """Return what its loss says, by `avg_non_ignore`, the target and whether classes have weights."""
    held = np.load(task["losses"])
    found = {}
    for labelled in (False, True):
        for target in ("target", "plain"):
            for weights in (None, held["weights"].tolist()):
                node = {"type": "CrossEntropyLoss", "avg_non_ignore": labelled, "class_weight": weights}
                name = f"{'labelled' if labelled else 'all'} {target}{' weighted' if weights else ''}"
                try:
                    logits, labels = (torch.from_numpy(held[key]) for key in ("logits", target))
                    found[name] = float(MODELS.build(node)(logits, labels.long(), ignore_index=255))
                except IndexError:
                    found[name] = None
    return found


def rates(task: dict[str, Any]) -> list[float]:
    """Return the rate of each step of a schedule that begins with 1."""
    config = read_config(task["config"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    schedule = scheduler(config, optimizer, task["length"], power=task["power"], eta_min=task["floor"])
    found = []
    for _ in range(task["length"]):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def main() -> None:
    """Do the task."""
    task = json.loads(Path(sys.argv[1]).read_text())
    register_all_modules()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    output = Path(task["output"])
    found = {"steps": train(task, output), "losses": losses(task), "rates": rates(task)}
    (output / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
