"""The parts of `gpu`: what each measures, in which order, for how long at most."""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu_works import COMPILED, setting
from benchmarks.harness import MIB, OURS, PEER, Cell, Measurement, Report, Task, ours, ours_and_peer, started
from benchmarks.host_waits import KINDS
from benchmarks.works import SETS
from isaseg.console import counted
from isaseg.errors import ConfigError

UNREACHED = "not reached"  # the error of a row until it is measured
TYPES = ("bfloat16", "tf32", "float32")

_SMALL = ["data.crop_size=[32,32]", "data.batch_size=2", "head.channels=16", "head.aux_channels=16"]  # if dry
_ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Part:
    """Rows that are measured together.

    Attributes:
        name: For people.
        table: Where the rows stand; parts may share one.
        rows: What to measure.
        seconds: Limit; when it is over, the process of the part is ended.
        measure: Fills rows within so many seconds, or raises.
    """

    name: str
    table: Report
    rows: list[Measurement]
    seconds: float
    measure: Callable[[list[Measurement], float], None]


def plan(options: Namespace, device: str, folder: Path) -> list[Part]:
    """Return the parts, the most useful first; on a GPU their limits add up to less than eight minutes.

    Args:
        options: Of the command.
        device: cpu or cuda.
        folder: Where training runs may write.
    """
    dry = options.dry
    block, *peer = _blocks(dry, device, options.peer)
    network, compiled = _networks(dry, device)
    parts = [
        block,
        network,
        _waits(dry, folder),
        _lamps(dry, folder),
        _losses(dry, device),
        *peer,
        compiled,
    ]
    for part in parts:
        part.seconds = 300 if dry else part.seconds  # a slow CPU is no fault
    return parts


# ---------------------------------------------------------------- how a part is measured


def serve_rows(task: Task, table: Report, rows: list[Measurement], seconds: float) -> None:
    """Let one process measure one row after the other, peak memory and time.

    Raises:
        ConfigError: If the process ends before the last row, or is ended after `seconds`.
    """
    pipeline = rows[0].pipeline
    with counted(table.name, len(rows)) as advance, started({pipeline: task}, seconds) as served:
        process = served[pipeline]
        table.facts[pipeline] = process.facts
        for row in rows:
            reply = process.ask({"what": "memory", "work": row.work, "kind": row.kind})
            if "error" not in reply:
                row.peak_bytes = reply["bytes"]
                reply = process.ask({"what": "time", "work": row.work, "kind": row.kind})
            row.error = reply.get("error")
            row.seconds = [] if row.error else [reply["seconds"]]
            advance()


def train(words: Sequence[str], seconds: float) -> None:
    """Run `src/train.py` with words, which may name classes of `benchmarks`.

    Raises:
        ConfigError: If it fails, with the last line that it printed, or is ended after `seconds`.
    """
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "ISASEG_TRUST": "benchmarks"}
    command = [sys.executable, str(_ROOT / "src" / "train.py"), *words]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, env=env
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"stopped after {seconds:g} s") from error
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a GPU that hangs can hold a process that was killed
                process.wait(10)
        log.seek(0)
        last = (log.read().strip().splitlines() or ["it printed nothing"])[-1]
    if code != 0:
        raise ConfigError(f"train.py ended with exit code {code}: {last}")


# ---------------------------------------------------------------- the parts


def _row(work: str, kind: str, pipeline: str = OURS, **counts: float) -> Measurement:
    return Measurement(work, kind, pipeline, counts, error=UNREACHED)


def _column(key: str, digits: int, scale: float = 1) -> Cell:
    return lambda rows, row: f"{scale * row.counts[key]:.{digits}f}" if key in row.counts else ""


def _blocks(dry: bool, device: str, peer: Path | None) -> list[Part]:
    """Return the part of our blocks and, where it is installed, that of mmsegmentation's."""
    sides, channels = ((9,), 16) if dry else ((97, 128, 256, 512), 512)
    table = Report(
        "block", f"A block of {channels} channels on one map, forward, and in training backward too"
    )
    tasks = ours_and_peer(peer, "gpu", part="block", channels=channels, device=device)
    tasks[OURS] = ours("gpu_works", **tasks[OURS][1])
    table.rows = [
        _row(f"{block} {mode} {side}", kind, pipeline)
        for side in sides
        for block in ("isa", "dense")
        for mode in ("forward", "training")
        for kind in TYPES
        for pipeline in tasks
    ]
    if peer is None:
        table.lines = [f"{PEER} is not measured: it is not installed (`make peers`)."]

    def part(name: str, seconds: float) -> Part:
        # dense attention last, the largest map at the very end, since it may take all the time that is left
        rows = [row for row in table.rows if row.pipeline == name]
        rows.sort(key=lambda row: row.side if row.work.startswith("dense") else 0)
        measure = partial(serve_rows, tasks[name], table)
        return Part(f"block of {name}", table, rows, seconds, measure)

    limits = {OURS: 90, PEER: 60}
    return [part(name, limits[name]) for name in tasks]


