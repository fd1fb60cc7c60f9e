"""S: memory, loader processes, services and folders outside the program."""

import json
import multiprocessing
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from isaseg.errors import ConfigError, OutOfMemory
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests.reliability.small import SMALL, STRESS, said, train_in_processes

ONE = [*SMALL, "trainer.max_steps=1"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        MemoryError(),
    ],
)
def test_s6_too_little_memory_is_reported_with_what_to_change(
    error: Exception,
    compose: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: Any) -> None:
        raise error

    monkeypatch.setattr(SegmentationModule, "training_step", fails)
    with pytest.raises(OutOfMemory) as caught:
        train(compose(*ONE, "attention=dense", "data.crop_size=[512,512]", f"run_dir={tmp_path}"))
    assert caught.value.exit_code == 4
    message = str(caught.value)
    order = [
        "accumulate_grad_batches=2",
        "precision=bf16-mixed",
        "attention=isa",
        "data.crop_size below [512, 512]",
    ]
    assert [message.index(word) for word in order] == sorted(message.index(word) for word in order)


def test_s7_memory_stays_flat_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """With two loader processes and W&B; 3000 steps by `make test-stress`, where 1 MB in 1000 steps is too much."""
    steps = 3000 if STRESS else 120
    folder = tmp_path / "run"
    seen = tmp_path / "seen"

    def look(step: int, rank: int) -> None:
        if step % 20 == 10:
            with seen.open("a") as file:
                file.write(json.dumps([step, resident(), handles()]) + "\n")

    def after() -> None:
        left = [child.name for child in multiprocessing.active_children()]
        seen.with_name("after").write_text(json.dumps([left, handles()]))

    words = [*SMALL, "logger=wandb", "data.num_workers=2", f"trainer.max_steps={steps}"]
    words += [f"trainer.val_check_interval={steps // 4}", "trainer.log_every_n_steps=10"]
    assert train_in_processes(words, folder, at_step=look, after=after) == [0], said(folder)
    rows = [json.loads(line) for line in seen.read_text().splitlines()]
    step, memory = (np.array(column, float) for column in list(zip(*rows, strict=True))[:2])
    settled = step > (1000 if STRESS else 60)  # after allocators and caches have grown
    slope = np.polyfit(step[settled], memory[settled], 1)[0] * 1000 / 2**20
    assert slope < (1 if STRESS else 50), f"{slope:.2f} MB in 1000 steps"
    opened = [row[2] for row, later in zip(rows, settled, strict=True) if later]
    batches = [{name for name in names if name.startswith("/dev/shm/")} for names in opened]
    # a batch that a loader sends before its turn is open, but not for 20 steps
    assert not set().union(*(early & late for early, late in pairwise(batches)))
    others = [Counter(name for name in names if not name.startswith("/dev/shm/")) for names in opened]
    fewest, most = min(others, key=Counter.total), max(others, key=Counter.total)
    assert fewest.total() == most.total(), f"open in one look and not in another: {most - fewest}"
    left, open_after = json.loads(seen.with_name("after").read_text())
    assert left == []
    assert len(open_after) <= len(rows[0][2]), open_after
    assert [path.name for path in folder.rglob(".*")] == [], "no temporary file"


def handles() -> list[str]:
    """Return what this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this loop
            found.append(os.readlink(path))
    return found


def resident() -> int:
    """Return the bytes of their own that this process and its loaders hold; W&B's service is another program."""
    total = 0
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for process in ("self", *children):
        with suppress(FileNotFoundError):
            if not Path(f"/proc/{process}/comm").read_text().startswith("wandb"):
                status = Path(f"/proc/{process}/status").read_text()
                total += int(re.findall(r"RssAnon:\s*(\d+) kB", status)[0]) * 1024
    return total


def test_a_tmpdir_in_which_loaders_would_hang_is_reported(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest that is allowed works. A worker that cannot make its socket would be waited for without end."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        for length in (71, 72):
            long = folder / ("t" * (length - len(str(folder)) - 1))
            long.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(long))
            monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
            words = [*ONE, "data.num_workers=1", "data.timeout=60", f"run_dir={tmp_path / str(length)}"]
            if length == 71:
                assert train_in_processes(words[:-1], tmp_path / "run") == [0], said(tmp_path / "run")
            else:
                with pytest.raises(ConfigError, match="TMPDIR of at most 71 characters"):
                    train(compose(*words))
    finally:
        shutil.rmtree(folder)
        multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
