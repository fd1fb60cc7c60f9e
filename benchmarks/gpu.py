"""`gpu`: what this project does on a GPU, in parts with a time limit each, in at most eight minutes."""

import logging
import subprocess
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_parts import UNREACHED, Part, plan
from benchmarks.harness import in_words, write
from benchmarks.serve import machine
from isaseg.errors import ConfigError
from isaseg.runs.facts import git_commit

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]


def benchmark(options: Namespace) -> None:
    """Measure part by part, the most useful first, and write what is known after each.

    Raises:
        ConfigError: If there is no GPU, unless the options ask for the dry form.
    """
    if not options.dry and not torch.cuda.is_available():
        raise ConfigError(
            "expected a GPU that torch can use, got none; run it on a machine with one, or add --dry to see on a CPU "
            "that every part runs"
        )
    device = "cpu" if options.dry else "cuda"
    facts = {**machine(device), "driver": _driver(device), "commit": git_commit(ROOT) or "unknown"}
    del facts["threads"]  # of this process, which measures nothing
    with tempfile.TemporaryDirectory() as runs:
        parts = plan(options, device, Path(runs))
        text = _write(options, facts, parts)
        for part in parts:
            run(part)
            text = _write(options, facts, parts)
    print(f"{text}\nwritten: {options.folder / 'gpu.json'}, gpu.md")


def run(part: Part) -> None:
    """Measure a part; what it could not measure says why, as the error of the row."""
    log.info("%s: at most %d s", part.name, part.seconds)
    reason = UNREACHED
    try:
        part.measure(part.rows, part.seconds)
    except Exception as error:  # whatever fails is of this part alone
        reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    for row in part.rows:
        if row.error == UNREACHED:
            row.error = " ".join(reason.split())  # a line of a table


def _write(options: Namespace, facts: dict[str, Any], parts: Sequence[Part]) -> str:
    title = "Benchmark of a GPU" if not options.dry else "Benchmark of a GPU, dry: tiny sizes on a CPU"
    lines = [f"# {title}", "", f"{in_words(facts)}.", ""]
    tables = list({id(part.table): part.table for part in parts}.values())
    for table in tables:
        lines += [f"## {table.title}", "", *table.table(), "", *table.lines, *[""] * bool(table.lines)]
    text = "\n".join(lines)
    content = {"title": title, "facts": facts, "parts": [table.content() for table in tables]}
    write(options.folder, "gpu", text, content)
    return text


def _driver(device: str) -> str | None:
    if device == "cpu":
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return next(iter(done.stdout.split()), "unknown") if done.returncode == 0 else "unknown"
