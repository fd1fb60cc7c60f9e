"""What Hydra calls for `hydra/sweeper=optuna`; isaseg.sweep.search does the work.

Hydra imports this file whenever it starts, so what takes time or is not always installed is imported where it is used.
"""

from functools import partial
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from isaseg.errors import ConfigError


class OptunaSweeper(Sweeper):
    """Optuna's search over the values that are swept, see `isaseg.sweep.search`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, and keep what composes the jobs."""
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context, task_function, config
        )
        self.known = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search."""
        try:
            import optuna  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"hydra/sweeper=optuna needs Optuna ({error}): pip install 'isaseg[sweep]'"
            ) from error
        from isaseg.sweep.launch import command_flags, planned, sweep_name
        from isaseg.sweep.search import search
        from isaseg.sweep.study import Settings

        context, config = self.known
        settings = Settings(**{**self.settings, "study": sweep_name(config)})
        return search(
            self.launcher, partial(planned, context, config), settings, arguments, command_flags(config)
        )
