"""Reads back what TensorBoard's writer has left in a run folder, as TensorBoard reads it."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_events(folder: Path) -> EventAccumulator:
    """Return all that the event files below a run folder hold."""
    found = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0})
    return found.Reload()


def curves(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return (step, value) of each point that TensorBoard shows."""
    events = read_events(folder)
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
