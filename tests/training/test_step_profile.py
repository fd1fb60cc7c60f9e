"""`trainer=profile` names what takes the time, and `compile=true` trains what was compiled."""

import gzip
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from isaseg.config import PROFILED, initialised
from isaseg.errors import ConfigError
from isaseg.training.run import train
from isaseg.training.step_profile import ACTIVE
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, STRESS, loaded


def test_a_few_steps_are_watched_and_the_costs_are_listed(
    compose: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever number of steps the experiment has."""
    caplog.set_level(logging.INFO)
    train(compose(*SMALL, "trainer=profile", "trainer.max_steps=5000", f"run_dir={tmp_path}"))
    assert loaded(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == PROFILED
    table = (tmp_path / "profile.txt").read_text()
    assert "aten::convolution_backward" in table
    shares = [float(share) for share in re.findall(r" ([\d.]+)%  +[\d.]+[mu]?s +[\d.]+%", table)]
    assert len(shares) > 20 and shares == sorted(shares, reverse=True), "by their own time"
    assert "profile.txt" in caplog.text
    trace = json.loads(gzip.decompress((tmp_path / "profile.json.gz").read_bytes()))
    steps = {e["name"] for e in trace["traceEvents"] if str(e.get("name", "")).startswith("ProfilerStep")}
    assert len(steps) == ACTIVE
    assert not [path.name for path in tmp_path.glob(".*")], "nothing half-written"


def test_a_sweep_looks_for_its_runs_where_they_are() -> None:
    """The few steps are part of a run's name."""
    cfg = initialised(compose_overrides("trainer=profile"), [])
    assert cfg.trainer.max_steps == cfg.trainer.val_check_interval == PROFILED


def test_training_runs_what_was_compiled(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, the same checkpoint, and all batches of one size, for one graph, also at the end of an epoch.

    (torch's own compiler under `make test-stress`.)
    """
    sizes: list[torch.Size] = []

    def compiled(network: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        assert dynamic is False

        def run(image: torch.Tensor) -> Any:
            sizes.append(image.shape)
            return network(image)

        return run

    if not STRESS:
        monkeypatch.setattr(torch, "compile", compiled)
    words = [*SMALL, "trainer.max_steps=4", "trainer.val_check_interval=4", "data.source.train_length=10"]
    plain = train(compose(*words, f"run_dir={tmp_path}/plain"))
    done = train(compose(*words, "compile=true", f"run_dir={tmp_path}/compiled"))
    assert STRESS or sizes == [(4, 3, 32, 32)] * 4
    assert done["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-3 if STRESS else 1e-12)
    names = [
        set(loaded(tmp_path / run / "checkpoints" / "last.ckpt")["state_dict"])
        for run in ("plain", "compiled")
    ]
    assert names[0] == names[1]


def test_a_missing_compiler_is_reported_before_work_begins(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"C\+\+ compiler for compile=true .* got no 'no-such-compiler'"):
        train(compose(*SMALL, "trainer.max_steps=1", "compile=true", f"run_dir={tmp_path}/run"))
    assert not (tmp_path / "run" / "config.yaml").exists()
