"""Optuna's search: the study outlives the process, and each trial is a job."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna import Study, Trial
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from isaseg import config
from isaseg.console import percent, say
from isaseg.errors import ConfigError, SweepError
from isaseg.runs.history import read_history
from isaseg.sweep.jobs import Job
from isaseg.sweep.launch import Launch
from isaseg.sweep.local import alone, room_for, visible_gpus
from isaseg.sweep.space import Space, overrides, parse, samples
from isaseg.sweep.study import Settings, begun_trial, open_study, report_trials, sampler
from isaseg.sweep.supervise import Outcome

_METRIC = "val/mIoU"

PlanOf = Callable[[Sequence[Sequence[str]]], list[Job]]


@dataclass
class _Run:
    """A trial and its job; `last` is the last step whose validation the trial knows."""

    trial: Trial
    job: Job
    last: int

    def report(self, values: Mapping[int, float]) -> bool:
        """Report new validations; return whether the pruner stops the trial, which it may not after the last step."""
        for step in sorted(step for step in values if step > self.last):
            self.last = step
            self.trial.report(values[step], step)
            if step < self.job.cfg.trainer.max_steps and self.trial.should_prune():
                return True
        return False


def search(
    launch: Launch,
    slots: int | None,
    plan_of: PlanOf,
    settings: Settings,
    name: str,
    arguments: Sequence[str],
    flags: Sequence[str] = (),
) -> Study:
    """Run the trials that a study lacks, and report all of them.

    A trial that a killed process left unfinished continues with its values and in its run folder. The search goes on
    without a trial that fails, and the same command draws another one in its place. Other values to search, or runs of
    another configuration, are another study.

    Args:
        launch: Runs the jobs.
        slots: How many of them run at a time; None: as many as this machine has room for.
        plan_of: Returns the jobs of combinations of overrides.
        settings: The settings of the search.
        name: The study's name begins with it, and its file has it.
        arguments: Overrides of the command line.
        flags: What `train.py` gets besides overrides.

    Raises:
        ConfigError: If nothing is to be searched, or another process searches it.
        SweepError: At the end, if a trial has not finished.
    """
    console = Console(stderr=True)
    space, fixed = parse(settings.params or {}, arguments)
    jobs = plan_of([[*overrides(values), *fixed] for values in samples(space)])
    cfg = jobs[0].cfg
    path = Path(cfg.output_dir) / config.safe_name(cfg.name) / f"{name}.db"
    what = [{key: str(one) for key, one in space.items()}, [config.run_name(job.cfg) for job in jobs]]
    with alone(path.with_name(f".{path.name}.lock")) as lock:
        if lock is None:
            raise ConfigError(f"another process is searching with {path}; wait for it")
        study, store = open_study(path, f"{name}-{config.digest(what)}", settings)
        messages = _Search(study, store, launch, slots, plan_of, settings, space, fixed, console).finish()
        report_trials(study, flags)
    if messages:
        raise SweepError(messages, len(study.trials))
    return study


@dataclass
class _Search:
    study: Study
    store: RDBStorage
    launch: Launch
    slots: int | None
    plan_of: PlanOf
    settings: Settings
    space: Space
    fixed: Sequence[str]
    console: Console

    def finish(self) -> list[str]:
        """Run trials until n_trials have finished, unless they fail; return why some have not finished.

        Those that were interrupted come first; as many run together as the launcher has room for.
        """
        begun = []
        for held in self.study.get_trials(states=(TrialState.RUNNING,)):
            if held.params.keys() == self.space.keys():
                begun.append(held)
            else:  # the process was killed while it drew values
                self.study.tell(held.number, state=TrialState.FAIL)
        finished = self.study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        missing = self.settings.n_trials - len(finished) - len(begun)
        todo: list[FrozenTrial | None] = [*begun, *[None] * missing]
        messages: list[str] = []
        while todo:
            runs = [self._begin(todo.pop(0))]
            more = (self.slots or room_for(runs[0].job.cfg, len(visible_gpus()))) - 1
            runs += [self._begin(held) for held in todo[:more]]
            del todo[:more]
            messages += self._train(runs)
        return messages

    def _begin(self, held: FrozenTrial | None) -> _Run:
        """Give a new trial its values, and any trial its job; both are stored with it."""
        if held is None:
            self.study.sampler = sampler(self.settings, len(self.study.trials))
            trial, last = self.study.ask(self.space), 0
        else:
            trial, last = begun_trial(self.study, self.store, held.number), held.last_step or 0
        values = overrides({key: trial.params[key] for key in self.space})
        (job,) = self.plan_of([[*values, *self.fixed]])
        trial.set_user_attr("folder", os.path.relpath(job.folder))
        trial.set_user_attr("overrides", list(job.overrides))
        say(self.console, f"trial {trial.number}{' continues' if held else ''}: {' '.join(values)}")
        return _Run(trial, job, last)

    def _train(self, runs: Sequence[_Run]) -> list[str]:
        """Train trials together, record how each ended, and return why some have not finished."""
        pruned: set[Path] = set()

        def should_stop(job: Job) -> bool:
            values = read_history(job.folder).curves.get(_METRIC, {})
            for run in runs:  # several may have drawn the same values
                if run.job.folder == job.folder and run.report(values):
                    pruned.add(job.folder)
            return job.folder in pruned

        ended = self.launch([run.job.overrides for run in runs], should_stop)
        messages = []
        for run, (_, outcome) in zip(runs, ended, strict=True):
            message = self._record(run, outcome, run.job.folder in pruned)
            messages += [f"trial {run.trial.number}: {message}"] * bool(message)
        return messages

    def _record(self, run: _Run, outcome: Outcome, pruned: bool) -> str:
        """Store how a trial ended, and return why it has not finished, if so."""
        trial, value = run.trial, (outcome.metrics or {}).get(_METRIC)
        # from outside: it stays unfinished so that it can continue
        if outcome.state == "stopped" and not pruned:
            return "stopped"
        if outcome.state == "stopped":
            self.study.tell(trial, state=TrialState.PRUNED)
            say(self.console, f"pruned trial {trial.number} after step {run.last}")
        elif isinstance(value, float) and math.isfinite(value):
            self.study.tell(trial, value)
            if self.study.best_trial.number == trial.number:
                say(self.console, f"best so far: trial {trial.number}, mIoU {percent(value)} %")
        else:
            self.study.tell(trial, state=TrialState.FAIL)
            return outcome.message or f"expected a finite {_METRIC}, got {value}"
        return ""
