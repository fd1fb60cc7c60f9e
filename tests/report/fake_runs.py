"""Run folders as training leaves them, of every kind, without any training."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from isaseg.report import rows, runs
from tests.conftest import compose_overrides

HOSTILE = "<script>alert('$x_1$')</script>"
CLASSES = ("background", "red & $plain$", "</script><b>", "lamp")
ISA = "attention.group_size=[{},{}]"


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose_overrides(*overrides)


def write_run(
    folder: Path,
    *overrides: str,
    seed: int = 0,
    curve: Mapping[int, float] | None = None,
    finished: bool = True,
    facts: bool = True,
    pictures: int = 0,
) -> Path:
    """A run folder as train.py leaves it; the best checkpoint is 0.01 better than the best of the curve."""
    folder.mkdir(parents=True)
    cfg = OmegaConf.create(OmegaConf.to_container(_composed(overrides)))
    cfg.seed = seed
    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    curve = {50: 0.3, 100: 0.9} if curve is None else curve
    lines = ["step,train/loss,val/loss,val/mIoU"]
    for step in range(10, max(curve, default=20) + 1, 10):
        lines.append(
            f"{step},{1 / step:.6g},{1 - curve[step] if step in curve else ''},{curve.get(step, '')}"
        )
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if facts:
        size = math.prod(cfg.attention.get("group_size", [32, 32]))
        known = {"parameters": 400_000, "mult_adds": 6e8 + 1e6 * size, "attention_mult_adds": 1e6 * size}
        known |= {"attention_score_mib": size / 4, "device": "cpu", "git_commit": "0" * 40}
        (folder / "facts.json").write_text(json.dumps(known))
    if finished:
        best = max(curve.values()) + 0.01
        iou = {name: best - 0.1 * place for place, name in enumerate(CLASSES)} | {"never": None}
        scores = {"val/mIoU": best, "step": 50, "seconds_per_step": 0.1 + 0.01 * seed, "val/IoU": iou}
        (folder / "metrics.json").write_text(json.dumps(scores))
    for number in range(pictures):
        (folder / "pictures").mkdir(exist_ok=True)
        grain = np.random.default_rng(number).integers(0, 255, (24, 72, 3)).astype(np.uint8)
        Image.fromarray(grain).resize((1200, 400)).save(folder / "pictures" / f"{number:02d}_val.png")
    return folder


def write_study(top: Path) -> Path:
    """Runs of every kind: two rows of three seeds, an old one, a broken one, failed ones, hostile names."""
    ends = {"dense": (0.90, 0.92, 0.94), ISA.format(8, 8): (0.91, 0.95, 0.93)}
    for attention, values in ends.items():
        option = (attention,) if "size" in attention else (f"attention={attention}",)
        for seed, end in enumerate(values):
            curve = {50: 0.4 + 0.1 * seed, 100: end}
            write_run(
                top / f"{attention[:9]}-{seed}", *option, seed=seed, curve=curve, pictures=2 * (seed == 0)
            )
    for seed, end in enumerate((0.80, 0.86)):
        curve = {50: 0.3, 100: end}
        write_run(top / f"old-{seed}", ISA.format(4, 4), seed=seed, curve=curve, facts=False)
    mixed = ISA.format(4, 8)
    write_run(top / "mixed-0", mixed, curve={50: 0.2, 100: 0.7})
    failed = write_run(top / "mixed-1", mixed, seed=1, curve={50: 0.2}, finished=False)
    (failed / "failed.txt").write_text(f"expected a loss, got {HOSTILE}\n\nTraceback\n")
    (failed / "log.txt").write_text("said\n")
    write_run(top / "mixed-2", mixed, seed=2, curve={50: 0.25}, finished=False)
    never = top / HOSTILE.replace("/", "|")
    never.mkdir()
    (never / "failed.txt").write_text("no such data\n")
    return top


def compared(*folders: Path, **options: Any) -> rows.Comparison:
    return rows.compare(runs.read_runs(folders), **options)
