"""What all benchmarks share: processes that take turns, rows of measurements, and the report that is written of them."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isaseg.console import counted
from isaseg.errors import ConfigError
from isaseg.files import write_text

OURS, PEER = "isaseg", "mmsegmentation"
MIB = 2**20

_HERE = Path(__file__).resolve().parent

Task = tuple[list[str], dict[str, Any]]  # the command of a process, and the first line that it reads


def ours(benchmark: str, **task: Any) -> Task:
    """Return the task of a process that runs our side of a benchmark."""
    return [sys.executable, "-m", f"benchmarks.{benchmark}"], task


def ours_and_peer(peer: Path | None, benchmark: str, **task: Any) -> dict[str, Task]:
    """Return the task of our process, and of mmsegmentation's if `peer` is a Python that has it."""
    tasks = {OURS: ours(benchmark, **task)}
    if peer is not None:
        tasks[PEER] = [str(peer), str(_HERE / "mmseg_peer.py")], {"benchmark": benchmark, **task}
    return tasks


class Served:
    """A process that measures when it is asked and is idle otherwise; `serve` is its other end.

    Attributes:
        facts: What the process reports when it has started.
    """

    def __init__(self, task: Task) -> None:
        first = {"threads": 1, "device": "cpu", **task[1]}
        path = [str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"}
        env["OMP_NUM_THREADS"] = str(first["threads"])
        # a file, because a pipe that nobody reads would block the process; `end` closes it
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            task[0], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=env
        )
        self.facts: dict[str, Any] = {}
        self._write(first)

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer.

        Raises:
            ConfigError: If the process ended; with the last line it printed.
        """
        self._write(question)
        return self.read()

    def read(self) -> dict[str, Any]:
        """Return the next line of the process, see `ask`."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            lines = self.log.read().strip().splitlines() or ["it printed nothing"]
            raise ConfigError(f"expected a measured process to answer, but it ended: {lines[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):  # a GPU that hangs can hold a process that was killed
            self.process.communicate(timeout=10)
        self.log.close()

    def _write(self, content: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `read` reports it
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()


@contextmanager
def started(tasks: Mapping[str, Task], seconds: float = math.inf) -> Iterator[dict[str, Served]]:
    """Start processes side by side, yield them when all are idle, and end them all, after `seconds` at the latest.

    Raises:
        ConfigError: If a process ended before it had answered, or was ended because the time was over.
    """
    served: dict[str, Served] = {}
    over = threading.Event()

    def stop() -> None:
        over.set()
        for process in served.values():
            process.process.kill()  # whoever waits for its answer is told that it ended

    clock = threading.Timer(seconds, stop)
    clock.daemon = True
    try:
        for label, task in tasks.items():
            served[label] = Served(task)
        if seconds < math.inf:
            clock.start()
        for process in served.values():
            process.facts = process.read()
        yield served
    except ConfigError as error:
        if over.is_set():
            raise ConfigError(f"stopped after {seconds:g} s") from error
        raise
    finally:
        clock.cancel()
        for process in served.values():
            process.end()


@dataclass(eq=False)
class Measurement:
    """One work of one pipeline."""

    work: str  # what is done, e.g. "forward 128"
    kind: str  # how: a floating-point type, a kind of input, a number of loader processes
    pipeline: str  # who does it; the key of its process
    counts: dict[str, float] = field(default_factory=dict)  # what is computed rather than measured
    peak_bytes: int | None = None  # by how much memory rises while the work runs
    seconds: list[float] = field(default_factory=list)  # one value a round
    error: str | None = None  # why a measurement is missing

    @property
    def median(self) -> float:
        """Median seconds of the rounds; NaN without any."""
        return statistics.median(self.seconds or [float("nan")])

    @property
    def side(self) -> int:
        """Side of the map, the last word of the work."""
        return int(self.work.split()[-1])


def take_turns(
    served: Mapping[str, Served], rows: Sequence[Measurement], rounds: int, title: str, memory: bool = True
) -> None:
    """Fill rows: once with the peak memory of each, then with its time in each round.

    A round asks for every row once, so that all of them meet the same states of the machine.
    """
    questions = ["memory"] * memory + ["time"] * rounds
    with counted(title, len(questions) * len(rows)) as advance:
        for what in questions:
            for row in rows:
                if row.error is None:
                    reply = served[row.pipeline].ask({"what": what, "work": row.work, "kind": row.kind})
                    row.error = reply.get("error")
                    if what == "memory":
                        row.peak_bytes = reply.get("bytes")
                    elif row.error is None:
                        row.seconds.append(reply["seconds"])
                advance()


def counterpart(rows: Sequence[Measurement], row: Measurement, pipeline: str = PEER) -> Measurement | None:
    """Return the row of another pipeline at the same work; None if there is none."""
    key = (row.work, row.kind, pipeline)
    return next((r for r in rows if (r.work, r.kind, r.pipeline) == key), None)


def ratios(rows: Sequence[Measurement], row: Measurement) -> list[float]:
    """Return mmsegmentation's time divided by the row's in each round; empty if it was not measured."""
    peer = counterpart(rows, row)
    if peer is None or peer.error or row.error:
        return []
    return [a / b for a, b in zip(peer.seconds, row.seconds, strict=True)]


def with_range(values: Sequence[float], scale: float = 1, digits: int = 2) -> str:
    """Return the median, with the lowest and the highest of several values; nothing for no values."""
    if not values:
        return ""
    median, low, high = (scale * v for v in (statistics.median(values), min(values), max(values)))
    alone = f"{median:.{digits}f}"
    return alone if len(values) == 1 else f"{alone} ({low:.{digits}f} to {high:.{digits}f})"


Cell = Callable[[list[Measurement], Measurement], str]  # of a table; given all rows and one of them


@dataclass
class Report:
    """What a benchmark found: a table on the terminal, `NAME.json` and `NAME.md`."""

    name: str
    title: str
    kind: str = "type"  # heading of the rows' kind
    columns: Mapping[str, Cell] = field(default_factory=dict)  # headings and cells of this benchmark alone
    facts: dict[str, Any] = field(default_factory=dict)  # about the machine and the settings
    rows: list[Measurement] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # what follows from the rows, in Markdown

    def measure(
        self, tasks: Mapping[str, Task], rows: list[Measurement], rounds: int, memory: bool = True
    ) -> None:
        """Start processes, let them take turns at rows, see `take_turns`, and add the rows to the report."""
        with started(tasks) as served:
            take_turns(served, rows, rounds, self.name, memory)
            self.facts |= next(iter(served.values())).facts
            self.facts |= {PEER: served[PEER].facts} if PEER in served else {}
        self.rows += rows

    def table(self) -> list[str]:
        """Return a Markdown table, without the columns in which nothing stands."""
        columns: dict[str, Cell] = {
            "work": lambda rows, row: row.work,
            self.kind: lambda rows, row: row.kind,
            "of": lambda rows, row: row.pipeline,
            "ms": lambda rows, row: row.error or with_range(row.seconds, 1e3, 1),
            "x mmseg": lambda rows, row: with_range(ratios(rows, row)),
            "peak MiB": lambda rows, row: "" if row.peak_bytes is None else f"{row.peak_bytes / MIB:.1f}",
            **self.columns,
        }
        filled = [[head, *(cell(self.rows, row) for row in self.rows)] for head, cell in columns.items()]
        filled = [column for column in filled if any(column[1:])]
        widths = [max(map(len, column)) for column in filled]
        rule = ["-" * width if n < 3 else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
        heading, *cells = zip(*filled, strict=True)
        return [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in (heading, rule, *cells)]

    def publish(self, folder: Path) -> None:
        """Print the report and write both files; may be called again as rows are added."""
        machine = in_words(self.facts)
        text = "\n".join([f"# {self.title}", "", f"{machine}.", "", *self.table(), "", *self.lines, ""])
        write(folder, self.name, text, self.content())
        print(f"{text}\nwritten: {folder / self.name}.json, {self.name}.md")

    def content(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        content = {**vars(self), "rows": [_plain(self.rows, row) for row in self.rows]}
        del content["columns"]
        return content


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the facts that are text or a number, in one line."""
    return ", ".join(f"{key} {value}" for key, value in facts.items() if type(value) in (str, int))


def write(folder: Path, name: str, text: str, content: Mapping[str, Any]) -> None:
    """Write NAME.json and NAME.md, each as a whole or not at all."""
    write_text(folder / f"{name}.json", json.dumps(content, indent=2) + "\n")
    write_text(folder / f"{name}.md", text)


def _plain(rows: Sequence[Measurement], row: Measurement) -> dict[str, Any]:
    """Return a row as JSON has it."""
    times = ratios(rows, row)
    return {
        **vars(row),
        "milliseconds": 1e3 * row.median if row.seconds else None,
        "times_mmseg": statistics.median(times) if times else None,
    }
