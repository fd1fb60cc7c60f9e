"""Where the numbers of a run go: always to metrics.csv, and to the loggers that the configuration names.

All count finished optimizer steps and hold the history of training alone: what is evaluated after `fit` is no point of a
curve. Only metrics.csv is needed by anything else; the failure of another logger ends no run.
"""

import inspect
import logging
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import wandb as wb
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.files import write_text
from isaseg.runs.guarded_loggers import GuardedLogger, NeverFatalLogger, RunLogger, sentence
from isaseg.runs.history import HistoryWriter

log = logging.getLogger(__name__)

# Otherwise MLflow reports to its makers how it is used, and to the user each table of a new database.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

_EXTRAS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}  # the package that a class needs
_MODES = ("online", "offline", "disabled")
_STEP_AXIS = "trainer/global_step"
_FINISH_SECONDS = 60.0  # for the upload when a run ends; by default W&B waits for ever, with the GPU held


def build_loggers(cfg: DictConfig, folder: Path, facts: Mapping[str, Any], resumed: int = 0) -> list[Logger]:
    """Return the logger of metrics.csv and those of the configuration; the run folder is left as it is.

    A key of a logger that is null in its YAML is filled from the run: name and run_name with its name, tags, config,
    purge_step, and what MLflow needs. `run_dir` and `save_dir` are the run folder where a constructor has one and no
    value is given.

    Args:
        cfg: Configuration of the run.
        folder: Run folder.
        facts: What else is known of the run, logged with the configuration.
        resumed: The step that the run continues from.

    Raises:
        ConfigError: If a logger cannot be built.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    known = {**facts, **plain}
    of_run = {
        **dict.fromkeys(("name", "run_name"), config.run_name(cfg)),
        "tags": [cfg.data.name, config.attention_label(cfg), config.backbone_label(cfg)],
        "config": known,
        "purge_step": resumed + 1,  # TensorBoard hides what a run that was killed has logged from there on
    }
    id_file = folder / "mlflow_id.txt"
    loggers: list[Logger] = [HistoryLogger(folder)]
    for name, node in cfg.get("logger", {}).items():
        more = _of_mlflow(cfg, node, id_file) if "experiment_name" in node else {}
        logger = _build(f"logger.{name}", node, folder, {**of_run, **more})
        if not isinstance(logger, NeverFatalWandbLogger):
            logger = GuardedLogger(logger, known, id_file)
        if getattr(logger, "mode", None) != "disabled":
            loggers.append(logger)
    return loggers


def _build(key: str, node: DictConfig, folder: Path, of_run: Mapping[str, Any]) -> Logger:
    """Return the logger of a node, with what the node leaves to the run."""
    kind = str(node._target_).rpartition(".")[2]
    if kind in _EXTRAS and find_spec(_EXTRAS[kind]) is None:
        extra = _EXTRAS[kind]
        raise ConfigError(f"{key} needs {extra}, which is not installed; run pip install 'isaseg[{extra}]'")
    make = config.build(node, key, _partial_=True)
    filled = {name: of_run[name] for name in map(str, node) if node[name] is None and name in of_run}
    takes = inspect.signature(make.func).parameters
    filled |= {name: folder for name in ("run_dir", "save_dir") if name in takes and node.get(name) is None}
    try:
        logger = make(**filled)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{key} cannot be built: {sentence(error)}") from error
    if not isinstance(logger, Logger):
        raise ConfigError(f"expected {key} to be a logger of Lightning, got {type(logger).__name__}")
    return logger


def _of_mlflow(cfg: DictConfig, node: DictConfig, id_file: Path) -> dict[str, Any]:
    """Return where MLflow keeps its runs, and the id of the one that is resumed."""
    output = Path(cfg.output_dir).resolve()
    uri = node.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output}/mlflow.db"
    goes_on = cfg.resume != "never" and id_file.is_file()
    return {
        "tracking_uri": uri,
        "artifact_location": (output / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None,
        "run_id": id_file.read_text().strip() if goes_on else None,
    }


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """End the runs of the loggers. Call it in `finally`: if an error is being raised, they are marked as failed."""
    for logger in loggers:
        if isinstance(logger, NeverFatalLogger):
            logger.finish(int(sys.exc_info()[0] is not None))


class HistoryLogger(RunLogger):
    """Writes what Lightning logs during `fit` to the metrics.csv of a run folder."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self._writer = HistoryWriter(run_dir)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write values; `step` is as Lightning counts it."""
        values = {key: value for key, value in metrics.items() if key != "epoch"}
        if values and step is not None and not self._fitted:
            self._writer.add(step + 1, values)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the history, with the rows for which there was no room before."""
        super().finalize(status)
        self._writer.close()


class NeverFatalWandbLogger(NeverFatalLogger):
    """Logs to Weights & Biases without a prompt, without uploading code or models, and without ending a run.

    Online without a key or a network, the run is kept offline instead, for `wandb sync`. The id of the W&B run is kept in
    wandb_id.txt, so that a resumed run is the same run. What is evaluated after `fit` goes to its summary.

    Args:
        run_dir: Run folder; gets wandb_id.txt and wandb/.
        project, group, name, tags: How W&B files the run; the group is the experiment or the sweep.
        mode: None takes WANDB_MODE, and offline if that is not set.
        config: What W&B keeps as the configuration of the run, plain data.

    Raises:
        ConfigError: If WANDB_MODE is none of the modes.
    """

    title = "W&B"

    def __init__(
        self,
        run_dir: Path,
        project: str,
        group: str | None = None,
        name: str | None = None,
        tags: Sequence[str] | None = None,
        mode: Literal["online", "offline", "disabled"] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode or os.environ.get("WANDB_MODE") or "offline"
        if self.mode not in _MODES:
            raise ConfigError(
                f"expected the mode of W&B (logger.wandb.mode or WANDB_MODE) to be one of {', '.join(_MODES)}, "
                f"got {self.mode}"
            )
        self._folder = run_dir
        self._init: dict[str, Any] = {"project": project, "group": group, "name": name}
        self._init |= {"tags": list(tags or ()), "config": dict(config or {})}

    @rank_zero_only
    def log_payload(self, payload: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers, images or tables after `step` finished steps."""
        axis = {} if step is None else {_STEP_AXIS: step}
        self._do(lambda run: run.log({**payload, **axis}))

    def log_images(self, key: str, images: Mapping[str, NDArray[Any]], step: int | None = None) -> None:
        """Log RGB images (H, W, 3), each under its name, after `step` finished steps."""
        self.log_payload({key: [wb.Image(image, caption=name) for name, image in images.items()]}, step)

    def log_table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        self.log_payload({key: wb.Table(columns=list(columns), data=list(rows))})

    def _log(self, values: Mapping[str, float]) -> None:
        self.log_payload(values, self._step or None)

    def _log_scored(self, values: Mapping[str, float]) -> None:
        self._do(lambda run: run.summary.update(values))

    def _end(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    def _begin(self) -> Any:
        mode = self.mode
        if mode == "online":
            try:
                if not wb.login(prompt=False):
                    raise RuntimeError("no API key; run `wandb login` once")
            except Exception as error:
                log.warning("W&B cannot go online (%s); the run is kept offline", sentence(error))
                mode = "offline"
        run = wb.init(
            dir=str(self._folder),
            id=_run_id(self._folder / "wandb_id.txt"),
            mode=mode,  # type: ignore[arg-type]
            resume="allow" if mode == "online" else None,  # offline there is nothing to ask
            reinit="create_new",  # several runs of one process stay apart
            job_type="train",
            settings=wb.Settings(
                silent=True,
                console="off",
                save_code=False,
                disable_code=True,
                init_timeout=10,
                finish_timeout=_FINISH_SECONDS,
            ),
            **self._init,
        )
        run.define_metric(_STEP_AXIS)
        run.define_metric("*", step_metric=_STEP_AXIS, step_sync=True)
        if mode == "online":
            log.info("W&B: online, %s", run.url)
        else:
            log.info("W&B: offline; upload with `wandb sync %s`", Path(run.dir).parent)
        return run


def _run_id(path: Path) -> str:
    """Return the id in the file, or put a new one there."""
    if path.is_file() and (kept := path.read_text().strip()):
        return kept
    new = secrets.token_hex(4)
    write_text(path, f"{new}\n")
    return new
