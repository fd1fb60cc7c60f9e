"""The efficiency comparison of context modules: what each takes, computed and measured, and how it grows."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.modules_count import Computed, Counter, largest_side
from benchmarks.modules_rows import ROWS, Setting
from benchmarks.served import Served
from isaseg.console import counted
from isaseg.errors import ConfigError

PARTS = ("block", "head")  # the context module alone; after a 3x3 convolution
SIDES = (32, 48, 64, 96, 128, 192, 256, 384, 512)  # of the growth curves


@dataclass
class Part:
    """A part of a row on one size of map: computed, and measured unless it did not fit into memory.

    Only the block is timed: the 3x3 convolution of the head takes the same in every row, see `measure`.
    """

    computed: Computed
    parameters: int
    measured_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass
class Entry:
    """A row on one size of map."""

    name: str
    label: str
    side: int
    attention_mult_adds: int
    score_bytes: int
    parts: dict[str, Part]
    scores: dict[str, int] = field(
        default_factory=dict
    )  # measured: mult_adds and bytes of scores and contexts alone


@dataclass
class Point:
    """One size of map of a growth curve; `stopped` says why it was not measured."""

    side: int
    computed: Computed
    measured_bytes: int | None = None
    seconds: float | None = None
    stopped: str | None = None


@dataclass
class Growth:
    """A row's block on growing maps; the largest side that fits into memory, None: beyond 4096."""

    name: str
    label: str
    largest: int | None
    points: list[Point]


@dataclass(frozen=True)
class Plan:
    """What is asked for: rows by name, sides, how everything is run, threads, rounds, and bytes it may take."""

    names: Sequence[str]
    sides: Sequence[int]
    setting: Setting
    threads: int
    rounds: int
    memory: int


def measure(plan: Plan) -> tuple[dict[str, Any], list[Entry]]:
    """Return facts on the machine, and an entry for each size and row.

    Among the facts are `reduction_seconds` of each side: of the 3x3 convolution with batch norm and ReLU alone. Memory is
    measured in a process for each row, one after the other; time in one for each row, which take turns.
    """
    names = list(plan.names)
    total = len(plan.sides) * (len(names) * (len(PARTS) + plan.rounds) + plan.rounds)
    entries: dict[tuple[str, int], Entry] = {}
    with counted("attention", total) as advance:
        for name in names:
            counter = Counter(ROWS[name], plan.setting)
            with _served(plan, name, mapped=True) as process:
                for side in plan.sides:
                    entries[name, side] = entry = _entry(plan, counter, name, side)
                    _measure_memory(entry, process, advance)
                facts = process.facts
        facts = {**facts, "reduction_seconds": _measure_time(plan, entries, advance)}
    return facts, [entries[name, side] for side in plan.sides for name in names]


def _entry(plan: Plan, counter: Counter, name: str, side: int) -> Entry:
    cost = counter.module.cost(side, side)  # type: ignore[operator]
    parts = {}
    for part in PARTS:
        computed = counter(part, side)
        own = sum(p.numel() for p in counter.module.parameters())
        first, width = plan.setting.channels
        parts[part] = Part(computed, own + (9 * first * width + 2 * width if part == "head" else 0))
    if parts["block"].computed.mult_adds != cost.mult_adds:
        raise AssertionError(
            f"{name}: cost() says {cost.mult_adds} multiply-adds, torch counts {parts['block'].computed}"
        )
    width = torch.tensor([], dtype=getattr(torch, plan.setting.dtype)).element_size()
    scores = cost.score_entries * width * plan.setting.batch
    return Entry(name, ROWS[name].label, side, cost.attention_mult_adds, scores, parts)


