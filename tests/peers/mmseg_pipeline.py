"""What mmsegmentation's training pipelines make of pictures. Run by the Python that has mmseg.

usage: mmseg_pipeline.py TASK.json
The task: `output`, a folder, where NAME.npz is left of each part of three lists:
`places`, with `name`, `config` (below mmseg's configs), `size`, `count` and `seed`: what was drawn of places, as
`tests.draws.place` reads it, without changes of colours;
`colours`, likewise without a size, and without changes of place;
`padding`, with `name`, `config` and `picture` (an .npz with image, RGB, and mask): image, in grey levels again, and mask
as they go into the network, with nothing random, and half the size that the configuration gives pictures.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mmseg_import  # noqa: F401, I001  (first: its stand-in for mmcv.ops, without which mmseg does not import)
import cv2
import mmseg
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from tests.draws import colours, palette, place, ramp, stripes, table


def read(name: str) -> tuple[Config, list[dict[str, Any]]]:
    """Return a configuration below mmseg's configs and its training pipeline but for loading."""
    cfg = Config.fromfile(str(Path(mmseg.__file__).parent / ".mim" / "configs" / name))
    dataset = cfg.train_dataloader.dataset
    steps = dataset.datasets[0].pipeline if "datasets" in dataset else dataset.pipeline
    assert [step.type for step in steps[:2]] == ["LoadImageFromFile", "LoadAnnotations"]
    return cfg, [dict(step) for step in steps[2:]]


def sample(image: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
    """Return what loading gives: the image in BGR."""
    size = image.shape[:2]
    named = {"img": image[..., ::-1].copy(), "gt_seg_map": mask, "seg_fields": ["gt_seg_map"]}
    return {**named, "img_shape": size, "ori_shape": size}


def draw_places(task: dict[str, Any]) -> dict[str, Any]:
    """Return places of crops of a ramp."""
    steps = read(task["config"])[1]
    crop = next(step["crop_size"] for step in steps if step["type"] == "RandomCrop")
    pipeline = Compose(
        [step for step in steps if step["type"] in ("RandomResize", "RandomCrop", "RandomFlip")]
    )
    size = tuple(task["size"])
    loaded = sample(ramp(*size), stripes(*size))
    np.random.seed(task["seed"])
    found = []
    for _ in range(task["count"]):
        part = pipeline(dict(loaded))["img"][..., ::-1]
        whole, filled = np.zeros((*crop, 3), np.uint8), np.zeros(crop, bool)
        whole[: part.shape[0], : part.shape[1]] = part
        filled[: part.shape[0], : part.shape[1]] = True
        found.append(place(whole, filled, size))
    return table(found)


def draw_colours(task: dict[str, Any]) -> dict[str, Any]:
    """Return changes of colours of the palette."""
    pipeline = Compose([step for step in read(task["config"])[1] if step["type"] == "PhotoMetricDistortion"])
    image = palette()
    loaded = sample(image, np.zeros(image.shape[:2], np.uint8))
    np.random.seed(task["seed"])
    found = [colours(pipeline(dict(loaded))["img"][..., ::-1]) for _ in range(task["count"])]
    assert np.array_equal(loaded["img"][..., ::-1], image)
    return table(found)


def pad(task: dict[str, Any]) -> dict[str, Any]:
    """Return a picture as it goes into the network."""
    cfg, steps = read(task["config"])
    fixed = {"RandomResize": {"ratio_range": (0.5, 0.5)}, "RandomFlip": {"prob": 0.0}}
    steps = [{**step, **fixed.get(step["type"], {})} for step in steps]
    pipeline = Compose([step for step in steps if step["type"] != "PhotoMetricDistortion"])
    picture = np.load(task["picture"])
    packed = pipeline(sample(picture["image"], picture["mask"]))
    prepare = MODELS.build(cfg.model.data_preprocessor)
    ready = prepare(pseudo_collate([packed]), training=True)
    image = ready["inputs"][0] * prepare.std + prepare.mean
    mask = ready["data_samples"][0].gt_sem_seg.data[0]
    return {"image": image.permute(1, 2, 0).numpy(), "mask": mask.numpy()}


def main() -> None:
    """Do the task."""
    task = json.loads(Path(sys.argv[1]).read_text())
    register_all_modules()
    cv2.setNumThreads(1)
    for kind, make in (("places", draw_places), ("colours", draw_colours), ("padding", pad)):
        for part in task[kind]:
            np.savez(Path(task["output"]) / f"{part['name']}.npz", **make(part))


if __name__ == "__main__":
    main()
