"""Loggers whose failures end no run: what W&B and all others share, and a guard around any logger of Lightning's."""

import logging
import re
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray

from isaseg.files import write_text

log = logging.getLogger(__name__)


class RunLogger(Logger):
    """What the loggers of a run share: no folder of Lightning's, and no hyperparameters but the configuration."""

    name = version = None
    _fitted = False

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""

    def finalize(self, status: str) -> None:
        """End the history; Lightning calls this after `fit`, and after an error in it."""
        self._fitted = True


class NeverFatalLogger(RunLogger):
    """Logs to a service or a library; a failure costs one warning and switches it off for the rest of the run.

    Lightning numbers steps from 0; here they count finished optimizer steps, as in metrics.csv. The curves are of
    training alone: what is evaluated after `fit` is named best/... or last/... instead of val/..., by the checkpoint, and
    is no point of them.

    Attributes:
        scored: Which checkpoint that is, "best" or "last".
        run: What is logged to; None before something is, and in every process but the first.
    """

    title: str

    def __init__(self) -> None:
        super().__init__()
        self.scored = "best"
        self.run: Any = None
        self._off = False
        self._step = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log numbers; `step` is as Lightning counts it."""
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if self._fitted:
            self._log_scored({key.replace("val/", f"{self.scored}/"): value for key, value in values.items()})
        elif values:
            self._step = self._step if step is None else step + 1
            self._log(values)

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """End the run; what is logged later goes nowhere."""
        off, self._off = self._off, True
        try:
            if self.run is not None and not off:
                self._end(exit_code)
        except Exception as error:
            log.warning("%s could not finish its run (%s)", self.title, sentence(error))

    def _do(self, action: Callable[[Any], Any]) -> Any:
        """Do something with the run, unless something has failed before."""
        if self._off:
            return None
        try:
            if self.run is None:
                self.run = self._begin()
            return action(self.run)
        except Exception as error:
            self._off = True
            text = "%s is off for the rest of this run (%s); metrics.csv goes on"
            log.warning(text, self.title, sentence(error))

    @abstractmethod
    def _begin(self) -> Any: ...

    @abstractmethod
    def _log(self, values: Mapping[str, float]) -> None: ...

    @abstractmethod
    def _log_scored(self, values: Mapping[str, float]) -> None: ...

    @abstractmethod
    def _end(self, exit_code: int) -> None: ...


class GuardedLogger(NeverFatalLogger):
    """Guards another logger, and gives it the configuration of the run as hyperparameters.

    Args:
        guarded: The logger.
        config: Logged once, unless the run goes on in one that was begun.
        id_file: Gets the id of an MLflow run, so that a resumed run is the same run.
    """

    def __init__(self, guarded: Logger, config: Mapping[str, Any], id_file: Path) -> None:
        super().__init__()
        self.guarded, self.title = guarded, type(guarded).__name__
        self._config, self._id_file = dict(config), id_file

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What the logger writes with; Lightning asks for it before the first step. None if it has failed."""
        return self._do(lambda logger: getattr(logger, "experiment", None))

    @rank_zero_only
    def log_images(self, key: str, images: Mapping[str, NDArray[Any]], step: int | None = None) -> None:
        """Log RGB images (H, W, 3) by name after `step` finished steps, if the logger takes images."""
        self._do(lambda logger: _send_images(logger, key, images, self._step if step is None else step))

    @rank_zero_only
    def log_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, if the logger takes tables or text."""
        self._do(lambda logger: _send_table(logger, key, columns, rows, self._step))

    @rank_zero_only
    def log_graph(self, model: Any, *args: Any) -> None:
        """Pass the network on."""
        self._do(lambda logger: logger.log_graph(model, *args))

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Pass on that a checkpoint was saved."""
        self._do(lambda logger: logger.after_save_checkpoint(checkpoint_callback))

    @rank_zero_only
    def save(self) -> None:
        """Write what is logged; Lightning asks for it after every row, so that a run that is killed loses none."""
        self._do(lambda logger: logger.save())

    def _begin(self) -> Logger:
        logger, goes_on = self.guarded, False
        if isinstance(logger, MLFlowLogger):
            goes_on = self._id_file.is_file()
            try:
                run_id = logger.run_id
            except Exception:  # another job of a sweep may have made the experiment in between
                run_id = logger.run_id
            write_text(self._id_file, f"{run_id}\n")
        if not goes_on:
            logger.log_hyperparams(self._config)
        return logger

    def _log(self, values: Mapping[str, float]) -> None:
        self._do(lambda logger: logger.log_metrics(values, self._step))

    _log_scored = _log

    def _end(self, exit_code: int) -> None:
        self.guarded.finalize("failed" if exit_code else "success")


def sentence(error: Exception) -> str:
    """Return an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _send_images(logger: Any, key: str, images: Mapping[str, NDArray[Any]], step: int) -> None:
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):  # Lightning's for W&B
        logger.log_image(key, list(images.values()), step=step, caption=list(images))
    elif hasattr(experiment, "add_image"):  # TensorBoard
        for name, image in images.items():
            experiment.add_image(f"{key}/{name}", image, step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        for name, image in images.items():
            allowed = re.sub(r"[^\w\-./ ]", "_", f"{key}/{name}", flags=re.ASCII)
            logger.experiment.log_image(logger.run_id, image, key=allowed, step=step)


def _send_table(
    logger: Any, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    experiment: Any = getattr(logger, "experiment", None)
    lines = [columns, ["---"] * len(columns), *rows]
    markdown = "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)
    if hasattr(logger, "log_table"):
        logger.log_table(key, list(columns), list(rows), step=step)
    elif hasattr(experiment, "add_text"):
        experiment.add_text(key, markdown, step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_text(logger.run_id, markdown, f"{key}.md")
