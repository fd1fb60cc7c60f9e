"""Optuna's search: the study outlives the process, and each trial is a job."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from isaseg.console import say
from isaseg.errors import ConfigError, SweepError
from isaseg.runs.history import read_history
from isaseg.runs.run_folder import failure
from isaseg.sweep.jobs import Job
from isaseg.sweep.local import gpus_needed, visible_gpus
from isaseg.sweep.search_report import report_trials
from isaseg.sweep.space import Space, overrides, parse, samples, suggest_values
from isaseg.sweep.study import Settings, locked, open_study, sampler, store_path

_METRIC = "val/mIoU"
_HOPELESS = 3  # give up if so many trials have run and all failed: the cause is not the searched values

PlanOf = Callable[[Sequence[Sequence[str]], Sequence[str]], tuple[list[Job], list[str]]]


@dataclass
class _Run:
    """A trial and its job; `reported` holds the steps whose validation the trial knows."""

    trial: Trial
    job: Job
    reported: set[int]
    pruned: bool = False

    def report(self, values: Mapping[int, float]) -> bool:
        """Report new validations; return whether the pruner stops the trial, which it may not after the last step."""
        for step, value in sorted(values.items()):
            if step not in self.reported:
                self.reported.add(step)
                self.trial.report(value, step)
                if step < int(self.job.cfg.trainer.max_steps) and self.trial.should_prune():
                    return True
        return False


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
        plan_of: Returns the jobs of combinations of overrides, and remarks; its second argument: the overrides that are
            not searched.
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
    jobs, _ = plan_of([[*overrides(values), *fixed] for values in samples(space)], fixed)
    used = {text.partition("=")[0] for job in jobs for text in job.overrides}
    for key in space.keys() - used:
        say(console, f"{key} has no meaning here and is not searched")
    space = {key: one for key, one in space.items() if key in used}
    if not space:
        raise ConfigError("expected something to search, got only keys that no run here has")
    path = store_path(settings, jobs[0].cfg)
    with locked(path):
        study = open_study(path, settings, space, fixed, jobs, console)
        _finish(study, launcher, partial(_begin, study, settings, plan_of, space, fixed, console), settings)
        report_trials(study, path, _METRIC, flags)
        _raise_unfinished(study)
    return study


def _begin(
    study: Study,
    settings: Settings,
    plan_of: PlanOf,
    space: Space,
    fixed: Sequence[str],
    console: Console,
    held: FrozenTrial | None,
) -> _Run:
    """Give a new trial, or one that was interrupted, its values and its job; both are stored with it."""
    number = len(study.trials) if held is None else held.number
    study.sampler = sampler(settings, number)
    trial = study.ask() if held is None else Trial(study, held._trial_id)
    (job,), _ = plan_of([[*overrides(suggest_values(trial, space)), *fixed]], fixed)
    trial.set_user_attr("folder", os.path.relpath(job.folder))
    trial.set_user_attr("overrides", list(job.overrides))
    begins = f"trial {number}{' continues' if held else ''}, {len(study.trials)} of {settings.n_trials}"
    say(console, f"{begins}: {' '.join(overrides(trial.params))}")
    return _Run(trial, job, set(held.intermediate_values) if held else set())


def _finish(
    study: Study, launcher: Launcher, begin: Callable[[FrozenTrial | None], _Run], settings: Settings
) -> None:
    """Run trials until there are n_trials in all, starting with those that were interrupted."""
    begun = study.get_trials(states=(TrialState.RUNNING,))
    todo: list[FrozenTrial | None] = [*begun, *[None] * (settings.n_trials - len(study.trials))]
    while todo:
        runs = [begin(todo.pop(0))]
        more = _slots(launcher, runs[0].job.cfg) - 1
        runs += [begin(held) for held in todo[:more]]
        del todo[:more]
        _train(study, launcher, runs)
        states = [trial.state for trial in study.trials]
        if states.count(TrialState.FAIL) >= _HOPELESS and set(states) == {TrialState.FAIL}:
            return


def _train(study: Study, launcher: Launcher, runs: Sequence[_Run]) -> None:
    """Train trials together, and record how each ended."""

    def watch(job: Job) -> bool:
        values = read_history(job.folder).curves.get(_METRIC, {})
        mine = [run for run in runs if run.job.folder == job.folder]
        hopeless = [run.report(values) for run in mine]  # a list: each trial gets its report, pruned or not
        for run in mine:
            run.pruned |= any(hopeless)
        return any(hopeless)

    launcher.watch = watch  # type: ignore[attr-defined]
    results = launcher.launch([run.job.overrides for run in runs], initial_job_idx=runs[0].trial.number)
    for run, result in zip(runs, results, strict=True):
        _record(study, run, result)


def _slots(launcher: Launcher, cfg: DictConfig) -> int:
    """Return how many jobs the launcher runs at a time; that many trials are drawn together."""
    slots = getattr(launcher, "slots", None)
    if slots is not None or not hasattr(launcher, "gpus"):  # another launcher of Hydra's has neither
        return max(slots or 1, 1)
    there = len(visible_gpus() if launcher.gpus is None else launcher.gpus)
    needed = gpus_needed(cfg, there)
    return max(there // needed, 1) if needed else 1


def _record(study: Study, run: _Run, result: JobReturn) -> None:
    console, trial, value = Console(stderr=True), run.trial, result._return_value
    if result.status is JobStatus.COMPLETED and isinstance(value, float) and math.isfinite(value):
        best = max((t.value or 0.0 for t in study.get_trials(states=(TrialState.COMPLETE,))), default=-1.0)
        study.tell(trial, value)
        if value > best:
            say(console, f"best so far: trial {trial.number}, mIoU {value:.4f}")
    elif getattr(value, "state", "failed") == "stopped":
        if run.pruned:  # otherwise it was stopped from outside, and stays unfinished so that it can continue
            study.tell(trial, state=TrialState.PRUNED)
            say(console, f"pruned trial {trial.number} after step {max(run.reported)}")
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
