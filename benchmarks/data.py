"""`data`: training samples a second, with and without the cache, beside mmsegmentation's pipeline."""

from argparse import Namespace
from functools import partial
from typing import Any

import cv2
from omegaconf import DictConfig, OmegaConf

from benchmarks.harness import OURS, Measurement, Report, Task, ours, ours_and_peer
from benchmarks.serve import Answer, serve
from benchmarks.works import Samples
from isaseg import config
from isaseg.data.dataset import SegmentationDataset
from isaseg.data.loader import collate
from isaseg.data.source import FileSource
from isaseg.data.tools.build_cache import build_cache
from isaseg.errors import ConfigError
from isaseg.training.memory import keep_freed_memory


def benchmark(options: Namespace) -> None:
    """Measure each data set: decode, random resize, crop with cat_max_ratio, flip, photometric distortion, in uint8.

    Ours and mmsegmentation's do what mmsegmentation's configurations say (protocol=mmseg).
    """
    columns = {"samples/s": lambda rows, row: f"{1 / row.median:.0f}"}
    report = Report("data", "training samples", kind="workers", columns=columns)
    for pair in options.sets:
        name, _, root = pair.partition("=")
        if not root:
            raise ConfigError(f"expected NAME=ROOT, such as cityscapes=/data/cityscapes, got '{pair}'")
        tasks = _tasks(options, name, root)
        rows = [Measurement(name, str(workers), label) for workers in options.workers for label in tasks]
        report.measure(tasks, rows, options.rounds, memory=False)
    report.publish(options.folder)


def _tasks(options: Namespace, name: str, root: str) -> dict[str, Task]:
    """Return the tasks of the pipelines on one data set, whose cache is built if it is absent."""
    cfg = _configuration(name, root)
    source = config.build(cfg.data, "data").source(options.split)
    if not isinstance(source, FileSource):
        raise ConfigError(f"expected a data set of files, got {name}")
    cache = options.output / "cache" / name
    source.cache = cache
    build_cache(source)
    transform: Any = OmegaConf.to_container(cfg.data.transform, resolve=True)
    theirs = {key: transform[key] for key in ("crop_size", "resize", "scale")}
    theirs["pairs"] = [[str(pair.image), str(pair.mask)] for pair in source.pairs]
    theirs["reduce_zero_label"] = source.ids.get(0) == source.ignore_index and source.ids.get(1) == 0
    reads_png = all(pair.mask is not None and pair.mask.suffix == ".png" for pair in source.pairs)
    common = {"name": name, "root": root, "split": options.split, "samples": options.samples}
    tasks = ours_and_peer(options.peer if reads_png else None, "data", cache=None, **common, **theirs)
    return {OURS: tasks.pop(OURS), f"{OURS}, cached": ours("data", cache=str(cache), **common), **tasks}


def _configuration(name: str, root: str, cache: str | None = None) -> DictConfig:
    words = [f"data={name}", "protocol=mmseg", "data.num_workers=0"]
    cfg = config.compose_from("train", words)
    cfg.data.root, cfg.data.cache = root, cache
    return cfg


def _sample(dataset: SegmentationDataset, index: int) -> dict[str, Any]:
    return dataset[(index % len(dataset), index)]  # each time with another crop


def _start(task: dict[str, Any]) -> Answer:
    cv2.setNumThreads(1)
    keep_freed_memory()  # as in training
    cfg = _configuration(task["name"], task["root"], task["cache"])
    data = config.build(cfg.data, "data")
    dataset = SegmentationDataset(data.source(task["split"]), data.transform)
    return Samples(partial(_sample, dataset), collate, task["samples"]).answer


if __name__ == "__main__":
    serve(_start)
