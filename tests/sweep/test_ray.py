"""Jobs that Ray places; most of this runs only where Ray is installed, which the project does not ask for."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.sweep.jobs import Job, quoted
from isaseg.sweep.ray import ray_jobs
from tests.conftest import compose_overrides

with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install ray")

# Stands for train.py: tells that it began, waits for its file, saves if it is told to end.
FAKE_TRAIN = """
import json, os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, seed = pathlib.Path(words["run_dir"].strip("'")), words["seed"]
def save(number, frame):
    (folder / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("began", os.environ.get("CUDA_VISIBLE_DEVICES", "-"), flush=True)
while (pathlib.Path(__file__).parent / f"hold{seed}").exists():
    time.sleep(0.02)
sys.exit(3 if seed == "13" else 0)
"""


def options(**other: Any) -> dict[str, Any]:
    """Return what conf/hydra/launcher/ray.yaml says."""
    node = OmegaConf.to_container(OmegaConf.load(config.conf_dir() / "hydra" / "launcher" / "ray.yaml"))
    assert isinstance(node, dict)
    del node["_target_"]
    return {**{str(key): value for key, value in node.items()}, **other}


def job_of(tmp_path: Path, seed: int, *overrides: str) -> Job:
    cfg = compose_overrides(f"seed={seed}", *overrides)
    cfg.run_dir = str(tmp_path / "runs" / str(seed))
    words = (f"seed={seed}", f"run_dir={quoted(cfg.run_dir)}")
    return Job(f"seed {seed}", Path(cfg.run_dir), words, cfg)


def until(condition: Callable[[], Any]) -> Any:
    """Return what `condition` gives once it is not None or False."""
    end = time.monotonic() + 60
    while (value := condition()) is None or value is False:
        assert time.monotonic() < end, "did not happen within a minute"
        time.sleep(0.05)
    return value


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("atexit.register", lambda *args, **options: None)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **options: str(tmp_path))
    with pytest.raises(ConfigError, match="hydra/launcher=ray needs Ray .*; run pip install ray"):
        ray_jobs([job_of(tmp_path, 1)], Path("train.py"), **options())


def test_several_nodes_are_not_for_ray(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a job has one node; several: hydra/launcher=slurm"):
        ray_jobs([job_of(tmp_path, 1, "trainer.num_nodes=2")], Path("train.py"), **options())


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    yield
    sys.modules["ray"].shutdown()


@with_ray
def test_each_job_is_a_process_that_ends_as_it_likes_or_is_told_to_save(tmp_path: Path, ray: None) -> None:
    script = tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAIN)
    jobs = [job_of(tmp_path, seed) for seed in (1, 13, 2)]
    (tmp_path / "hold2").touch()
    start = ray_jobs(jobs, script, **options(num_cpus=3, num_gpus=0))
    with pytest.raises(ConfigError, match="a job needs 4 CPUs, the largest machine of Ray has 3; lower"):
        ray_jobs(jobs, script, **options(num_cpus=3, num_gpus=0, cpus_per_job=4))
    processes = start(jobs)
    assert [until(processes[job].poll) for job in jobs[:2]] == [0, 3]
    log = jobs[2].folder / "log.txt"
    until(lambda: log.is_file() and "began" in log.read_text())
    processes[jobs[2]].stop()
    processes[jobs[2]].wait()
    assert processes[jobs[2]].poll() == 143
    assert (jobs[2].folder / "saved").exists()
    assert not Path(os.environ["HOME"], ".ray").exists()
