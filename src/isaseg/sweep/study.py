"""The study of a search: its settings, its file, and what must not be mixed in it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import numpy as np
import optuna
from omegaconf import DictConfig
from optuna import Study
from optuna.trial import TrialState
from pydantic import Field, NonNegativeInt, PositiveInt
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from isaseg import config
from isaseg.config.values import check_keys
from isaseg.console import say
from isaseg.errors import ConfigError
from isaseg.sweep.jobs import Job
from isaseg.sweep.local import alone
from isaseg.sweep.space import Space


@dataclass(frozen=True)
class Settings:
    """The keys of conf/hydra/sweeper/optuna.yaml, where the defaults are.

    Raises:
        ConfigError: For an invalid value.
    """

    params: Mapping[str, str] | None
    study: str  # also a file's name
    storage: Annotated[str | None, Field(pattern="^(sqlite:///)?[^:]+$", description="the path of a file")]
    n_trials: PositiveInt
    seed: NonNegativeInt
    n_startup_trials: NonNegativeInt
    pruner: Literal["none", "median", "hyperband"]
    n_warmup_steps: NonNegativeInt

    def __post_init__(self) -> None:
        check_keys("hydra.sweeper", vars(self), get_type_hints(Settings, include_extras=True), "")


def sampler(settings: Settings, number: int) -> optuna.samplers.TPESampler:
    """Return a sampler seeded for one trial, so that a resumed search does not draw the same values again."""
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    return optuna.samplers.TPESampler(n_startup_trials=settings.n_startup_trials, seed=seed)


def store_path(settings: Settings, cfg: DictConfig) -> Path:
    """Return the file of the study: beside the run folders, unless hydra.sweeper.storage says otherwise."""
    if settings.storage is not None:
        return Path(settings.storage.removeprefix("sqlite:///"))
    return Path(cfg.output_dir) / config.safe_name(cfg.name) / f"{settings.study}.db"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a store against other searches; the lock ends with this process, however it ends.

    Raises:
        ConfigError: If another process holds the lock.
    """
    with alone(path.with_name(f".{path.name}.lock")) as lock:
        if lock is None:
            raise ConfigError(
                f"another process is searching with {path}; wait for it, or give another hydra.sweeper.study=NAME"
            )
        yield


def open_study(
    path: Path,
    settings: Settings,
    space: Space,
    fixed: Sequence[str],
    jobs: Sequence[Job],
    console: Console,
) -> Study:
    """Return the study in a store; a new one if there is none or if all its trials have failed.

    Args:
        path: The store.
        settings: Of the search.
        space: What is searched.
        fixed: Overrides that are the same for every trial.
        jobs: Some of the runs that the search may make.
        console: Where messages are printed.

    Raises:
        ConfigError: If the file is not a store, or the study was started with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _create(path, settings, jobs[0].cfg)
        trials = study.trials
        if trials and all(trial.state is TrialState.FAIL for trial in trials):
            had = f"all {len(trials)} trials of the study {settings.study} had failed"
            say(console, f"{had}; the search starts from scratch")
            optuna.delete_study(study_name=settings.study, storage=f"sqlite:///{path}")
            study = _create(path, settings, jobs[0].cfg)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} cannot be used as the store of a search: {reason}") from error
    _check_same(study, path, space, fixed, jobs)
    return study


def _create(path: Path, settings: Settings, cfg: DictConfig) -> Study:
    steps = int(cfg.trainer.max_steps)
    least = min(max(settings.n_warmup_steps, config.validation_interval(cfg)), steps)
    pruners: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
        "none": optuna.pruners.NopPruner,
        "median": lambda: optuna.pruners.MedianPruner(settings.n_startup_trials, settings.n_warmup_steps),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=least, max_resource=steps),
    }
    return optuna.create_study(
        storage=f"sqlite:///{path}",
        study_name=settings.study,
        direction="maximize",
        load_if_exists=True,
        pruner=pruners[settings.pruner](),
    )


def _check_same(study: Study, path: Path, space: Space, fixed: Sequence[str], jobs: Sequence[Job]) -> None:
    """Record what a study searches; refuse to mix two searches in one.

    Everything that is not searched is compared by the names of the runs: the folder and the GPUs do not count.
    """
    space_now = {key: str(one) for key, one in space.items()}
    now = [space_now, " ".join(fixed) or "nothing", config.digest([config.run_name(job.cfg) for job in jobs])]
    if not study.trials:
        study.set_user_attr("asked", now)
    then = study.user_attrs["asked"]
    changed = [
        f"{key}: {then[0].get(key, 'not searched')} then, {space_now.get(key, 'not searched')} now"
        for key in then[0] | space_now
        if then[0].get(key) != space_now.get(key)
    ]
    if not changed and then[2] != now[2]:
        changed = [f"not searched: {then[1]} then, {now[1]} now"]
        if then[1] == now[1]:
            changed = ["the configuration of its runs has changed since, in conf or in the project"]
    if changed:
        raise ConfigError(
            f"the study {study.study_name} in {path} was begun with something else ({'; '.join(changed)}); "
            "give the same again, or another hydra.sweeper.study=NAME, or delete that file"
        )
