"""A stand-in for train.py, and jobs that it trains."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from isaseg.sweep.jobs import Job
from tests.conftest import compose_overrides

# A few steps of the real train.py
TINY = ["data.val_length=4", "data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=2"]
TINY += ["logger=csv", "pictures=0", "score_test=false", "data.num_workers=0"]
TINY += ["data.crop_size=[32,32]", "head.channels=16"]

# Notes that it starts and ends, waits while its file is there, saves if it is asked to end, continues from what was
# saved, and fails for seed 13.
FAKE_TRAIN = """
import json, os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, seed = pathlib.Path(words["run_dir"].strip("'")), words["seed"]
here = pathlib.Path(__file__).parent
def note(*columns):
    with (here / "order.txt").open("a") as file:
        print(*columns, file=file)
def save(number, frame):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
note("start", seed, os.environ.get("CUDA_VISIBLE_DEVICES") or "-", words.get("resume"), os.getpid())
while (here / f"hold{seed}").exists() and not (folder / "checkpoints").exists():
    time.sleep(0.02)
note("end", seed)
if seed == "13":
    sys.exit("no such luck")
(folder / "metrics.json").write_text(json.dumps({"val/mIoU": int(seed) / 100}))
"""


def order(script: Path, what: str = "start") -> list[list[str]]:
    """Return what the jobs noted of their starts or ends, in order: seed, and for a start GPUs, `resume` and pid."""
    path = script.with_name("order.txt")
    lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
    return [line[1:] for line in lines if line[0] == what]


def jobs_of(folder: Path, seeds: Sequence[int], *overrides: str) -> list[Job]:
    """Return a job for each seed; composed once, which takes a second."""
    cfg = compose_overrides(f"output_dir={folder / 'out'}", *overrides)
    found = []
    for seed in seeds:
        mine = cfg.copy()
        mine.seed, mine.run_dir = seed, str(folder / "runs" / str(seed))
        words = (*overrides, f"seed={seed}", f"run_dir='{mine.run_dir}'")
        found.append(Job(f"seed {seed}", Path(mine.run_dir), words, mine))
    return found


def until(condition: Callable[[], Any]) -> Any:
    """Return what `condition` gives once it is not None, False or empty."""
    end = time.monotonic() + 60
    while (value := condition()) is None or value is False or value == []:
        assert time.monotonic() < end, "did not happen within a minute"
        time.sleep(0.02)
    return value
