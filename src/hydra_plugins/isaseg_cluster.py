"""What Hydra calls for `hydra/launcher=slurm` and `hydra/launcher=ray`; isaseg.sweep does the work.

Hydra imports this file whenever it starts, so what takes time or is not always installed is imported where it is used.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SlurmLauncher(Launcher):
    """Jobs of a Slurm cluster, see `isaseg.sweep.slurm`. `watch` is asked about each running job; True stops it."""

    watch: Callable[..., bool] | None = None

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes the jobs."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return one result for each of `job_overrides`."""
        from isaseg.sweep.launch import launch
        from isaseg.sweep.slurm import slurm

        make_start = partial(slurm, **self.options)
        return launch(self.hydra_context, self.config, job_overrides, make_start, self.watch)


class RayLauncher(Launcher):
    """Jobs of a Ray cluster, see `isaseg.sweep.ray`. `watch` is asked about each running job; True stops it."""

    watch: Callable[..., bool] | None = None

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes the jobs."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return one result for each of `job_overrides`."""
        from isaseg.sweep.launch import launch
        from isaseg.sweep.ray import ray_jobs

        make_start = partial(ray_jobs, **self.options)
        return launch(self.hydra_context, self.config, job_overrides, make_start, self.watch)
