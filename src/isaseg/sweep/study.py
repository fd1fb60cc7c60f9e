"""The study of a search: its settings, its file and its report."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_type_hints

import numpy as np
import optuna
from optuna import Study, Trial
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from pydantic import NonNegativeInt, PositiveInt
from sqlalchemy.exc import SQLAlchemyError

from isaseg.config.values import check_keys
from isaseg.console import as_typed, percent
from isaseg.errors import ConfigError
from isaseg.sweep.space import overrides


@dataclass(frozen=True)
class Settings:
    """The keys of conf/hydra/sweeper/optuna.yaml, where the defaults are.

    Raises:
        ConfigError: For an invalid value.
    """

    params: Mapping[str, str] | None
    n_trials: PositiveInt
    seed: NonNegativeInt
    n_startup_trials: NonNegativeInt
    pruner: Literal["none", "median"]
    n_warmup_steps: NonNegativeInt

    def __post_init__(self) -> None:
        check_keys("hydra.sweeper", vars(self), get_type_hints(Settings, include_extras=True), "")


def sampler(settings: Settings, number: int) -> optuna.samplers.TPESampler:
    """Return a sampler seeded for one trial, so that a resumed search does not draw the same values again."""
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=seed)


def open_study(path: Path, name: str, settings: Settings) -> tuple[Study, RDBStorage]:
    """Return a study in an SQLite file, and the file; both are made if they are absent.

    Raises:
        ConfigError: If the file is not Optuna's, or of another version.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if settings.pruner == "median":
        pruner = optuna.pruners.MedianPruner(settings.n_startup_trials, settings.n_warmup_steps)
    try:
        store = RDBStorage(f"sqlite:///{path}")
        study = optuna.create_study(
            storage=store, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{path} cannot be used as the store of a search: {reason}; move it away"
        ) from error
    return study, store


def begun_trial(study: Study, store: RDBStorage, number: int) -> Trial:
    """Return a trial that an earlier process began, open for reports."""
    study_id = store.get_study_id_from_name(study.study_name)
    return Trial(study, store.get_trial_id_from_study_id_trial_number(study_id, number))


def report_trials(study: Study, flags: Sequence[str]) -> None:
    """Print the trials, and the command that trains the best one again; `flags` come before its overrides."""
    print(f"study {study.study_name}")
    for trial in study.trials:
        score = "" if trial.value is None else f"mIoU {percent(trial.value)} %"
        values = " ".join(overrides(trial.params))
        print(f"trial {trial.number:<3} {trial.state.name.lower():8} {score:13} {values}")
    if study.get_trials(states=(TrialState.COMPLETE,)):
        best = study.best_trial
        print(f"best: trial {best.number}, mIoU {percent(best.value)} %, {best.user_attrs['folder']}")
        print(f"{as_typed('isaseg train')} {shlex.join([*flags, *best.user_attrs['overrides']])}")
