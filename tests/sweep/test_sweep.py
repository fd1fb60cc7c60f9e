"""Several runs: each once, each a process of its own, whatever happens to the others."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hydra_plugins.isaseg_sweeps import LocalLauncher
from isaseg.errors import ConfigError
from isaseg.runs.history import read_history
from isaseg.sweep import local as local_module
from isaseg.sweep.grid import combinations
from isaseg.sweep.jobs import Job, Plan, plan, processes, quoted
from isaseg.sweep.local import alone, gpus_needed, local, local_command, visible_gpus
from isaseg.sweep.supervise import supervise
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import STRESS, train_in_processes
from tests.reliability.small import said as told

ROOT = Path(__file__).resolve().parents[2]
TINY = ["data.val_length=4", "data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=2"]
TINY += ["logger=csv", "callbacks.pictures=0", "score_test=false", "data.num_workers=0"]

# Stands for train.py: writes what it was given, waits for its file, fails where the overrides say so.
FAKE_TRAIN = """
import json, os, pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, seed = pathlib.Path(words["run_dir"].strip("'")), words["seed"]
here = pathlib.Path(__file__).parent
with (here / "order.txt").open("a") as file:
    file.write(f"start {seed} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\\n")
while (here / f"hold{seed}").exists():
    time.sleep(0.02)
with (here / "order.txt").open("a") as file:
    file.write(f"end {seed}\\n")
if seed == "13":
    print("no such luck", file=sys.stderr)
    sys.exit(1)
(folder / "metrics.json").write_text(json.dumps({"val/mIoU": int(seed) / 100}))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "fake_train.py"
    path.write_text(FAKE_TRAIN)
    return path


def jobs_of(tmp_path: Path, seeds: Sequence[int], *overrides: str) -> list[Job]:
    """Return a job for each seed; composed once, which takes a second."""
    cfg = compose_overrides(*overrides)
    found = []
    for seed in seeds:
        mine: DictConfig = cfg.copy()
        mine.seed, mine.run_dir = seed, str(tmp_path / "runs" / str(seed))
        words = (*overrides, f"seed={seed}", f"run_dir={quoted(mine.run_dir)}")
        found.append(Job(f"seed {seed}", Path(mine.run_dir), words, mine))
    return found


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def order(script: Path) -> list[list[str]]:
    path = script.with_name("order.txt")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# ---------------------------------------------------------------- which jobs


def planned(*combos: Sequence[str]) -> Plan:
    return plan(combos, lambda overrides: compose_overrides(*overrides))


def test_every_combination_and_the_command_line_replaces_what_a_file_sweeps() -> None:
    found = combinations(
        {"seed": "0,1", "optim.lr": "1,2"}, ["optim.lr=3", "attention=isa,dense", "+a.b='x,y'"]
    )
    assert [" ".join(words) for words in found] == [
        f"seed={seed} optim.lr=3 attention={attention} +a.b='x,y'"
        for seed in (0, 1)
        for attention in ("isa", "dense")
    ]
    assert combinations({"attention.group_size": "[2,2],[4,8]"}, []) == [
        ["attention.group_size=[2,2]"],
        ["attention.group_size=[4,8]"],
    ]
    with pytest.raises(ConfigError, match=r"interval.*optuna"):
        combinations({}, ["optim.lr=interval(0,1)"])


def test_a_row_keeps_its_overrides_together_and_the_command_line_replaces_them() -> None:
    rows = ["attention=none trainer.max_steps=600", "attention=isa attention.group_size=[4,8]"]
    found = combinations({"seed": "0,1"}, [], rows)
    assert [" ".join(words) for words in found] == [f"{row} seed={seed}" for row in rows for seed in (0, 1)]
    found = combinations({"seed": "0,1"}, ["seed=3", "trainer.max_steps=5"], rows)
    assert [" ".join(words) for words in found] == [
        "attention=none seed=3 trainer.max_steps=5",
        "attention=isa attention.group_size=[4,8] seed=3 trainer.max_steps=5",
    ]


def test_a_dense_model_has_no_group_size_and_is_trained_once() -> None:
    sizes, kinds = ("[4,4]", "[8,8]"), ("isa", "dense")
    found = planned(
        *([f"attention={kind}", f"attention.group_size={size}"] for kind in kinds for size in sizes)
    )
    assert found.job_of == [0, 1, 2, 2]
    assert [job.name.split()[0] for job in found.jobs] == ["isa-4x4", "isa-8x8", "dense"]
    assert "attention.group_size=[4,4] where it has no meaning, with attention=dense" in found.remarks[0]
    assert found.remarks[-1].startswith("1 of 4 combinations")
    assert "attention.group_size" not in " ".join(found.jobs[2].overrides)


