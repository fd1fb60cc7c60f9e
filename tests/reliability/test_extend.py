"""resume=extend: a run goes on from the same one of fewer steps, by the schedule of its own."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from isaseg import config
from isaseg.data.sampler import BatchPlan
from isaseg.errors import CheckpointError, ConfigError
from isaseg.runs.history import read_history
from isaseg.runs.run_folder import report_if_complete
from isaseg.training.optim import reschedule
from isaseg.training.resume import find_start
from isaseg.training.schedules import one_cycle
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, history, kill, said, train_in_processes

WORDS = [*SMALL, "optim=adamw_one_cycle", "trainer.val_check_interval=2", "checkpoint_every_n_steps=1"]
WORDS += ["data.num_workers=0", "callbacks=[default,ema]", "head.dropout=0.3"]
MORE = [*WORDS, "trainer.max_steps=8", "resume=extend"]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_goes_on_by_the_new_schedule_and_after_a_kill_bit_for_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, whole, cut = (tmp_path / name for name in ("base", "whole", "cut"))
    assert train_in_processes([*WORDS, "trainer.max_steps=4"], base) == [0], said(base)
    before = files(base)
    assert train_in_processes(MORE, whole) == [0], said(whole)
    assert train_in_processes(MORE, cut, at_step=kill(6)) == [-signal.SIGKILL], said(cut)
    assert train_in_processes(MORE, cut) == [0], said(cut)
    steps = [json.loads(line)[0] for line in (cut / "samples.0").read_text().splitlines()]
    assert steps == [4, 5, 6, 7], "the second time from its own checkpoint"
    assert files(base) == before
    a, b = history(whole), history(cut)
    for name in a:
        assert a[name] == b[name], name

    factor = one_cycle(
        8, **{key: compose_overrides(*MORE).optim.schedule[key] for key in ("warmup", "power")}
    )
    rates = read_history(whole).curves["train/lr"]
    assert [rates[step] for step in range(5, 9)] == pytest.approx([4e-3 * factor(k) for k in range(4, 8)])
    assert [rates[step] for step in range(1, 5)] == list(read_history(base).curves["train/lr"].values())
    drawn = {step: ids for step, (ids, _) in a["samples"]["samples.0"].items()}
    plan = [[f"train_{index:05d}" for index, _ in keys] for keys in BatchPlan(8192, 4, 8, seed=0)]
    assert drawn == dict(enumerate(plan[4:], 4))
    for folder in (whole, cut):
        facts = json.loads((folder / "facts.json").read_text())
        assert facts["extends"] == {"run": "base", "step": 4, "max_steps": 4}
    assert report_if_complete(compose_overrides(*MORE, f"run_dir={whole}"))
    assert "it extends base: up to step 4, its learning rates" in caplog.text


def test_the_longest_of_those_that_are_the_same_or_one_sentence(tmp_path: Path) -> None:
    def write(name: str, step: int, *words: str) -> None:
        cfg = compose_overrides(*WORDS, *words)
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        content = {"global_step": step, "config": config.identity(cfg)}
        torch.save(content, tmp_path / name / "checkpoints" / "last.ckpt")

    asked = compose_overrides(*MORE, f"run_dir={tmp_path}/new")
    write("other", 7, "trainer.max_steps=7", "optim.lr=1")
    write("longer", 7, "trainer.max_steps=9")
    with pytest.raises(CheckpointError, match="fewer steps than trainer.max_steps=8 beside .*resume=auto"):
        find_start(asked, tmp_path / "new")
    for steps in (2, 6, 4):
        write(f"of{steps}", steps, f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}")
    start = find_start(asked, tmp_path / "new")
    assert start.path == tmp_path / "of6/checkpoints/last.ckpt" and start.checkpoint["global_step"] == 6
    with pytest.raises(
        ConfigError, match="got run_dir='.*of6' of that run; leave run_dir out, or name another"
    ):
        find_start(asked, tmp_path / "of6")


class Falling:
    """A schedule with a state, which LambdaLR saves and restores."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return 1 - step / (self.steps + 1)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer, steps: LambdaLR(optimizer, one_cycle(steps, 0.3, 1)),
        lambda optimizer, steps: LambdaLR(optimizer, Falling(steps)),
        lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
        lambda optimizer, steps: OneCycleLR(optimizer, 0.1, steps),
    ],
    ids=["lambda", "object", "cosine", "one_cycle"],
)
def test_a_restored_schedule_of_more_steps_is_what_it_would_have_been(schedule: Any) -> None:
    def stepped(
        steps: int, begin: int, checkpoint: dict[str, Any] | None = None
    ) -> tuple[list[Any], dict[str, Any]]:
        part = nn.Linear(2, 2)
        optimizer = torch.optim.SGD(part.parameters(), 0.1, momentum=0.9)
        made = schedule(optimizer, steps)
        if checkpoint is not None:
            fresh = torch.optim.SGD(part.parameters(), 0.1, momentum=0.9)
            reschedule(checkpoint, fresh, schedule(fresh, steps))
            optimizer.load_state_dict(checkpoint["optimizer_states"][0])
            made.load_state_dict(checkpoint["lr_schedulers"][0])
        used = []
        for _ in range(begin, steps):
            group = optimizer.param_groups[0]
            used.append((group["lr"], group["momentum"]))
            part(torch.ones(2)).sum().backward()
            optimizer.step()
            made.step()
        return used, {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [made.state_dict()]}

    _, checkpoint = stepped(4, 0)
    continued, _ = stepped(8, 4, checkpoint)
    direct, _ = stepped(8, 0)
    assert torch.tensor(continued) == pytest.approx(torch.tensor(direct[4:]))
    assert "momentum_buffer" in checkpoint["optimizer_states"][0]["state"][0]
