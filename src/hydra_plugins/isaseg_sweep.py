"""What Hydra calls for `train.py -m`: sweepers say which jobs, launchers where they run; isaseg.sweep does the work.

Hydra imports this file whenever it starts, so what takes time is imported where it is used.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Jobs on this machine, see `isaseg.sweep.local`. `watch` is asked about each running job; True stops it."""

    watch: Callable[..., bool] | None = None

    def __init__(self, slots: int | None = None, gpus: Sequence[Any] | str | int | None = None) -> None:
        words = str(gpus).split(",") if isinstance(gpus, (str, int)) else gpus
        self.slots, self.gpus = slots, None if words is None else [str(gpu).strip() for gpu in words]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes the jobs."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return one result for each of `job_overrides`."""
        from isaseg.sweep.launch import launch
        from isaseg.sweep.local import local

        make_start = partial(local, slots=self.slots, gpus=self.gpus)
        return launch(self.hydra_context, self.config, job_overrides, make_start, self.watch)


class GridSweeper(Sweeper):
    """Every combination of the values that are swept, each run once, see `isaseg.sweep.grid`."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher."""
        from hydra.core.plugins import Plugins

        self.master = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context, task_function, config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep."""
        from isaseg.sweep.grid import sweep

        return sweep(self.launcher, self.master, self.params, arguments)
