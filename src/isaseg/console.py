"""How far a long work is: a bar on a terminal, now and then a line anywhere else; both on standard error."""

import logging
import time
import warnings
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


def quiet() -> None:
    """Silence what Lightning says and nobody can mend."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # device lists and advertisements
    # lightning/_pytree.py uses a check that torch deprecates; nothing a user can do
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
    # of its estimate of the size alone
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary.*")
    # it does where a run continues
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty.*")
    # of checkpoint intervals, which may change
    warnings.filterwarnings(
        "ignore", message="Be aware that when using `ckpt_path`, callbacks used to create.*"
    )
    # of scores, which are those of all processes already
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log.*sync_dist=True.*")
    # on a machine of a cluster where a run is started without it
    warnings.filterwarnings("ignore", message="The `srun` command is available.*")
    # these say that data.num_workers is small, which on a small machine it should be
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, no highlighting, not wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
