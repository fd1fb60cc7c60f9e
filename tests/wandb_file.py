"""Reads back what W&B has written offline: records in LevelDB's log format, each a protobuf of wandb's own."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32768
_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class WandbFile:
    """One run, or the part of it that one process wrote."""

    run: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, tuple[str, set[str]]] = field(default_factory=dict)  # step axis, kinds of summary
    exit_code: int | None = None

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Return (step, value) of each row of the history that has the metric."""
        return [(row["trainer/global_step"], row[key]) for row in self.history if key in row]


def read_run_folder(folder: Path) -> WandbFile:
    """Return what the only, finished `.wandb` file of a run folder holds; ValueError if it is damaged or cut."""
    (path,) = folder.glob("wandb/*run-*/*.wandb")
    found = WandbFile()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.run = {
                "id": run.run_id,
                "project": run.project,
                "group": run.run_group,
                "job_type": run.job_type,
                "name": run.display_name,
                "tags": list(run.tags),
            }
            found.config |= _items(run.config.update)
        elif kind == "config":
            found.config |= _items(record.config.update)
        elif kind == "history":
            found.history.append(_items(record.history.item))
        elif kind == "summary":
            found.summary |= _items(record.summary.update)
        elif kind == "metric":
            metric = record.metric
            kinds = {descriptor.name for descriptor, _ in metric.summary.ListFields()}
            found.metrics[metric.name or metric.glob_name] = (metric.step_metric, kinds)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    if data[:4] != b":W&B":
        raise ValueError(f"expected a W&B file, got {data[:4]!r}")
    position, parts = 7, b""
    while position < len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:  # zeros up to the next block
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        part = data[position : position + length]
        if len(part) < length or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
            raise ValueError(f"cut or damaged at byte {position}")
        position += length
        parts = part if kind in (_FULL, _FIRST) else parts + part
        if kind in (_FULL, _LAST):
            yield parts
