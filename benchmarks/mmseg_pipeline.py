"""mmsegmentation's training pipeline, timed. Run as a script by the Python that has mmseg, not by ours."""

import json
import sys
from functools import partial
from typing import Any

import mmseg_import  # type: ignore[import-not-found]  # noqa: F401

# isort: split
import cv2
import mmseg  # type: ignore[import-not-found]
import torch
from mmseg.registry import TRANSFORMS  # type: ignore[import-not-found]
from mmseg.utils import register_all_modules  # type: ignore[import-not-found]
from serve import Repeated, serve, timed_samples  # type: ignore[import-not-found]


class Pipeline(Repeated):  # type: ignore[misc]
    """The steps of its ISANet configurations over a list of files."""

    def __init__(self, task: dict[str, Any]) -> None:
        crop, resize = tuple(task["crop_size"]), task["resize"]
        scale = resize["size"][::-1] if "size" in resize else (resize["long_side"], resize["short_side"])
        zero = task["reduce_zero_label"]
        steps: list[dict[str, Any]] = [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "reduce_zero_label": zero},
            {
                "type": "RandomResize",
                "scale": tuple(scale),
                "ratio_range": tuple(task["scale"]),
                "keep_ratio": "size" not in resize,
            },
            {"type": "RandomCrop", "crop_size": crop, "cat_max_ratio": 0.75},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PhotoMetricDistortion"},
            {"type": "PackSegInputs"},
        ]
        self.steps = [TRANSFORMS.build(step) for step in steps]
        self.pairs, self.zero = task["pairs"], zero

    def __getitem__(self, index: int) -> Any:
        """Return sample `index`."""
        image, mask = self.pairs[index % len(self.pairs)]
        sample: Any = {
            "img_path": image,
            "seg_map_path": mask,
            "label_map": None,
            "reduce_zero_label": self.zero,
            "seg_fields": [],
        }
        for step in self.steps:
            sample = step(sample)
        return sample


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what mmseg prints is no answer
    register_all_modules()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    serve(
        partial(timed_samples, Pipeline(json.loads(sys.stdin.readline()))),
        {"version": mmseg.__version__},
        answers,
    )


if __name__ == "__main__":
    main()