def test_what_a_run_is_not_told_by_counts_as_the_same_run() -> None:
    found = planned(["data.num_workers=0"], ["data.num_workers=2"], ["seed=1"])
    assert found.job_of == [0, 0, 1]


def test_names_tell_jobs_apart() -> None:
    names = [
        job.name for job in planned(["optim.lr=1e-3"], ["optim.lr=2e-3"], ["seed=3", "optim.lr=1e-3"]).jobs
    ]
    assert names[0].endswith("seed 0 optim.lr=1e-3")
    assert names[1].endswith("seed 0 optim.lr=2e-3")
    assert names[2].endswith("seed 3")


@pytest.mark.parametrize("typo", ["attention.group_sise=[4,4]", "atention=isa", "optim.lrr=1"])
def test_a_typo_is_no_override_without_meaning(typo: str) -> None:
    with pytest.raises(Exception, match=re.escape(typo.split("=")[0])):
        planned(["attention=dense", typo], ["attention=isa", typo])


def test_what_is_not_swept_has_to_fit() -> None:
    with pytest.raises(Exception, match="attention.group_size"):
        planned(*(["attention=dense", "attention.group_size=[4,4]", f"seed={seed}"] for seed in (0, 1)))


def test_one_folder_for_several_jobs_is_refused() -> None:
    with pytest.raises(ConfigError, match="output_dir"):
        planned(["run_dir=x", "seed=0"], ["run_dir=x", "seed=1"])


# ---------------------------------------------------------------- seen through to the end


def test_s5_a_failure_is_told_at_once_and_stops_nobody(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [12, 13, 14])
    (tmp_path / "hold14").touch()
    console = quiet()

    def watch(job: Job) -> bool:  # asked while the last job still runs
        if "FAILED" in said(console):
            (tmp_path / "hold14").unlink(missing_ok=True)
        return False

    outcomes = supervise(jobs, local(jobs, script, gpus=[]), console, watch)
    assert [outcomes[job].state for job in jobs] == ["finished", "failed", "finished"]
    assert outcomes[jobs[2]].metrics == {"val/mIoU": 0.14}
    assert "no such luck" in outcomes[jobs[1]].message
    lines = said(console).splitlines()
    assert any(line.startswith("FAILED  seed 13: exit code 1: no such luck") for line in lines)
    assert str(jobs[1].folder / "log.txt") in said(console)
    assert "no such luck" in (jobs[1].folder / "failed.txt").read_text()
    assert not (jobs[0].folder / "failed.txt").exists()


def test_the_log_of_an_earlier_attempt_is_kept_and_its_failure_is_not(tmp_path: Path, script: Path) -> None:
    (job,) = jobs_of(tmp_path, [1])
    job.folder.mkdir(parents=True)
    (job.folder / "failed.txt").write_text("before")
    (job.folder / "log.txt").write_text("before\n")
    assert supervise([job], local([job], script, gpus=[]), quiet())[job].state == "finished"
    assert not (job.folder / "failed.txt").exists()
    assert (job.folder / "log.txt").read_text().startswith("before")


