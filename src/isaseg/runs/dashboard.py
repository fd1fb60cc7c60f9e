"""The W&B workspace that compares runs, as code; and the runs of a folder beside each other without an account."""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from isaseg.errors import ConfigError
from isaseg.runs._compat import workspace_spec
from isaseg.runs.run_folder import write_json

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

log = logging.getLogger(__name__)

_STEP = "trainer/global_step"
_SCORE = "best/mIoU"
_COLUMNS = (
    "summary:best/mIoU",
    "config:attention_label",
    "config:data.name",
    "config:backbone.name",
    "config:seed",
    "config:attention_mult_adds",
    "config:attention_score_mib",
    "config:parameters",
    "summary:seconds_per_step",
    "summary:peak_memory_mib",
    "config:git_commit",
)


def main(cfg: DictConfig) -> int:
    """Do what conf/dashboard.yaml says; return the exit code.

    Raises:
        ConfigError: If a package or a key is missing, a file cannot be written, or W&B refuses.
    """
    if cfg.runs is not None:
        return show(Path(cfg.runs))
    made = workspace(cfg.entity or "", cfg.project, cfg.name, cfg.group)
    if cfg.spec is None:
        log.info("saved: %s", save(made))
        return 0
    try:
        write_json(Path(cfg.spec), workspace_spec(made))
    except OSError as error:
        raise ConfigError(f"expected to write spec={str(cfg.spec)!r}, got: {error.strerror}") from error
    log.info("written: %s", cfg.spec)
    return 0


def workspace(entity: str, project: str, name: str, group: str | None = None) -> "Workspace":
    """Return the workspace; nothing is contacted.

    Args:
        entity: W&B user or team.
        project: Where the runs are.
        name: Title.
        group: Only the runs of this group; None for all.

    Raises:
        ConfigError: If wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import expr
        from wandb_workspaces import workspaces as ws
    except ImportError as error:
        raise ConfigError(
            f"expected the package wandb-workspaces, got: {error}; pip install 'isaseg[dashboard]'"
        ) from error
    filters = [expr.Metric("JobType") == "train"]
    if group is not None:
        filters.append(expr.Metric("Group") == group)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(),
        settings=ws.WorkspaceSettings(x_axis=_STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*filters),
            groupby=[expr.Config("attention_label")],
            order=[expr.Ordering(expr.Summary(_SCORE), ascending=False)],
            pinned_columns=list(_COLUMNS),
        ),
    )


def save(made: "Workspace") -> str:
    """Save a workspace as a new view; return its address.

    Raises:
        ConfigError: If there is no key or no way to W&B, or it refuses.
    """
    import wandb

    instead = "give spec=FILE to write it without one"
    try:
        if not wandb.login(prompt=False):
            raise ConfigError(f"expected a W&B key, got none; run `wandb login` once, or {instead}")
        made.entity = made.entity or wandb.Api().default_entity or ""
        if not made.entity:
            raise ConfigError("expected entity=NAME, the W&B user or team, since the key has no default")
        made.save_as_new_view()
        return str(made.url)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"W&B did not save the workspace ({reason}); fix that, or {instead}") from error


def show(folder: Path) -> int:
    """Show the W&B runs below `folder` beside each other in `wandb leet`; return its exit code.

    Raises:
        ConfigError: If there are none.
    """
    runs = sorted({path.parent.resolve() for path in folder.rglob("wandb/*run-*/*.wandb")})
    if not runs:
        raise ConfigError(
            f"expected W&B runs below runs={str(folder)!r}, got none; train with logger=wandb first"
        )
    with tempfile.TemporaryDirectory() as together:
        _gather(runs, Path(together))
        command = [sys.executable, "-m", "wandb", "leet", together]
        return subprocess.run(command, env={**os.environ, "WANDB_SILENT": "true"}).returncode


def _gather(runs: Sequence[Path], together: Path) -> None:
    """Link the folders of W&B into the one that the viewer takes, under the names of the run folders, which it shows.

    It looks for `run-<time>-<name>/run-<name>.wandb`.
    """
    for run in runs:
        name, time = run.parents[1].name, run.name.rsplit("-", 2)[-2]
        link = together / f"run-{time}-{name}"
        if link.exists():  # a copy
            continue
        link.mkdir()
        (link / "files").symlink_to(run / "files", target_is_directory=True)
        (link / f"run-{name}.wandb").symlink_to(next(run.glob("*.wandb")))


def _sections() -> list["Section"]:
    from wandb_workspaces.reports import v2 as wr

    label, score = wr.Config("attention_label"), wr.SummaryMetric(_SCORE)
    quality = [
        _curve("val/mIoU", "validation mIoU"),
        _curve("val/loss", "validation loss", log_y=True),
        _curve("train/loss", "training loss", log_y=True),
    ]
    training = [
        _curve("train/lr", "learning rate"),
        _curve("train/images_per_second", "images per second, all devices"),
        _curve("train/gpu_memory_mib", "GPU memory, MiB (peak)"),
    ]
    classes = [
        wr.WeavePanelSummaryTable(table_name="val/classes"),
        wr.MediaBrowser(title="confusion", media_keys=["val/confusion"], num_columns=2),
    ]
    pictures = wr.MediaBrowser(title="truth and prediction", media_keys=["val/pictures"], mode="grid")
    of_seeds = {"groupby": label, "groupby_aggfunc": "mean"}
    bars = wr.BarPlot(title="mIoU, mean of the seeds", metrics=[score], **of_seeds)
    return [
        _section("mIoU against cost", _costs(), columns=2, rows=2),
        _section("Curves by context module, mean and range", quality, columns=3),
        _section("Group sizes", [_group_sizes(), bars], columns=2),
        _section("Classes", classes, columns=2),
        _section("Pictures", [pictures]),
        _section("Training", training, columns=3),
        _section("What differs", [wr.RunComparer(diff_only="split")]),
    ]


def _section(title: str, panels: list[Any], columns: int = 1, rows: int = 1) -> "Section":
    from wandb_workspaces import workspaces as ws

    layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
    return ws.Section(name=title, panels=panels, is_open=True, layout_settings=layout)


def _curve(key: str, title: str, log_y: bool = False) -> Any:
    """Return a line for each context module: the mean of its runs, in the band from their least to their most."""
    from wandb_workspaces.reports import v2 as wr

    grouped = {
        "groupby": wr.Config("attention_label"),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "minmax",
    }
    return wr.LinePlot(title=title, x=_STEP, y=[key], log_y=log_y, **grouped)


def _costs() -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    return [
        wr.ScatterPlot(
            title=f"mIoU against {title}", x=wr.Config(key), y=wr.SummaryMetric(_SCORE), log_x=log_x
        )
        for key, title, log_x in (
            ("attention_mult_adds", "multiply-adds of the attention", True),
            ("attention_score_mib", "score memory, MiB", True),
            ("mult_adds", "multiply-adds of the network", False),
            ("parameters", "parameters", False),
        )
    ]


def _group_sizes() -> Any:
    from wandb_workspaces.reports import v2 as wr

    axes = {
        "group height": wr.Config("group_height"),
        "group width": wr.Config("group_width"),
        "attention multiply-adds": wr.Config("attention_mult_adds"),
        "score memory, MiB": wr.Config("attention_score_mib"),
        "seconds a step": wr.SummaryMetric("seconds_per_step"),
        "mIoU": wr.SummaryMetric(_SCORE),
    }
    columns = [wr.ParallelCoordinatesPlotColumn(metric=m, display_name=name) for name, m in axes.items()]
    return wr.ParallelCoordinatesPlot(title="group size, cost, mIoU", columns=columns)