def _measure_memory(entry: Entry, process: Served, advance: Callable[[], None]) -> None:
    for name, part in entry.parts.items():
        reply = process.ask({"what": "memory", "part": name, "side": entry.side})
        part.measured_bytes, part.error = reply.get("bytes"), reply.get("error")
        advance()
    if ROWS[entry.name].held:
        for what, key in (("memory", "bytes"), ("count", "mult_adds")):
            reply = process.ask({"what": what, "part": "scores", "side": entry.side})
            if reply.get(key) is not None:
                entry.scores[key] = reply[key]


def _measure_time(
    plan: Plan, entries: Mapping[tuple[str, int], Entry], advance: Callable[[], None]
) -> dict[int, list[float]]:
    """Time the blocks in turns, then the convolution before them; return the seconds of that by side."""
    with ThreadPoolExecutor() as pool:
        started = pool.map(lambda name: _start(plan, name, mapped=False), plan.names)
        processes = dict(zip(plan.names, started, strict=True))
    reduction: dict[int, list[float]] = {}
    try:
        for side in plan.sides:
            for _ in range(plan.rounds):
                for name, process in processes.items():
                    part = entries[name, side].parts["block"]
                    if part.error is None:
                        reply = process.ask({"what": "time", "part": "block", "side": side})
                        # what there was room for alone may not fit beside what the other processes hold
                        part.seconds += [reply["seconds"]] if "seconds" in reply else []
                    advance()
            question = {"what": "time", "part": "reduction", "side": side}
            for _ in range(plan.rounds):
                reply = processes[plan.names[0]].ask(question)
                reduction.setdefault(side, []).extend([reply["seconds"]] if "seconds" in reply else [])
                advance()
    finally:
        for process in processes.values():
            process.end()
    return reduction


def grow(plan: Plan, seconds: int) -> list[Growth]:
    """Return growth curves: computed for every size, measured up to what fits into memory and `seconds`."""
    curves = []
    with counted("growth", len(plan.names) * len(plan.sides)) as advance:
        for name in plan.names:
            counter = Counter(ROWS[name], plan.setting)
            points = [Point(side, counter("block", side)) for side in plan.sides]
            largest = largest_side(counter, "block", plan.memory)
            with _served(plan, name, mapped=True) as process:
                _measure_points(points, process, seconds, advance)
            curves.append(Growth(name, ROWS[name].label, largest, points))
    return curves


def _measure_points(
    points: Sequence[Point], process: Served, seconds: int, advance: Callable[[], None]
) -> None:
    """Measure one size after the other, until one fails or would take too long: each runs twice."""
    stopped, before = None, None
    for point in points:
        if before is not None and before.seconds is not None:
            expected = before.seconds * point.computed.mult_adds / max(before.computed.mult_adds, 1)
            if 2 * expected > seconds:
                stopped = stopped or f"more than {seconds} s"
        if stopped is None:
            try:
                reply = process.ask(
                    {"what": "memory", "part": "block", "side": point.side, "seconds": seconds}
                )
                point.measured_bytes, point.seconds = reply.get("bytes"), reply.get("seconds")
                stopped = reply.get("error")
            except ConfigError:
                if process.process.poll() != -14:  # SIGALRM: the time is over
                    raise
                stopped = f"more than {seconds} s"
        point.stopped = stopped
        before = point
        advance()


def check_device(device: str) -> None:
    """Raise a ConfigError for a device that is not there."""
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ConfigError(f"expected --device cpu, or cuda where a GPU is there, got '{device}'")


def free_memory(device: str) -> int:
    """Return nine tenths of the bytes that are free on the device."""
    if device.startswith("cuda"):
        return int(0.9 * torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(0.9 * free)


def _start(plan: Plan, name: str, mapped: bool) -> Served:
    task = {
        "row": name,
        "setting": plan.setting._asdict(),
        "threads": plan.threads,
        "memory": plan.memory,
        "mapped": mapped,
    }
    return Served([sys.executable, "-m", "benchmarks.modules_work"], task)


@contextmanager
def _served(plan: Plan, name: str, mapped: bool) -> Iterator[Served]:
    process = _start(plan, name, mapped)
    try:
        yield process
    finally:
        process.end()