def test_what_the_watch_does_not_want_is_stopped_and_not_failed(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    (tmp_path / "hold1").touch()
    outcomes = supervise(jobs, local(jobs, script, gpus=[]), quiet(), lambda job: job is jobs[0])
    assert [outcomes[job].state for job in jobs] == ["stopped", "finished"]
    assert not (jobs[0].folder / "failed.txt").exists()


def test_an_interrupted_sweep_ends_its_jobs(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    for seed in (1, 2):
        (tmp_path / f"hold{seed}").touch()
    started = []
    start = local(jobs, script, slots=2, gpus=[])

    def remembering(waiting: list[Job]) -> dict:
        new = start(waiting)
        started.extend(new.values())
        return new

    def watch(job: Job) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise(jobs, remembering, quiet(), watch)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


# ---------------------------------------------------------------- on this machine


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_more_jobs_at_a_time_than_slots(slots: int, tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, range(5))
    supervise(jobs, local(jobs, script, slots=slots, gpus=[]), quiet())
    running = most = 0
    for what, *_ in order(script):
        running += 1 if what == "start" else -1
        most = max(most, running)
    assert most <= slots
    assert len(order(script)) == 10


def test_every_job_has_gpus_of_its_own(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(
        tmp_path, range(3), "trainer.accelerator=gpu", "trainer.devices=2", "trainer.strategy=ddp_spawn"
    )
    for seed in range(3):
        (tmp_path / f"hold{seed}").touch()

    def watch(job: Job) -> bool:
        if len([line for line in order(script) if line[0] == "start"]) == 2:  # two have room, the third waits
            for seed in range(3):
                (tmp_path / f"hold{seed}").unlink(missing_ok=True)
        return False

    supervise(jobs, local(jobs, script, gpus=["3", "5", "7", "8"]), quiet(), watch)
    given = [line[2] for line in order(script) if line[0] == "start"]
    assert sorted(given[:2]) == ["3,5", "7,8"]
    assert given[2] in ("3,5", "7,8")


@pytest.mark.parametrize(
    ("accelerator", "devices", "there", "count", "needed"),
    [
        ("cpu", 2, 4, 2, 0),
        ("gpu", 2, 4, 2, 2),
        ("gpu", [1, 3], 4, 2, 2),
        ("gpu", -1, 4, None, 4),
        ("auto", 1, 4, 1, 1),
        ("auto", "auto", 0, None, 0),
        ("gpu", "2", 1, 2, 2),
    ],
)
def test_how_many_processes_and_gpus_a_run_takes(
    accelerator: str, devices: object, there: int, count: int | None, needed: int
) -> None:
    cfg = DictConfig({"trainer": {"accelerator": accelerator, "devices": devices}})
    assert processes(cfg) == count
    assert gpus_needed(cfg, there) == needed


def test_a_job_that_cannot_run_here_is_told_before_any_starts(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [0], "trainer.accelerator=gpu", "trainer.devices=4")
    with pytest.raises(ConfigError, match="needs 4 GPUs, this machine has 2"):
        local(jobs, script, gpus=["0", "1"])
    with pytest.raises(ConfigError, match="slots of at least 1"):
        local(jobs, script, slots=0, gpus=["0", "1", "2", "3"])


def test_several_devices_are_started_by_torchrun(tmp_path: Path, script: Path) -> None:
    (one,) = jobs_of(tmp_path, [0])
    (two,) = jobs_of(tmp_path, [0], "trainer=ddp", "trainer.devices=2")
    (spawn,) = jobs_of(tmp_path, [0], "trainer=ddp", "trainer.devices=2", "trainer.strategy=ddp_spawn")
    assert local_command(one, script, 0)[:2] == [sys.executable, str(script)]
    assert local_command(spawn, script, 2)[:2] == [sys.executable, str(script)]
    words = local_command(two, script, 2)
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert "--nproc-per-node=2" in words
    assert words[words.index(str(script)) + 1 :] == [*two.overrides, "hydra.mode=RUN"]
    (chosen,) = jobs_of(tmp_path, [0], "trainer=ddp", "trainer.devices=[1,3]")
    assert local_command(chosen, script, 2)[-1] == "trainer.devices=2", "GPUs 1 and 3 are the job's 0 and 1"


def test_a_run_that_another_process_trains_is_waited_for_and_not_trained_twice(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    start = local(jobs, script, slots=2, gpus=[])
    with alone(jobs[0].folder) as lock:
        assert lock is not None
        mine = start(jobs)
        assert list(mine) == [jobs[1]]
        assert start(jobs[:1]) == {}
        mine[jobs[1]].wait()
        jobs[0].folder.joinpath("metrics.json").write_text('{"val/mIoU": 0.5, "step": 1}')
        OmegaConf.save(jobs[0].cfg, jobs[0].folder / "config.yaml", resolve=True)
    assert [process.poll() for process in start(jobs[:1]).values()] == [0]
    assert [line for line in order(script) if line[0] == "start"] == [["start", "2"]]
    told = capsys.readouterr().err
    assert told.count("another process trains in") == 1


def test_a_lock_lasts_as_long_as_the_job_that_inherits_it(tmp_path: Path, script: Path) -> None:
    (job,) = jobs_of(tmp_path, [1])
    (tmp_path / "hold1").touch()
    process = local([job], script, gpus=[])([job])[job]
    with alone(job.folder) as lock:
        assert lock is None
    (tmp_path / "hold1").unlink()
    process.wait()
    with alone(job.folder) as lock:
        assert lock is not None


def test_a_job_without_a_folder_fails_and_the_others_go_on(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "1").write_text("a file in its place")
    outcomes = supervise(jobs, local(jobs, script, gpus=[]), quiet())
    assert [outcomes[job].state for job in jobs] == ["failed", "finished"]
    assert "could not be started" in outcomes[jobs[0]].message


def test_steps_that_are_none_end_no_sweep(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [1, 2, 3])
    jobs[0].cfg.trainer.max_steps, jobs[1].cfg.trainer.max_steps = 0, "abc"
    shown = Console(file=io.StringIO(), width=200, force_terminal=True)
    outcomes = supervise(jobs, local(jobs, script, gpus=[]), shown)
    assert {outcome.state for outcome in outcomes.values()} == {"finished"}


@pytest.mark.parametrize("gpus", ["2,5", "2, 5", [2, 5], ["2", "5"]])
def test_gpus_may_be_words_or_a_list(gpus: Any) -> None:
    assert LocalLauncher(gpus=gpus).gpus == ["2", "5"]


def test_a_job_ends_with_the_sweep_alone(tmp_path: Path, script: Path) -> None:
    """Ctrl-C in a terminal goes to every process of the group: jobs are asked by the sweep, and save."""
    (job,) = jobs_of(tmp_path, [1])
    (tmp_path / "hold1").touch()
    process: Any = local([job], script, gpus=[])([job])[job]
    assert os.getpgid(process.popen.pid) != os.getpgid(0)
    process.stop()
    process.wait()


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]


PARENT = """
import sys
from pathlib import Path
from rich.console import Console
from tests.sweep.test_sweep import jobs_of
from isaseg.sweep.local import local
from isaseg.sweep.supervise import supervise
here = Path(sys.argv[1])
jobs = jobs_of(here, [1])
supervise(jobs, local(jobs, here / "fake_train.py", gpus=[]), Console(stderr=True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_job_dies_with_a_sweep_that_is_killed(tmp_path: Path, script: Path) -> None:
    """Or the same command again would train it twice, in one folder, at the same time."""
    script.write_text(
        FAKE_TRAIN.replace("while (here", "(here / 'pid').write_text(str(os.getpid()))\nwhile (here")
    )
    (tmp_path / "hold1").touch()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        child = int((tmp_path / "pid").read_text())
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until(
            lambda: (
                not Path(f"/proc/{child}").exists()
                or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
            )
        )
    finally:
        parent.kill()
        (tmp_path / "hold1").unlink()


def test_a_job_that_does_not_end_is_killed(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_module, "_GRACE", 0.2)
    script.write_text(
        "import signal, time\n" + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + FAKE_TRAIN
    )
    jobs = jobs_of(tmp_path, [1])
    (tmp_path / "hold1").touch()

    def watch(job: Job) -> bool:
        if order(script):
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        supervise(jobs, local(jobs, script, gpus=[]), quiet(), watch)
    assert ["end", "1"] not in order(script)


# ---------------------------------------------------------------- as a user starts it


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked.run("train.py", *arguments, cwd=cwd, seconds=500)


def test_a_typo_in_one_job_fails_before_any_starts(tmp_path: Path) -> None:
    result = run("-m", "attention=isa,dens", *TINY, cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean 'dense'" in result.stderr
    assert not list(tmp_path.rglob("log.txt"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found: dict[str, torch.Tensor] = checkpoint["state_dict"]
    return found


def test_s5_two_processes_a_job_in_a_sweep_of_which_one_fails(tmp_path: Path) -> None:
    """The others are bit for bit what they are alone; the failed one is marked."""
    cpu = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
    ddp = ["trainer=ddp", "trainer.devices=2", *cpu]
    ddp += ["trainer.sync_batchnorm=false", "trainer.benchmark=false"]
    rates = ["4e-3", "1e30", "2e-3"] if STRESS else ["1e30", "2e-3"]
    result = run("-m", f"optim.lr={','.join(rates)}", *ddp, *TINY, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert f"1 of {len(rates)} jobs did not finish" in result.stderr
    folder = tmp_path / "outputs" / "lamps_isa"
    members = [folder / line for line in (folder / "grid.sweep").read_text().splitlines()[1:]]
    assert sorted(path for path in folder.iterdir() if path.is_dir()) == sorted(members)
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["lamps_isa"]
    others = dict(zip(rates, members, strict=True))
    failed = others.pop("1e30")
    cause = (failed / "failed.txt").read_text()
    assert "got loss=nan" in cause.splitlines()[0]
    assert "Traceback" in cause
    assert "DivergenceError" in cause
    assert not (failed / "metrics.json").exists()
    for lr, member in others.items():
        assert train_in_processes([f"optim.lr={lr}", *cpu, *TINY], tmp_path / lr, 2) == [0, 0], told(
            tmp_path / lr
        )
        ours, theirs = weights(member), weights(tmp_path / lr)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        scores = [json.loads((path / "metrics.json").read_text()) for path in (member, tmp_path / lr)]
        assert all(score.pop("seconds_per_step") > 0 for score in scores)
        assert scores[0] == scores[1]
        assert read_history(member).last_step == 2
