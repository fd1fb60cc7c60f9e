"""MmSegmentation's IoUMetric on label maps. Run by the Python that has mmseg.

usage: metrics.py TASK.json
The task: `pairs` (an .npz with `prediction0`, `target0`, ...), `num_classes`, `output` (a folder, where `result.json` is
left: `areas`, what it counted in the whole split: intersection, union, prediction and label of each class; `float32`, the
scores that it gives; `float64`, what its formulas give for these areas in double precision).
"""

import json
import sys
from pathlib import Path
from typing import Any

import isanet  # noqa: F401  (first: with it mmseg can be imported)
import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from torch import Tensor


def scores(areas: list[Tensor]) -> dict[str, Any]:
    """Return aAcc, IoU and Acc, and their means."""
    found = IoUMetric.total_area_to_metrics(*areas)
    means = {f"m{key}": float(np.nanmean(found[key])) for key in ("IoU", "Acc")}
    return {"aAcc": float(found["aAcc"]), **{k: found[k].tolist() for k in ("IoU", "Acc")}, **means}


def main() -> None:
    """Do the task."""
    task = json.loads(Path(sys.argv[1]).read_text())
    pairs = np.load(task["pairs"])
    metric = IoUMetric()
    metric.dataset_meta = {"classes": [str(c) for c in range(task["num_classes"])]}
    for number in range(len(pairs) // 2):
        maps = (torch.from_numpy(pairs[f"{key}{number}"])[None] for key in ("prediction", "target"))
        prediction, target = ({"data": labels.long()} for labels in maps)
        metric.process({}, [{"pred_sem_seg": prediction, "gt_sem_seg": target}])
    areas = [sum(part) for part in zip(*metric.results, strict=True)]
    result = {
        "areas": [area.tolist() for area in areas],
        "float32": scores(areas),
        "float64": scores([area.double() for area in areas]),
    }
    (Path(task["output"]) / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
