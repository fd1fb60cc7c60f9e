"""What is said on the terminal: the progress of long work on standard error, and the silence of libraries."""

import logging
import math
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import SupportsFloat

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_SECONDS = 30.0  # between two lines of a log file


@contextmanager
def counted(text: str, total: int, unit: str = "") -> Iterator[Callable[..., None]]:
    """Show how many of `total` are done, and how many a second: a bar on a terminal, elsewhere a line now and then.

    Args:
        text: What is done.
        total: How many there are.
        unit: What is counted.

    Yields:
        `advance(number=1)`, to be called when `number` more are done.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal  # elsewhere rich would leave an empty line
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task(text, total=total, pace="")
        start = last = time.perf_counter()
        done = 0

        def advance(number: int = 1) -> None:
            nonlocal done, last
            done += number
            now = time.perf_counter()
            pace = f"{done / max(now - start, 1e-9):.3g}{unit and ' ' + unit}/s"
            bar.update(task, advance=number, pace=pace)
            if not shown and now - last > _SECONDS:
                log.info("%s %d/%d  %s", text, done, total, pace)
                last = now

        yield advance


# Warnings of Lightning that need no action: each a pattern, and why
_HARMLESS = (
    ".*isinstance.treespec, LeafSpec.*",  # pytorch-lightning#21326: Lightning's own use of torch
    "Precision .* is not supported by the model summary.*",  # only its estimate of the size
    "Checkpoint directory .* exists and is not empty.*",  # expected when a run resumes
    "Be aware that when using `ckpt_path`, callbacks used to create.*",  # checkpoint intervals may change
    "It is recommended to use `self.log.*sync_dist=True.*",  # scores are those of all processes already
    "The `srun` command is available.*",  # a run may be started without it
    ".*does not have many workers.*",  # data.num_workers is chosen
    "Found .* in eval mode at the start of training.*",  # as backbone.freeze and backbone.norm_eval ask
)


def quiet() -> None:
    """Silence the messages of Lightning that no user can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # lists of devices, advertisements
    # it announces each new experiment
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)
    for message in _HARMLESS:
        warnings.filterwarnings("ignore", message=message)


def is_share(metric: str) -> bool:
    """Return whether a metric is a fraction, in files and loggers, that people read in per cent."""
    return re.search(r"(iou|acc|accuracy)(_far)?$", metric, re.IGNORECASE) is not None


def percent(share: SupportsFloat | None, digits: int = 2) -> str:
    """Return a fraction as people read it: 41.27 for 0.4127, "absent" for None and NaN, as of a class without a pixel."""
    value = math.nan if share is None else float(share)
    return "absent" if math.isnan(value) else f"{100 * value:.{digits}f}"


def as_typed(text: str) -> str:
    """Return the text with `isaseg NAME` as the user starts commands: from a checkout that is `python src/NAME.py`."""
    script = Path(sys.argv[0])

    def typed(found: re.Match[str]) -> str:
        other = script.with_name(f"{found[1]}.py")
        return f"python {shlex.quote(str(other))}" if other.is_file() else found[0]

    is_ours = script.suffix == ".py" and script.stem != "__main__"
    return re.sub(r"\bisaseg ([a-z]+)", typed, text) if is_ours else text


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup, no highlighting, not wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
