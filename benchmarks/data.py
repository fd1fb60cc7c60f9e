"""Samples a second of the training pipeline: with and without the cache, beside mmsegmentation's."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.served import Served
from isaseg import config
from isaseg.data.source import FileSource
from isaseg.data.tools.build_cache import build_cache
from isaseg.errors import ConfigError
from isaseg.files import replace_file

_HERE = Path(__file__).parent


@dataclass
class Row:
    """One pipeline on one data set; `seconds` is a sample's, a median for each round, by number of workers."""

    data: str
    pipeline: str
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def milliseconds(self, workers: int) -> float:
        """Return the median of the rounds."""
        return 1e3 * statistics.median(self.seconds[workers])


def measure(
    name: str,
    root: str,
    split: str,
    peer: Path | None,
    workers: Sequence[int],
    samples: int,
    rounds: int,
    output: Path,
) -> list[Row]:
    """Time the pipelines on one data set in turns: a round asks each for `samples` samples.

    Both do what mmsegmentation's configuration says (protocol=mmseg): decode, random resize, crop with cat_max_ratio,
    flip, photometric distortion, tensors in uint8.

    Args:
        name: Data set.
        root: Its folder.
        split: Whose pictures.
        peer: Python that has mmsegmentation; None: ours alone.
        workers: Numbers of loader processes; 0: this core alone.
        samples: Samples in a round.
        rounds: Rounds.
        output: Folder of the cache, which is made if it is absent.
    """
    cfg, source = _source(name, root, split)
    cache = output / "cache" / name
    source.cache = cache
    build_cache(source)
    overrides = [f"data={name}", "protocol=mmseg", f"data.root={_quoted(root)}", "data.num_workers=0"]
    ours = [sys.executable, "-m", "benchmarks.our_pipeline"]
    served = {
        "isaseg": Served(ours, {"split": split, "overrides": [*overrides, "data.cache=null"]}),
        "isaseg, cached": Served(
            ours, {"split": split, "overrides": [*overrides, f"data.cache={_quoted(str(cache))}"]}
        ),
    }
    if peer is not None and all(p.mask is not None and p.mask.suffix == ".png" for p in source.pairs):
        served["mmsegmentation"] = Served([str(peer), str(_HERE / "mmseg_pipeline.py")], _task(cfg, source))
    rows = {label: Row(name, label) for label in served}
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(name, total=rounds * len(workers) * len(served))
            for _ in range(rounds):
                for number in workers:
                    for label, process in served.items():
                        seconds = process.ask({"samples": samples, "workers": number})["seconds"]
                        rows[label].seconds.setdefault(number, []).append(statistics.median(seconds))
                        progress.advance(bar)
    finally:
        for process in served.values():
            process.end()
    return list(rows.values())


def table(rows: Sequence[Row], workers: Sequence[int]) -> Table:
    """Return milliseconds and samples a second, and how many times as fast as mmsegmentation."""
    made = Table(title="training samples, medians of rounds taken in turns")
    made.add_column("data set")
    made.add_column("pipeline")
    for number in workers:
        what = "one core" if number == 0 else f"{number} workers"
        made.add_column(f"{what}: ms")
        made.add_column("samples/s")
        made.add_column("x mmseg")
    for row in rows:
        cells = []
        for number in workers:
            cells += [f"{row.milliseconds(number):.1f}", f"{1e3 / row.milliseconds(number):.0f}"]
            ratio = _ratio(rows, row, number)
            cells.append("" if ratio is None else f"{ratio:.2f}")
        made.add_row(row.data, row.pipeline, *cells)
    return made


def save(rows: Sequence[Row], workers: Sequence[int], path: Path) -> None:
    """Write everything that was measured as JSON."""
    content = [
        {
            "data": row.data,
            "pipeline": row.pipeline,
            "workers": number,
            "milliseconds": row.milliseconds(number),
            "times_mmseg": _ratio(rows, row, number),
            "rounds": [1e3 * s for s in row.seconds[number]],
        }
        for row in rows
        for number in workers
    ]
    with replace_file(path) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def _ratio(rows: Sequence[Row], row: Row, workers: int) -> float | None:
    """Return the median over the rounds of mmsegmentation's time divided by the row's; None if it was not measured."""
    theirs = [r for r in rows if r.data == row.data and r.pipeline == "mmsegmentation"]
    if not theirs:
        return None
    pairs = zip(theirs[0].seconds[workers], row.seconds[workers], strict=True)
    return statistics.median(a / b for a, b in pairs)


def _source(name: str, root: str, split: str) -> tuple[Any, FileSource]:
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[f"data={name}", "protocol=mmseg", f"data.root={_quoted(root)}"])
    source = config.build(cfg.data, "data").source(split)
    if not isinstance(source, FileSource):
        raise ConfigError(f"expected a data set of files, got {name}")
    return cfg, source


def _quoted(path: str) -> str:
    """Return a path as a value of Hydra's command line, whatever its characters."""
    return "'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _task(cfg: Any, source: FileSource) -> dict[str, Any]:
    transform: Any = OmegaConf.to_container(cfg.data.transform, resolve=True)
    return {
        "pairs": [[str(pair.image), str(pair.mask)] for pair in source.pairs],
        "crop_size": transform["crop_size"],
        "resize": transform["resize"],
        "scale": transform["scale"],
        "reduce_zero_label": source.ids.get(0) == source.ignore_index and source.ids.get(1) == 0,
    }