def _networks(dry: bool, device: str) -> tuple[Part, Part]:
    """Return the parts of networks as they are, and of compiled ones."""
    table = Report("network", "ISANet: training steps and evaluation", columns={"images/s": _images_a_second})
    backbones = ["tiny_d8"] if dry else ["resnet50_d8", "resnet101_d8"]
    words, picture, compiler = (_SMALL, [32, 64], "eager") if dry else ([], None, "inductor")
    task = ours("gpu_works", part="network", device=device, words=words, picture=picture, compiler=compiler)
    batch: dict[str, int] = {}
    names = list(SETS)[:1] if dry else list(SETS)
    for data in names:
        cfg = setting(data, *words)
        batch[data] = cfg.data.batch_size
        shown = "{}×{}".format(*cfg.data.crop_size), "{}×{}".format(*(picture or SETS[data][2]))
        table.lines.append(
            f"- {data}: {cfg.data.num_classes} classes; a step of {batch[data]} images of {shown[0]}, an evaluation of "
            f"one of {shown[1]} with the fused network"
        )
    plain = [
        _row(f"{backbone} {data} {what}", kind, images=batch[data] if what == "step" else 1)
        for kind in (TYPES[2:] if dry else TYPES)
        for backbone in backbones
        for data in names
        for what in ("step", "evaluation")
    ]
    compiled = [
        _row(f"{backbone} {data} step", f"bfloat16{COMPILED}", images=batch[data])
        for data in names
        for backbone in backbones
    ]
    table.rows = [*plain, *compiled]
    table.lines.append("- `compile` is of training alone: an evaluation never compiles.")
    measure = partial(serve_rows, task, table)
    return (
        Part("network", table, plain, 95, measure),
        Part("network, compiled", table, compiled, 90, measure),
    )


def _images_a_second(rows: list[Measurement], row: Measurement) -> str:
    return f"{row.counts['images'] / row.median:.1f}" if row.seconds else ""


def _losses(dry: bool, device: str) -> Part:
    table = Report("loss", "Losses, forward and backward, from logits of stride 8; labels from such logits")
    names = list(SETS)[:1] if dry else list(SETS)
    table.rows = [
        _row(f"{loss} {data}", kind)
        for data in names
        for loss in ("ce", "ohem")
        for kind in ("bfloat16", "float32")
    ]
    table.rows += [_row(f"labels {data}", "float32") for data in names]
    task = ours("gpu_works", part="loss", device=device, words=_SMALL if dry else [])
    return Part("loss", table, table.rows, 30, partial(serve_rows, task, table))


def _waits(dry: bool, folder: Path) -> Part:
    """Return the part that counts the waits of a run on Lamps after its first ten steps."""
    columns = {"waits a step": _column("waits", 2), "steps": _column("steps", 0)}
    table = Report("waits", "Waits for the GPU in a step of a training run", kind="step", columns=columns)
    table.rows = [_row("waits", kind, "train.py") for kind in KINDS.values()]
    path = folder / "waits.json"
    steps, skip, every = (8, 2, 3) if dry else (61, 10, 10)
    words = [
        *_run_words(dry, steps, folder / "waits"),
        f"trainer.val_check_interval={steps}",
        f"trainer.log_every_n_steps={every}",
        "data.val_length=2",
        "score_test=false",
        "pictures=0",
        "+callbacks.waits._target_=benchmarks.host_waits.HostWaits",
        f"+callbacks.waits.path={path}",
        f"+callbacks.waits.skip={skip}",
    ]

    def measure(rows: list[Measurement], seconds: float) -> None:
        train(words, seconds)
        found = json.loads(path.read_text())
        for row in rows:
            steps, places = found[row.kind]["steps"], found[row.kind]["waits"]
            row.error = "not counted on a CPU" if dry else None
            row.counts = {"steps": steps} if dry else {"steps": steps, "waits": sum(places.values()) / steps}
            table.lines += [f"- {row.kind}: {n / steps:.2f} at `{place}`" for place, n in places.items()]

    return Part("waits", table, table.rows, 45, measure)


def _lamps(dry: bool, folder: Path) -> Part:
    """Return the part that trains on Lamps from the start of the command to its end."""
    steps = 2 if dry else 300
    columns = {
        "s": _column("seconds", 1),
        "ms a step": _column("step", 1, 1e3),
        "mIoU, %": _column("mIoU", 2, 100),
    }
    table = Report("lamps", "A run on Lamps, from the start of the command to its end", columns=columns)
    table.rows = [_row(f"{steps} steps", "32-true" if dry else "bf16-mixed", "train.py")]
    words = _run_words(dry, steps, folder / "lamps")

    def measure(rows: list[Measurement], seconds: float) -> None:
        start = time.perf_counter()
        train(words, seconds)
        took = time.perf_counter() - start
        metrics = json.loads((folder / "lamps" / "metrics.json").read_text())
        (row,) = rows
        row.counts = {"seconds": took, "step": metrics["seconds_per_step"], "mIoU": metrics["val/mIoU"]}
        row.peak_bytes = None if dry else round(metrics["peak_memory_mib"] * MIB)
        row.error = None

    return Part("lamps", table, table.rows, 60, measure)


def _run_words(dry: bool, steps: int, folder: Path) -> list[str]:
    words = [f"trainer.max_steps={steps}", "logger=csv", f"run_dir={folder}"]
    few = ["data.batch_size=2", "data.val_length=2", "score_test=false", "pictures=0"]
    return [*words, "trainer.accelerator=cpu", *few] if dry else [*words, "trainer=gpu"]
