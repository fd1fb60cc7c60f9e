"""The smallest run that has every part."""

import json
import os
import signal
import socket
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from isaseg import config
from isaseg.cli import command
from isaseg.runs.history import read_history
from isaseg.training.module import SegmentationModule
from isaseg.training.run import train
from tests.conftest import compose_overrides

STRESS = bool(os.environ.get("ISASEG_STRESS"))  # of `make test-stress`: as often as it takes

SMALL = [
    "backbone=tiny_d8",
    "data.crop_size=[32,32]",
    "data.batch_size=4",
    "data.val_length=2",
    "data.val_batch_size=2",
    "head.channels=16",
    "head.aux_channels=8",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "logger=csv",
    "score_test=false",
    "check_data=false",
    "pictures=0",
]


def loaded(path: Path) -> dict[str, Any]:
    """Return a checkpoint."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    """Return the weights of a run's checkpoint."""
    state: dict[str, Tensor] = loaded(folder / "checkpoints" / f"{name}.ckpt")["state_dict"]
    return state


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether two networks are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def forked(work: Callable[[int], object], processes: int = 1) -> list[int]:
    """Do `work(rank)` in processes of their own; return how they ended: as train.py does, -N for a signal."""
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank)
                code = 0
            except SIGTERMException:
                code = 143
            except BaseException as error:
                traceback.print_exc()
                sys.stderr.flush()
                code = getattr(error, "exit_code", 1)  # an IsasegError has one
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def attempted(*words: str) -> int:
    """Return the exit code of `isaseg train WORDS`, which is to refuse them, in this process; its report is on stderr."""
    handler = signal.getsignal(signal.SIGTERM)
    typed = command._one_word(words)

    def work() -> int:
        train(config.initialised(compose_overrides(*typed), typed))
        return 0

    try:
        return command.run(work, "", typed)
    finally:
        signal.signal(signal.SIGTERM, handler)


def train_in_processes(
    words: Sequence[str],
    folder: Path,
    processes: int = 1,
    at_step: Callable[[int, int], None] | None = None,
    after: Callable[[], None] = lambda: None,
) -> list[int]:
    """Train in processes of their own, which note the samples of each step in FOLDER/samples.RANK.

    Args:
        words: Overrides.
        folder: Run folder.
        processes: How many share the run, by gloo.
        at_step: Called with step and rank before each step.
        after: Called in each when the run is complete.
    """
    port = _free_port()

    def work(rank: int) -> None:
        step = SegmentationModule.training_step

        def noted(self: SegmentationModule, batch: Any, batch_idx: int) -> Tensor:
            if at_step is not None:
                at_step(self.global_step, rank)
            drawn = [self.global_step, batch["id"], float(batch["image"].double().sum())]
            with (folder / f"samples.{rank}").open("a") as file:
                file.write(json.dumps(drawn) + "\n")
            return step(self, batch, batch_idx)

        SegmentationModule.training_step = noted  # type: ignore[method-assign]
        several = []
        if processes > 1:
            several = [f"trainer.devices={processes}", "trainer.strategy=ddp"]
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0}
            sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            meets = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "one"}
            os.environ.update({name: str(value) for name, value in (ranks | sizes | meets).items()})
        output = os.open(folder / f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)
        train(config.initialised(compose_overrides(*words, *several, f"run_dir={folder}"), words))
        after()

    folder.mkdir(exist_ok=True)
    return forked(work, processes)


def said(folder: Path) -> str:
    """Return what all processes of a run have printed."""
    return "".join(path.read_text() for path in folder.glob("said.*"))


def kill(step: int) -> Callable[[int, int], None]:
    """Return an `at_step` that ends every process by SIGKILL at a step."""

    def at_step(now: int, rank: int) -> None:
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return at_step


def history(folder: Path) -> dict[str, Any]:
    """Return all that a run was: of each step samples and numbers, what it scored, weights and optimizer."""
    samples: dict[str, dict[int, Any]] = defaultdict(dict)
    for path in sorted(folder.glob("samples.*")):
        for line in path.read_text().splitlines():
            step, *drawn = json.loads(line)
            samples[path.name][step] = drawn  # the later holds, of those that were repeated
    curves = {key: curve for key, curve in read_history(folder).curves.items() if "per_second" not in key}
    metrics = json.loads((folder / "metrics.json").read_text())
    last = loaded(folder / "checkpoints" / "last.ckpt")
    state = last["optimizer_states"][0]["state"]
    return {
        "samples": dict(samples),
        "curves": curves,
        "metrics": {k: v for k, v in metrics.items() if k != "seconds_per_step"},
        "weights": {k: v.numpy().tobytes() for k, v in last["state_dict"].items()},
        "averaged": {k: v.numpy().tobytes() for k, v in last.get("current_model_state", {}).items()},
        "patience": {k: v["wait_count"] for k, v in last["callbacks"].items() if "EarlyStopping" in k},
        "optimizer": {
            (k, n): torch.as_tensor(v).numpy().tobytes() for k, part in state.items() for n, v in part.items()
        },
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
