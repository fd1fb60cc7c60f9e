"""Our training pipeline as a process that is timed; the counterpart of mmseg_pipeline.py."""

import json
import sys
from functools import partial
from typing import Any

import cv2
import torch
from hydra import compose, initialize_config_dir

from benchmarks.serve import Repeated, serve, timed_samples
from isaseg import config
from isaseg.data.dataset import SegmentationDataset
from isaseg.data.loader import collate
from isaseg.data.module import SegmentationDataModule
from isaseg.training.memory import keep_freed_memory


class Samples(Repeated):
    """The pictures of a split over and over, each time with other crops."""

    collate = staticmethod(collate)

    def __init__(self, data: SegmentationDataModule, split: str) -> None:
        self.dataset = SegmentationDataset(data.source(split), data.transform)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample `index`, of the next unused step."""
        return self.dataset[(index % len(self.dataset), self.start + index)]


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_freed_memory()  # as in training
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        task = json.loads(sys.stdin.readline())
        cfg = compose("train", overrides=task["overrides"])
    samples = Samples(config.build(cfg.data, "data"), task["split"])
    serve(partial(timed_samples, samples), {"samples": len(samples.dataset)}, answers)


if __name__ == "__main__":
    main()
