"""Watch jobs until they end, wherever their processes run: progress, failures, interruption."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import Progress

from isaseg.console import percent, say
from isaseg.runs.history import read_history
from isaseg.runs.run_folder import failure, finished_run, read_metrics, write_failure
from isaseg.sweep.jobs import Job

_POLL = 0.5  # seconds
_LISTED = 5  # stale runs, each in a line


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        state: "finished" (now or before), "failed", or "stopped" (by `should_stop` or from outside; it can be continued).
        metrics: Contents of metrics.json, if finished.
        message: The reason in one sentence, if failed.
    """

    state: Literal["finished", "failed", "stopped"]
    metrics: dict[str, Any] | None = None
    message: str = ""


class Process(Protocol):
    """A job that runs somewhere; a `subprocess.Popen` is one."""

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and end."""


class Runner(Protocol):
    """Where jobs run."""

    def start(self, waiting: Sequence[Job]) -> Mapping[Job, Process | Outcome]:
        """Start as many of the waiting jobs as there is room for; return an outcome for a job without a process."""

    def interrupt(self, running: Mapping[Job, Process]) -> None:
        """Deal with the jobs that still run when this process is interrupted."""


ShouldStop = Callable[[Job], bool]


def supervise(
    jobs: Sequence[Job], runner: Runner, console: Console, should_stop: ShouldStop | None = None
) -> dict[Job, Outcome]:
    """Run the jobs that are not complete yet, and return how each job ended.

    A failed job is reported at once and does not stop the others.

    Args:
        jobs: All jobs, in the order in which they should start.
        runner: Starts them.
        console: Where progress and failures are printed.
        should_stop: Called now and then for each running job; True stops the job.
    """
    found = {job: finished_run(job.cfg, job.folder) for job in jobs}
    complete = {job: run for job, run in found.items() if run is not None and run.kept}
    outcomes = {job: Outcome("finished", run.metrics) for job, run in complete.items()}
    if outcomes:
        say(console, f"{len(outcomes)} of {len(jobs)} runs are complete already")
    stale = [f"stale   {job.name}: {run.stale.changed}" for job, run in complete.items() if run.stale.changed]
    for line in stale[:_LISTED]:
        say(console, line)
    if stale:
        others = f"{len(stale) - _LISTED} others are stale too; " if len(stale) > _LISTED else ""
        say(console, f"        {others}stale=retrain trains what is stale again")
    running: dict[Job, Process] = {}
    unwanted: set[Job] = set()
    with Progress(console=console, speed_estimate_period=300, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs))
        try:
            while len(outcomes) < len(jobs):
                for job, process in list(running.items()):
                    code = process.poll()
                    if code is not None:
                        del running[job]
                        outcomes[job] = _outcome(job, code, job in unwanted)
                        _report(bar.console, job, outcomes[job])
                    elif should_stop is not None and job not in unwanted and should_stop(job):
                        unwanted.add(job)
                        process.terminate()
                waiting = [job for job in jobs if job not in outcomes and job not in running]
                for job, started in runner.start(waiting).items():
                    if isinstance(started, Outcome):
                        outcomes[job] = started
                        _report(bar.console, job, started)
                    else:
                        running[job] = started
                        say(bar.console, f"start   {job.name}")
                share = 0.0 if bar.disable else sum(map(_share, running))
                runs = f"{len(outcomes)}/{len(jobs)} runs, {len(running)} running"
                bar.update(task, completed=len(outcomes) + share, description=runs)
                if len(outcomes) < len(jobs):
                    time.sleep(_POLL)
        finally:
            runner.interrupt(running)
    return {job: outcomes[job] for job in jobs}


def _outcome(job: Job, code: int, unwanted: bool) -> Outcome:
    metrics = read_metrics(job.folder) if code == 0 else None
    if metrics is not None:
        return Outcome("finished", metrics)
    if unwanted or code in (130, 143):
        return Outcome("stopped")
    log = job.folder / "log.txt"
    lines = log.read_text(errors="replace").rstrip().splitlines() if log.is_file() else []
    killed = f"killed by signal {-code}" + (", perhaps out of memory" if code == -9 else "")
    said = killed if code < 0 else f"exit code {code}: {lines[-1] if lines else '(no output)'}"
    write_failure(job.folder, said)  # unless the run itself has written the reason
    return Outcome("failed", message=failure(job.folder) or said)


def _report(console: Console, job: Job, outcome: Outcome) -> None:
    if outcome.state == "finished":
        score = (outcome.metrics or {}).get("val/mIoU")
        say(
            console,
            f"done    {job.name}" + (f"  mIoU {percent(score)} %" if isinstance(score, float) else ""),
        )
    elif outcome.state == "stopped":
        say(console, f"stopped {job.name} after step {read_history(job.folder).last_step}")
    else:
        say(console, f"FAILED  {job.name}: {outcome.message}", "bold red")
        say(console, f"        {job.folder / 'failed.txt'}, {job.folder / 'log.txt'}")


def _share(job: Job) -> float:
    steps: int = job.cfg.trainer.max_steps
    return min(read_history(job.folder).last_step / steps, 1.0)
