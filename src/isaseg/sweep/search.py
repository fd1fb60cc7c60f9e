"""Optuna's search: the study outlives the process, and each trial is a job."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna import Study, Trial
from optuna.trial import TrialState
from rich.console import Console

from isaseg.console import say
from isaseg.errors import ConfigError, SweepError
from isaseg.runs.history import read_history
from isaseg.runs.run_folder import failure
from isaseg.sweep import search_report
from isaseg.sweep.jobs import Job, Plan
from isaseg.sweep.local import gpus_needed, visible_gpus
from isaseg.sweep.space import Space, overrides, parse, samples, suggest_values
from isaseg.sweep.study import Settings, locked, open_study, sampler, store_path
from isaseg.sweep.supervise import Watch

_METRIC = "val/mIoU"
_HOPELESS = 3  # give up if so many trials have run and all failed: the cause is not the searched values

PlanOf = Callable[[Sequence[Sequence[str]], Sequence[str]], Plan]


@dataclass(frozen=True)
class _Run:
    trial: Trial
    job: Job


def search(
    launcher: Launcher,
    plan_of: PlanOf,
    settings: Settings,
    arguments: Sequence[str],
    flags: Sequence[str] = (),
) -> Study:
    """Run the trials that a study lacks, and report all of them.

    A trial that a killed process left unfinished continues with its values and in its run folder. A failed trial stays
    failed, and the search goes on without it. If every trial has failed, the study starts from scratch.

    Args:
        launcher: Runs the jobs, `slots` of them at a time, and calls its `watch` for each.
        plan_of: Returns the jobs of combinations of overrides; its second argument: the overrides not searched.
        settings: The settings of the search.
        arguments: Overrides of the command line.
        flags: What `train.py` gets besides overrides.

    Raises:
        ConfigError: If nothing can be searched, or the study was started with other settings, or another process
            searches it.
        SweepError: At the end, if a trial has not finished.
    """
    console = Console(stderr=True)
    space, fixed = parse(settings.params or {}, arguments)
    found = plan_of([[*overrides(values), *fixed] for values in samples(space)], fixed)
    used = {text.partition("=")[0] for job in found.jobs for text in job.overrides}
    for key in space.keys() - used:
        say(console, f"{key} has no meaning here and is not searched")
    space = {key: one for key, one in space.items() if key in used}
    if not space:
        raise ConfigError("expected something to search, got only keys that no run here has")
    path = store_path(settings, found.jobs[0].cfg)
    with locked(path):
        study = open_study(path, settings, space, fixed, found.jobs, partial(say, console))
        _finish(study, launcher, partial(_planned, plan_of, space, fixed), settings, console)
        search_report.report_trials(study, path, _METRIC, flags)
        _raise_unfinished(study)
    return study


def _planned(plan_of: PlanOf, space: Space, fixed: Sequence[str], trial: Trial) -> _Run:
    """Give a trial its values and its job; both are stored with it."""
    (job,) = plan_of([[*overrides(suggest_values(trial, space)), *fixed]], fixed).jobs
    trial.set_user_attr("folder", os.path.relpath(job.folder))
    trial.set_user_attr("overrides", list(job.overrides))
    return _Run(trial, job)


def _finish(
    study: Study, launcher: Launcher, run_of: Callable[[Trial], _Run], settings: Settings, console: Console
) -> None:
    """Run trials until there are n_trials in all, starting with those that were interrupted."""
    begun = study.get_trials(states=(TrialState.RUNNING,))
    missing = settings.n_trials - sum(trial.state is not TrialState.WAITING for trial in study.trials)
    while begun or missing > 0:
        runs: list[_Run] = []
        while (begun or missing > 0) and (not runs or len(runs) < _slots(launcher, runs[0].job.cfg)):
            held = begun.pop(0) if begun else None
            study.sampler = sampler(settings, held.number if held else len(study.trials))
            run = run_of(Trial(study, held._trial_id) if held else study.ask())
            missing -= held is None
            values = " ".join(overrides(run.trial.params))
            number = f"trial {run.trial.number}{' continues' if held else ''}"
            say(console, f"{number}, {len(study.trials)} of {settings.n_trials}: {values}")
            runs.append(run)
        _run(study, launcher, runs, console)
        states = [trial.state for trial in study.trials]
        if states.count(TrialState.FAIL) >= _HOPELESS and set(states) == {TrialState.FAIL}:
            return


def _run(study: Study, launcher: Launcher, runs: Sequence[_Run], console: Console) -> None:
    pruned: set[Path] = set()
    launcher.watch = _watch(runs, pruned)  # type: ignore[attr-defined]
    results = launcher.launch([run.job.overrides for run in runs], initial_job_idx=runs[0].trial.number)
    for run, result in zip(runs, results, strict=True):
        _record(study, run, result, run.job.folder in pruned, console)


def _slots(launcher: Launcher, cfg: DictConfig) -> int:
    """Return how many jobs the launcher runs at a time; that many trials are drawn together."""
    slots = getattr(launcher, "slots", None)
    if slots is not None or not hasattr(launcher, "gpus"):  # another launcher of Hydra's has neither
        return max(slots or 1, 1)
    there = len(visible_gpus() if launcher.gpus is None else launcher.gpus)
    needed = gpus_needed(cfg, there)
    return max(there // needed, 1) if needed else 1


def _watch(runs: Sequence[_Run], pruned: set[Path]) -> Watch:
    """Return a function that reports the validations of a running job to its trial, and stops a pruned job."""
    sizes: dict[Path, int] = {}
    known = {
        run.trial.number: set(run.trial.study.trials[run.trial.number].intermediate_values) for run in runs
    }

    def watch(job: Job) -> bool:
        path = job.folder / "metrics.csv"
        size = path.stat().st_size if path.is_file() else 0
        if size == sizes.get(path, 0):
            return False
        sizes[path] = size
        values, steps = read_history(job.folder).curves.get(_METRIC, {}), int(job.cfg.trainer.max_steps)
        trials = [run.trial for run in runs if run.job.folder == job.folder]
        # a list: every trial gets its report, also after the first that is pruned
        verdicts = [_is_pruned(trial, values, known[trial.number], steps) for trial in trials]
        if any(verdicts):
            pruned.add(job.folder)
        return any(verdicts)

    return watch


def _is_pruned(trial: Trial, values: Mapping[int, float], known: set[int], steps: int) -> bool:
    """Report new validations; return whether the pruner stops the trial, which it may not after the last step."""
    for step, value in sorted(values.items()):
        if step not in known:
            known.add(step)
            trial.report(value, step)
            if step < steps and trial.should_prune():
                return True
    return False


def _record(study: Study, run: _Run, result: JobReturn, pruned: bool, console: Console) -> None:
    trial, value = run.trial, result._return_value
    if result.status is JobStatus.COMPLETED and isinstance(value, float) and math.isfinite(value):
        best = max((t.value or 0.0 for t in study.get_trials(states=(TrialState.COMPLETE,))), default=-1.0)
        study.tell(trial, value)
        if value > best:
            say(console, f"best so far: trial {trial.number}, mIoU {value:.4f}")
    elif getattr(value, "state", "failed") == "stopped":
        if pruned:  # otherwise it was stopped from outside, and stays unfinished so that it can continue
            study.tell(trial, state=TrialState.PRUNED)
            after = study.trials[trial.number].last_step
            say(console, f"pruned trial {trial.number} after step {after}")
    else:
        message = failure(run.job.folder) or f"expected a finite {_METRIC}, got {value}"
        trial.set_user_attr("message", message)
        study.tell(trial, state=TrialState.FAIL)


def _raise_unfinished(study: Study) -> None:
    failed = study.get_trials(states=(TrialState.FAIL,))
    messages = [f"trial {trial.number}: {trial.user_attrs.get('message')}" for trial in failed]
    stopped = study.get_trials(states=(TrialState.RUNNING,))
    messages += [f"trial {trial.number}: stopped; the same command continues it" for trial in stopped]
    if messages:
        advice = "the search went on without the failed trials"
        if len(failed) == len(study.trials):
            advice = "the same command starts from scratch"
        raise SweepError(messages, len(study.trials), advice)
