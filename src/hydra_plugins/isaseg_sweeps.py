"""The sweepers and launchers of `train.py -m`: sweepers choose the jobs, launchers run them; isaseg.sweep does the work.

Hydra imports this file at every start, so anything slow or optional is imported where it is used.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from isaseg.errors import ConfigError


class LocalLauncher(Launcher):
    """Runs jobs on this machine, see `isaseg.sweep.local`.

    Attributes:
        watch: Asked about each running job; True stops it.
    """

    watch: Callable[..., bool] | None = None

    def __init__(self, slots: int | None = None, gpus: Sequence[Any] | str | int | None = None) -> None:
        names = str(gpus).split(",") if isinstance(gpus, (str, int)) else gpus
        self.slots, self.gpus = slots, None if names is None else [str(name).strip() for name in names]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes the jobs."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return one result for each of `job_overrides`."""
        from isaseg.sweep.launch import launch

        return launch(self.hydra_context, self.config, job_overrides, self.make_runner, self.watch)

    def make_runner(self, jobs: Any) -> Any:
        """Return what runs the jobs."""
        from isaseg.sweep.local import Local

        return Local(jobs, slots=self.slots, gpus=self.gpus)


class SlurmLauncher(LocalLauncher):
    """Runs jobs on a Slurm cluster, see `isaseg.sweep.slurm`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(slots=1)  # a search draws one trial at a time
        self.options: Any = OmegaConf.to_container(DictConfig(options))

    def make_runner(self, jobs: Any) -> Any:
        """Return what runs the jobs."""
        from isaseg.sweep.slurm import Options, Slurm

        return Slurm(jobs, Options(**self.options))


class GridSweeper(Sweeper):
    """Every combination of the swept values, each run once, see `isaseg.sweep.grid`."""

    def __init__(self, params: dict[str, str] | None = None, rows: Sequence[str] | None = None) -> None:
        self.params, self.rows = dict(params or {}), list(rows or [])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, and keep what composes the jobs."""
        self.context, self._master = hydra_context, config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context, task_function, config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep."""
        from isaseg.sweep.grid import sweep

        return sweep(self._launcher, self._master, self.params, arguments, self.rows)


class OptunaSweeper(GridSweeper):
    """Optuna's search over the swept values, see `isaseg.sweep.search`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings: Any = OmegaConf.to_container(DictConfig(settings))

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search."""
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"hydra/sweeper=optuna needs Optuna ({error}); run pip install 'isaseg[sweep]'"
            ) from error
        from isaseg.sweep.launch import command_flags, plan_sweep, sweep_name
        from isaseg.sweep.search import search
        from isaseg.sweep.study import Settings

        settings = Settings(**{**self.settings, "study": sweep_name(self._master)})
        plan_of = partial(plan_sweep, self.context, self._master)
        return search(self._launcher, plan_of, settings, arguments, command_flags(self._master))
