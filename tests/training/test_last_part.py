"""After the last step: Lightning has moved the network to the CPU, but the rest of a run belongs on its device."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from omegaconf import DictConfig

from isaseg.errors import ConfigError
from isaseg.training import run
from tests.reliability.small import SMALL

TWO = [*SMALL, "trainer.max_steps=2", "trainer.val_check_interval=2", "data.num_workers=0", "pictures=1"]


def test_memory_and_pictures_are_those_of_the_device(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strategy pretends to have a GPU when its memory is read, and another device for the pictures."""
    has = {"device": torch.device("cpu")}
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda self: has["device"]))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda *_: 3 * 2**20)

    def with_device(name: str, before: str | None = None, after: str | None = None) -> None:
        work = getattr(run, name)

        def done(*args: Any, **kwargs: Any) -> Any:
            has["device"] = torch.device(before or has["device"])
            result = work(*args, **kwargs)
            has["device"] = torch.device(after or has["device"])
            return result

        monkeypatch.setattr(run, name, done)

    with_device("_fit", after="cuda:0")
    with_device("copy_weights", before="cpu")
    with_device("_score", after="meta")

    def pictures(segmenter: torch.nn.Module, *args: Any) -> None:
        seen.append((next(segmenter.parameters()).device.type, torch.is_autocast_enabled("cpu")))

    monkeypatch.setattr(run, "save_pictures", pictures)
    run.train(compose(*TWO, "trainer.precision=bf16-mixed", f"run_dir={tmp_path}"))
    assert seen == [("meta", True)]
    assert json.loads((tmp_path / "metrics.json").read_text())["peak_memory_mib"] == 3


def test_kernels_are_searched_for_in_training_alone(
    compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures to score have many sizes, and the search would begin anew for each."""
    searched: dict[str, set[bool]] = {"training": set(), "validation": set()}
    module = run.SegmentationModule

    def noted(what: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*args: Any) -> Any:
            searched[what].add(torch.backends.cudnn.benchmark)
            return work(*args)

        return done

    monkeypatch.setattr(module, "training_step", noted("training", module.training_step))
    monkeypatch.setattr(module, "validation_step", noted("validation", module.validation_step))
    before = torch.backends.cudnn.benchmark
    words = [*TWO, "trainer.val_check_interval=1", "trainer.benchmark=true", "pictures=0"]
    try:
        run.train(compose(*words, f"run_dir={tmp_path}"))
    finally:
        torch.backends.cudnn.benchmark = before
    assert searched == {"training": {True}, "validation": {False}}


@pytest.mark.parametrize(("words", "on"), [("", False), ("trainer.tf32=true", True)])
def test_tf32_is_what_the_configuration_says(
    words: str, on: bool, compose: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For products and convolutions alike; torch's own default has it on for convolutions."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = not on, not on
    seen = []

    def fitted(*args: Any) -> None:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        seen.append(torch.get_float32_matmul_precision())  # as Lightning asks
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_fit", fitted)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.train(compose(*TWO, *words.split(), f"run_dir={tmp_path}"))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    assert seen == [(on, on), "high" if on else "highest"]


def test_trainer_gpu_has_tf32_and_the_default_has_not(compose: Callable[..., DictConfig]) -> None:
    options = {name: compose(f"trainer={name}").trainer.tf32 for name in ("default", "cpu", "gpu", "ddp")}
    assert options == {"default": False, "cpu": False, "gpu": True, "ddp": True}


def test_one_sample_a_process_is_refused_before_anything_is_written(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """Where a norm would have a single value; other modules train with it."""
    words = [*TWO, "data.batch_size=1", "pictures=0"]
    folder = tmp_path / "run"
    with pytest.raises(
        ConfigError, match=r"got one: head.attention.pool.1, a batch norm of ASPP, .* another attention"
    ):
        run.train(compose(*words, "attention=aspp", f"run_dir={folder}"))
    assert not folder.exists()
    run.train(compose(*words, "attention=isa", f"run_dir={folder}"))
