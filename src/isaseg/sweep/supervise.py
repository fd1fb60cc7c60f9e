"""Watch jobs until they end, wherever their processes run: progress, failures, interruption."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from isaseg.console import say
from isaseg.runs.history import read_history
from isaseg.runs.run_folder import failure, finished_metrics, read_metrics, write_failure
from isaseg.sweep.jobs import Job

_POLL = 0.5  # seconds
_TAIL = 20  # log lines quoted in failed.txt where the run itself could not write the reason


class Process(Protocol):
    """A job that runs somewhere."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def stop(self) -> None:
        """Ask it to save and end."""

    def wait(self) -> None:
        """Wait until it has ended; kill it if it does not end."""


Start = Callable[[list[Job]], dict[Job, Process]]
Watch = Callable[[Job], bool]


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "finished" (now or before), "failed", or "stopped" (by `watch` or from outside; it can be continued).
        metrics: Contents of metrics.json, if finished.
        message: The reason in one sentence, if failed.
    """

    state: Literal["finished", "failed", "stopped"]
    metrics: dict[str, Any] | None = None
    message: str = ""


def supervise(
    jobs: Sequence[Job], start: Start, console: Console, watch: Watch | None = None
) -> dict[Job, Outcome]:
    """Run the jobs that are not complete yet, and return how each job ended.

    A failed job is reported at once and does not stop the others. If this process is interrupted, the jobs are asked to
    save and end, and it waits for them.

    Args:
        jobs: All jobs, in the order in which they should start.
        start: Starts as many of the waiting jobs as there is room for.
        console: Where progress and failures are printed.
        watch: Called now and then for each running job; True stops the job.
    """
    outcomes: dict[Job, Outcome] = {}
    for job in jobs:
        metrics = finished_metrics(job.cfg, job.folder)
        if metrics is not None:
            outcomes[job] = Outcome("finished", metrics)
    if outcomes:
        say(console, f"{len(outcomes)} of {len(jobs)} runs are complete already")
    waiting = [job for job in jobs if job not in outcomes]
    running: dict[Job, Process] = {}
    unwanted: set[Job] = set()
    with _progress(console) as bar:
        task = bar.add_task("training", total=max(len(waiting), 1), runs="")
        try:
            while waiting or running:
                for job, process in list(running.items()):
                    code = process.poll()
                    if code is not None:
                        del running[job]
                        message = getattr(process, "message", "")
                        outcomes[job] = _outcome(job, code, job in unwanted, message)
                        _report(bar.console, job, outcomes[job])
                    elif watch is not None and job not in unwanted and watch(job):
                        unwanted.add(job)
                        process.stop()
                for job, process in start(waiting).items():
                    waiting.remove(job)
                    running[job] = process
                    say(bar.console, f"start   {job.name}")
                share = 0.0 if bar.disable else sum(_share(job) for job in running)
                ended = len(jobs) - len(waiting) - len(running)
                runs = f"{ended}/{len(jobs)} runs, {len(running)} running"
                bar.update(task, completed=ended + share, total=len(jobs), runs=runs)
                if waiting or running:
                    time.sleep(_POLL)
        finally:
            for process in running.values():
                process.stop()
            for process in running.values():
                process.wait()
    return {job: outcomes[job] for job in jobs}


def _outcome(job: Job, code: int, unwanted: bool, message: str) -> Outcome:
    if message:  # it never started, for example because its folder is not writable
        return Outcome("failed", message=message)
    metrics = read_metrics(job.folder) if code == 0 else None
    if metrics is not None:
        return Outcome("finished", metrics)
    if unwanted or code in (130, 143):
        return Outcome("stopped")
    log = job.folder / "log.txt"
    lines = log.read_text(errors="replace").rstrip().splitlines()[-_TAIL:] if log.is_file() else []
    killed = f"killed by signal {-code}" + (", perhaps out of memory" if code == -9 else "")
    said = killed if code < 0 else f"exit code {code}: {lines[-1] if lines else '(no output)'}"
    write_failure(job.folder, "\n".join([said, "", *lines, ""]))
    return Outcome("failed", message=failure(job.folder) or said)


def _report(console: Console, job: Job, outcome: Outcome) -> None:
    if outcome.state == "finished":
        score = (outcome.metrics or {}).get("val/mIoU")
        say(console, f"done    {job.name}" + (f"  mIoU {score:.4f}" if isinstance(score, float) else ""))
    elif outcome.state == "stopped":
        say(console, f"stopped {job.name} after step {read_history(job.folder).last_step}")
    else:
        say(console, f"FAILED  {job.name}: {outcome.message}", "bold red")
        say(console, f"        {job.folder / 'failed.txt'}, {job.folder / 'log.txt'}")


def _share(job: Job) -> float:
    steps = job.cfg.trainer.max_steps
    return (
        min(read_history(job.folder).last_step / steps, 1.0) if isinstance(steps, int) and steps > 0 else 0.0
    )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(None),
        TextColumn("{task.fields[runs]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=300,
        disable=not console.is_terminal,
    )
