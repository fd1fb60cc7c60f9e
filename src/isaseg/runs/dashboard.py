"""The W&B workspace that compares runs, as code. Importing it needs the package wandb-workspaces."""

from typing import Any

import wandb
from wandb_workspaces import expr
from wandb_workspaces import workspaces as ws
from wandb_workspaces.reports import v2 as wr

from isaseg.errors import ConfigError
from isaseg.runs.guarded_loggers import sentence

_STEP = "trainer/global_step"
_LABEL = wr.Config("attention_label")
_SCORES = ("mIoU", "boundary_mIoU", "image_mIoU")
_COLUMNS = (
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
_COSTS = {  # title, and whether the axis is logarithmic
    "attention_mult_adds": ("multiply-adds of the attention", True),
    "attention_score_mib": ("score memory, MiB", True),
    "mult_adds": ("multiply-adds of the network", False),
    "parameters": ("parameters", False),
}


def workspace(
    entity: str, project: str, name: str, group: str | None = None, score: str = "best"
) -> ws.Workspace:
    """Return the workspace; nothing is contacted.

    Args:
        entity: W&B user or team.
        project: Where the runs are.
        name: Title.
        group: Only the runs of this group; None for all.
        score: Which scores it shows: of the "best" or of the "last" checkpoint. A run has one of the two.

    Raises:
        ConfigError: If `score` is something else.
    """
    if score not in ("best", "last"):
        raise ConfigError(f"expected score=best or score=last, got score={score}")
    key = f"{score}/mIoU"
    filters = [expr.Metric("JobType") == "train"]
    if group is not None:
        filters.append(expr.Metric("Group") == group)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(wr.SummaryMetric(key)),
        settings=ws.WorkspaceSettings(x_axis=_STEP, max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(*filters),
            groupby=[expr.Config("attention_label")],
            order=[expr.Ordering(expr.Summary(key), ascending=False)],
            pinned_columns=[*[f"summary:{score}/{mean}" for mean in _SCORES], *_COLUMNS],
        ),
    )


def save(made: ws.Workspace) -> str:
    """Save a workspace as a new view; return its address.

    Raises:
        ConfigError: If there is no key or no way to W&B, or it refuses.
    """
    instead = "give spec=FILE to write it without one"
    try:
        if not wandb.login(prompt=False):
            raise RuntimeError("no API key; run `wandb login` once")
        made.entity = made.entity or wandb.Api().default_entity or ""
        made.save_as_new_view()
    except Exception as error:  # W&B raises many kinds
        raise ConfigError(
            f"W&B did not save the workspace ({sentence(error)}); fix that, or {instead}"
        ) from error
    return str(made.url)


def _sections(score: wr.SummaryMetric) -> list[ws.Section]:
    costs = [
        wr.ScatterPlot(title=f"mIoU against {title}", x=wr.Config(key), y=score, log_x=log_x)
        for key, (title, log_x) in _COSTS.items()
    ]
    mean = wr.BarPlot(
        title="mIoU, mean of the seeds", metrics=[score], groupby=_LABEL, groupby_aggfunc="mean"
    )
    quality = [
        _curve("val/mIoU", "validation mIoU"),
        _curve("val/boundary_mIoU", "validation mIoU near the boundaries"),
        _curve("val/image_mIoU", "validation mIoU, mean of the images"),
        _curve("val/loss", "validation loss", log_y=True),
        _curve("train/loss", "training loss", log_y=True),
    ]
    classes = [
        wr.WeavePanelSummaryTable(table_name="val/classes"),
        wr.MediaBrowser(title="confusion", media_keys=["val/confusion"], num_columns=2),
    ]
    pictures = wr.MediaBrowser(title="truth and prediction", media_keys=["val/pictures"], mode="grid")
    training = [
        _curve("train/lr", "learning rate"),
        _curve("train/images_per_second", "images per second, all devices"),
        _curve("train/gpu_memory_mib", "GPU memory, MiB (peak)"),
    ]
    return [
        _section("mIoU against cost", [*costs, mean], columns=3, rows=2),
        _section("Curves by context module, mean and range", quality, columns=3),
        _section("Classes", classes, columns=2),
        _section("Pictures", [pictures]),
        _section("Training", training, columns=3),
        _section("What differs", [wr.RunComparer(diff_only="split")]),
    ]


def _section(title: str, panels: list[Any], columns: int = 1, rows: int = 1) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
    return ws.Section(name=title, panels=panels, is_open=True, layout_settings=layout)


def _curve(key: str, title: str, log_y: bool = False) -> wr.LinePlot:
    """Return a line for each context module: the mean of its runs, in the band from their least to their most."""
    return wr.LinePlot(
        title=title,
        x=_STEP,
        y=[key],
        log_y=log_y,
        groupby=_LABEL,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )
