"""The sweepers and launchers of `train.py -m`: sweepers choose the jobs, launchers run them; isaseg.sweep does the work.

Hydra imports this file at every start, so anything slow or optional is imported where it is used.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib import import_module
from inspect import Parameter
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from isaseg.errors import ConfigError


class LocalLauncher(Launcher):
    """Runs jobs on this machine, see `isaseg.sweep.local`."""

    def __init__(self, slots: int | None = None) -> None:
        self.slots = slots

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what composes the jobs."""
        from pydantic import PositiveInt

        from isaseg.config.values import check_value

        check_value("hydra.launcher.slots", self.slots, PositiveInt | None)
        self.hydra_context, self.config = hydra_context, config

    def run(self, combinations: Sequence[Sequence[str]], should_stop: Any = None) -> Any:
        """Run the jobs of combinations of overrides, see `isaseg.sweep.launch`."""
        from isaseg.sweep.launch import launch

        return launch(self.hydra_context, self.config, combinations, self.make_runner, should_stop)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Refuse jobs from Hydra's own sweepers; ours call `run`."""
        raise ConfigError("expected hydra/sweeper=grid or optuna, got another one")

    def make_runner(self, jobs: Any) -> Any:
        """Return what runs the jobs."""
        from isaseg.sweep.local import Local

        return Local(jobs, self.slots)


class SlurmLauncher(LocalLauncher):
    """Runs jobs on a Slurm cluster, see `isaseg.sweep.slurm`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(slots=1)  # a search draws one trial at a time
        self.options: Any = OmegaConf.to_container(DictConfig(options))

    def make_runner(self, jobs: Any) -> Any:
        """Return what runs the jobs."""
        _require("submitit", "hydra/launcher=slurm")
        from isaseg.sweep.slurm import Options, Slurm

        return Slurm(jobs, _made(Options, "hydra.launcher", self.options))


class GridSweeper(Sweeper):
    """Every combination of the swept values, each run once, see `isaseg.sweep.grid`."""

    def __init__(self, params: dict[str, str] | None = None, rows: Sequence[str] | None = None) -> None:
        self.params, self.rows = dict(params or {}), list(rows or [])

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, and keep what composes the jobs."""
        self.context, self._master = hydra_context, config
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        if not isinstance(launcher, LocalLauncher):
            raise ConfigError("expected hydra/launcher=local or slurm, got another one")
        self._launcher = launcher

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep."""
        from isaseg.sweep.grid import sweep

        return sweep(self._launcher.run, self._master, self.params, arguments, self.rows)


class OptunaSweeper(GridSweeper):
    """Optuna's search over the swept values, see `isaseg.sweep.search`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings: Any = OmegaConf.to_container(DictConfig(settings))

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search."""
        _require("optuna", "hydra/sweeper=optuna")
        from isaseg import config
        from isaseg.sweep.launch import plan_sweep, sweep_name
        from isaseg.sweep.search import search
        from isaseg.sweep.study import Settings

        plan_of = partial(plan_sweep, self.context, self._master)
        name, flags = sweep_name(self._master), config.command_flags(self._master.hydra)
        run, slots = self._launcher.run, self._launcher.slots
        settings = _made(Settings, "hydra.sweeper", self.settings)
        return search(run, slots, plan_of, settings, name, arguments, flags)


def _made(kind: type, node: str, held: dict[str, Any]) -> Any:
    """Return a dataclass of the keys of a node, whose names are checked here and whose values it checks."""
    from isaseg.config.values import check_keys

    names = [field.name for field in fields(kind)]
    check_keys(node, held, dict.fromkeys(names, Parameter.empty), "")
    if missing := [name for name in names if name not in held]:
        raise ConfigError(
            f"expected a value for {node}.{missing[0]}, got none; leave out ~{node}.{missing[0]}, or give it a value"
        )
    return kind(**held)


def _require(package: str, choice: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise ConfigError(f"{choice} needs {package} ({error}); run pip install 'isaseg[sweep]'") from error
