"""The W&B workspace in which runs are compared, as code; and the runs of a folder side by side without an account."""

import hashlib
import json
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
from isaseg.files import replace_file

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

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
        ConfigError: If a package or a key is missing, or W&B refuses.
    """
    if cfg.runs is not None:
        return show(Path(cfg.runs))
    made = workspace(cfg.entity or "", cfg.project, cfg.name, cfg.group)
    if cfg.spec is None:
        log.info("saved: %s", save(made))
        return 0
    path = Path(cfg.spec)
    try:
        with replace_file(path) as file:
            file.write((json.dumps(specification(made), indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"expected to write spec={str(path)!r}, got: {error.strerror}") from error
    log.info("written: %s", path)
    return 0


def workspace(entity: str, project: str, name: str, group: str | None = None) -> "Workspace":
    """Return the workspace; nothing is contacted.

    Args:
        entity: W&B user or team.
        project: Where the runs are.
        name: Title.
        group: Only runs of this group; None for all.

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
    sections = [
        ws.Section(
            name=title,
            panels=panels,
            is_open=True,
            layout_settings=ws.SectionLayoutSettings(columns=columns, rows=rows),
        )
        for title, columns, rows, panels in _sections()
    ]
    for section in sections:
        for number, panel in enumerate(section.panels):  # the same code gives the same specification
            panel._id = hashlib.sha256(f"{section.name} {number}".encode()).hexdigest()[:12]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=_STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*filters),
            groupby=[expr.Config("attention_label")],
            order=[expr.Ordering(expr.Summary(_SCORE), ascending=False)],
            pinned_columns=list(_COLUMNS),
        ),
    )


def specification(made: "Workspace") -> dict[str, Any]:
    """Return what W&B stores of a workspace, plain data."""
    spec: dict[str, Any] = json.loads(made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    return spec


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
        if not made.entity:
            made.entity = wandb.Api().default_entity or ""
        if not made.entity:
            raise ConfigError("expected entity=NAME, the W&B user or team, since the key has no default")
        made.save_as_new_view()
        return str(made.url)
    except ConfigError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"W&B did not save the workspace ({reason}); mend that, or {instead}") from error


def show(folder: Path) -> int:
    """Show the W&B runs below `folder` side by side in `wandb leet`; return its exit code.

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
    """Link W&B's folders into one, which the viewer takes, under the names of the run folders, which it shows.

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


def _sections() -> list[tuple[str, int, int, list[Any]]]:
    """Return title, columns, rows and panels of each section."""
    from wandb_workspaces.reports import v2 as wr

    label = wr.Config("attention_label")
    score = wr.SummaryMetric(_SCORE)

    def against(key: str, title: str, log_x: bool) -> Any:
        return wr.ScatterPlot(title=f"mIoU against {title}", x=wr.Config(key), y=score, log_x=log_x)

    def curve(key: str, title: str, log_y: bool = False) -> Any:
        return wr.LinePlot(
            title=title,
            x=_STEP,
            y=[key],
            log_y=log_y,
            groupby=label,
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )

    def bars(metric: Any, title: str) -> Any:
        return wr.BarPlot(title=title, metrics=[metric], groupby=label, groupby_aggfunc="mean")

    grid = [
        (wr.Config("group_height"), "group height"),
        (wr.Config("group_width"), "group width"),
        (wr.Config("attention_mult_adds"), "attention multiply-adds"),
        (wr.Config("attention_score_mib"), "score memory, MiB"),
        (wr.SummaryMetric("seconds_per_step"), "seconds a step"),
        (score, "mIoU"),
    ]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=m, display_name=name) for m, name in grid]
    return [
        (
            "mIoU against cost",
            2,
            2,
            [
                against("attention_mult_adds", "multiply-adds of the attention", True),
                against("attention_score_mib", "score memory, MiB", True),
                against("mult_adds", "multiply-adds of the network", False),
                against("parameters", "parameters", False),
            ],
        ),
        (
            "Curves by context module, mean and range",
            3,
            1,
            [
                curve("val/mIoU", "validation mIoU"),
                curve("val/loss", "validation loss", True),
                curve("train/loss", "training loss", True),
            ],
        ),
        (
            "Group sizes",
            2,
            1,
            [
                wr.ParallelCoordinatesPlot(title="group size, cost, mIoU", columns=columns),
                bars(score, "mIoU, mean of the seeds"),
            ],
        ),
        (
            "Classes",
            2,
            1,
            [
                wr.WeavePanelSummaryTable(table_name="val/classes"),
                wr.MediaBrowser(title="confusion", media_keys=["val/confusion"], num_columns=2),
            ],
        ),
        (
            "Pictures",
            1,
            1,
            [wr.MediaBrowser(title="truth and prediction", media_keys=["val/pictures"], mode="grid")],
        ),
        (
            "Training",
            3,
            1,
            [
                curve("train/lr", "learning rate"),
                curve("train/images_per_second", "images per second, all devices"),
                curve("train/gpu_memory_mib", "GPU memory, MiB (peak)"),
            ],
        ),
        ("What differs", 1, 1, [wr.RunComparer(diff_only="split")]),
    ]
