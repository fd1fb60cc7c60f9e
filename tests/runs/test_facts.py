"""What is known of a run before it starts: counted, not run."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from isaseg.runs import facts
from isaseg.runs.facts import git_commit, run_facts
from isaseg.training.build import build_module
from isaseg.training.module import SegmentationModule
from tests import conftest

SOURCE = SimpleNamespace(groups=None, palette=torch.zeros(8, 3, dtype=torch.uint8))
DATA: Any = SimpleNamespace(classes="abcdefgh", source=lambda split: SOURCE)


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "_outside", conftest._count)


def counted_by_hand(module: SegmentationModule, size: tuple[int, int]) -> tuple[int, list[tuple[int, ...]]]:
    """Run the network for real: multiply-adds of the convolutions outside the context module, and its maps."""
    total, maps = 0, []
    attention = module.segmenter.head.attention

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    attention.register_forward_pre_hook(lambda _, inputs: maps.append(tuple(inputs[0].shape[-2:])))
    for layer in set(module.segmenter.modules()) - set(attention.modules()):
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    with torch.no_grad():
        module.segmenter.eval()(torch.zeros(1, 3, *size, dtype=torch.uint8))
    return total, maps


@pytest.mark.parametrize("words", [["attention=isa"], ["attention=dense"], ["data.crop_size=[97,130]"]])
def test_costs_are_those_of_a_pass_that_is_run(words: list[str], compose: Callable[..., DictConfig]) -> None:
    cfg = compose("trainer.accelerator=cpu", *words)
    module = build_module(cfg, DATA)
    found = run_facts(cfg, module.segmenter)
    outside, maps = counted_by_hand(module, tuple(cfg.data.crop_size))
    cost = module.segmenter.head.attention.cost(*maps[0])
    assert found["mult_adds"] == outside + cost.mult_adds
    assert found["attention_mult_adds"] == cost.attention_mult_adds
    assert found["attention_score_mib"] == cost.score_entries * 4 / 2**20
    assert found["parameters"] == sum(p.numel() for p in module.segmenter.parameters())


def test_looking_changes_nothing(compose: Callable[..., DictConfig]) -> None:
    cfg = compose("trainer.accelerator=cpu", "head.aux_channels=16", "backbone=tiny_d8")
    module = build_module(cfg, DATA)
    module.segmenter.backbone.eval()  # a part that is frozen
    modes = [part.training for part in module.modules()]
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    found = run_facts(cfg, module.segmenter)
    assert torch.equal(torch.rand(4), drawn)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert json.loads(json.dumps(found)) == found
    known = {
        "attention_label": "isa-8x8",
        "data": "lamps",
        "seed": 0,
        "device": "cpu",
        "torch": torch.__version__,
    }
    assert known.items() <= found.items()


def test_a_network_that_looks_at_values_has_no_count(compose: Callable[..., DictConfig]) -> None:
    class Curious(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() else x

    cfg = compose("attention=none", "trainer.accelerator=cpu")
    module = build_module(cfg, DATA)
    module.segmenter.head.fuse = Curious()
    found = run_facts(cfg, module.segmenter)
    assert found["mult_adds"] is None
    assert found["parameters"] > 0
    assert module.training


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_that_of_the_folder_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, other = tmp_path / "repository", tmp_path / "other"
    for folder in (repository, other):
        (folder / "inside").mkdir(parents=True)
        git(folder, "init", "-q")
    assert git_commit(repository) is None, "no commit yet"
    for folder in (repository, other):
        (folder / "file").write_text(folder.name)
        git(folder, "add", "file")
        git(folder, "commit", "-q", "-m", "m")
    git(repository, "tag", "-a", "v1", "-m", "m")
    head = git(repository, "rev-parse", "HEAD")
    monkeypatch.chdir(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_commit(repository) == head
    index = (repository / ".git" / "index").read_bytes()
    os.utime(repository / "file", (1, 1))  # for which git would like to write another
    assert git_commit(repository) == head
    assert (repository / ".git" / "index").read_bytes() == index
    (repository / "untracked").write_text("")
    assert git_commit(repository) == head
    (repository / "file").write_text("changed")
    assert git_commit(repository) == f"{head}+dirty"
    assert git_commit(repository / "inside") is None, "installed inside somebody's repository"
    assert git_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert git_commit(tmp_path) is None, "not a repository"
    monkeypatch.setenv("PATH", os.devnull)
    assert git_commit(repository) is None, "no git"
