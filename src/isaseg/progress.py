"""How far a long work is: a bar on a terminal, now and then a line anywhere else; both on standard error."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_SECONDS = 30.0  # between two lines of a log file


@contextmanager
def counted(text: str, total: int, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show how many of `total` are done, and how many a second.

    Args:
        text: What is done.
        total: How many there are.
        unit: Of what.

    Yields:
        A function that is told how many are done now (1), and what else is to be shown.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal  # elsewhere it would leave an empty line
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(text, total=total, pace="")
        start = last = time.perf_counter()
        done = 0

        def advance(number: int = 1, more: str = "") -> None:
            nonlocal done, last
            done += number
            now = time.perf_counter()
            pace = f"{done / max(now - start, 1e-9):.3g}{unit and ' ' + unit}/s{more and ', ' + more}"
            bar.update(task, advance=number, pace=pace)
            if not shown and now - last > _SECONDS:
                log.info("%s %d/%d  %s", text, done, total, pace)
                last = now

        yield advance
