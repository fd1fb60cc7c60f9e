"""The private API that this room uses, each with the issue upstream; tests/runs/test_dashboard.py names the version."""

from typing import Any

from wandb_workspaces.workspaces import Workspace


def workspace_spec(workspace: Workspace) -> dict[str, Any]:
    """Return what W&B stores of a workspace as plain data; there is no public export (wandb#4289)."""
    return dict(workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True))
