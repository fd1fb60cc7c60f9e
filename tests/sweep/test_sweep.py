"""Several runs: each once, each a process of its own, whatever happens to the others."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from hydra_plugins.isaseg_sweeps import LocalLauncher, OptunaSweeper, SlurmLauncher
from isaseg.errors import ConfigError
from isaseg.report.runs import read_runs
from isaseg.runs.history import read_history
from isaseg.sweep import local as local_module
from isaseg.sweep.grid import combinations
from isaseg.sweep.jobs import Job, plan, processes
from isaseg.sweep.launch import members_file, plan_sweep, write_members
from isaseg.sweep.local import Local, alone, gpus_needed, local_command, room_for, visible_gpus
from isaseg.sweep.supervise import Outcome, supervise
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import STRESS, equal, train_in_processes, weights
from tests.reliability.small import said as told
from tests.sweep.fake import FAKE_TRAIN, TINY, jobs_of, order, until

ROOT = Path(__file__).resolve().parents[2]


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


# ---------------------------------------------------------------- which jobs


def planned(*combos: Sequence[str]) -> list[Job]:
    return plan(combos, lambda overrides: compose_overrides(*overrides))


def test_each_job_over_data_sets_has_the_experiment_of_its_own() -> None:
    """In its words, which are all that a job gets."""

    def load(master: DictConfig, words: list[str]) -> DictConfig:
        return OmegaConf.merge(OmegaConf.to_container(compose_overrides(*words)), {"hydra": {}})  # type: ignore[return-value]

    context: Any = SimpleNamespace(config_loader=SimpleNamespace(load_sweep_config=load))
    master = OmegaConf.create({"hydra": {"runtime": {"config_sources": []}, "job": {"config_name": "train"}}})
    jobs = plan_sweep(
        context, master, [["data=lamps"], ["data=cards"], ["data=coco_stuff_164k", "data.root=x"]]
    )
    assert [job.cfg.name for job in jobs] == ["lamps_isa", "cards_isa", "coco_stuff_164k"]
    assert [job.overrides[1] for job in jobs] == [
        "experiment=lamps_isa",
        "experiment=cards_isa",
        "~experiment",
    ]


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
    with pytest.raises(ConfigError, match=r"got seed=range\(3,0\), which has none"):
        combinations({}, ["seed=range(3,0)"])
    with pytest.raises(ConfigError, match="one file of conf/sweep, got sweep=order,depth"):
        combinations({}, ["sweep=order,depth"])


def test_a_row_keeps_its_overrides_together_and_the_command_line_replaces_them() -> None:
    rows = ["attention=none trainer.max_steps=600", "attention=isa attention.group_size=[4,8]"]
    found = combinations({"seed": "0,1"}, [], rows)
    assert [" ".join(words) for words in found] == [f"{row} seed={seed}" for row in rows for seed in (0, 1)]
    found = combinations({"seed": "0,1"}, ["seed=3", "trainer.max_steps=5"], rows)
    assert [" ".join(words) for words in found] == [
        "attention=none seed=3 trainer.max_steps=5",
        "attention=isa attention.group_size=[4,8] seed=3 trainer.max_steps=5",
    ]


def test_combinations_of_one_run_are_one_job_and_names_tell_jobs_apart() -> None:
    a, b, c = planned(["data.num_workers=0"], ["data.num_workers=2"], ["seed=1"])
    assert a is b and a != c, "what does not identify a run counts as the same run"
    jobs = planned(["optim.lr=1e-3", "seed=3"], ["optim.lr=2e-3", "seed=3"])
    assert [job.name for job in jobs] == ["optim.lr=1e-3", "optim.lr=2e-3"]
    assert planned(["optim.lr=1e-3"])[0].name.startswith("isa-8x8_test_resnet_seed0_")


def test_each_sweep_has_a_list_of_its_own_and_the_same_again_adds_to_it(tmp_path: Path) -> None:
    def listed(seeds: Sequence[int], *words: str, file: str | None = None) -> Path:
        choices = {"sweep": file, "hydra/sweeper": "grid"}
        master = OmegaConf.create(
            {"hydra": {"overrides": {"task": list(words)}, "runtime": {"choices": choices}}}
        )
        jobs = [Job(str(seed), tmp_path / f"seed{seed}", (), OmegaConf.create()) for seed in seeds]
        for job in jobs:
            job.folder.mkdir(exist_ok=True)
            (job.folder / "config.yaml").write_text("seed: 1\n")
        write_members(jobs, master)
        return members_file([job.folder for job in jobs], master)

    both = [listed([1, 2], "attention=isa,dense", "seed=1"), listed([3], "seed=3,4", "attention=isa")]
    assert listed([2, 4], "seed=1", "attention=isa,dense") == both[0]
    assert listed([1], "sweep=context", file="context") == tmp_path / "context.sweep"
    assert listed([4], "sweep=context", "seed=4", file="context").name.startswith("context-")
    assert len(list(tmp_path.glob("*.sweep"))) == 4
    assert [run.folder.name for run in read_runs([both[0]])] == ["seed1", "seed2", "seed4"]
    assert [run.folder.name for run in read_runs(both)] == ["seed1", "seed2", "seed4", "seed3"]


@pytest.mark.parametrize("mistake", ["+recipe.x=1", "+sead=1", "head.dropout=2"])
def test_the_keys_of_every_job_are_checked_before_any_starts(mistake: str) -> None:
    with pytest.raises(ConfigError, match=mistake.split("=")[0].lstrip("+")):
        planned([], [mistake])


def test_one_folder_for_several_jobs_is_refused() -> None:
    with pytest.raises(ConfigError, match="output_dir"):
        planned(["run_dir=x", "seed=0"], ["run_dir=x", "seed=1"])


# ---------------------------------------------------------------- seen through to the end


def test_s5_a_failure_is_told_at_once_and_stops_nobody(tmp_path: Path, script: Path) -> None:
    """What an earlier attempt left: its log is kept, its failure is not."""
    jobs = jobs_of(tmp_path, [12, 13, 14])
    (tmp_path / "hold14").touch()
    jobs[0].folder.mkdir(parents=True)
    for name in ("failed.txt", "log.txt"):
        (jobs[0].folder / name).write_text("before")
    console = quiet()

    def watch(job: Job) -> bool:  # asked while the last job still runs
        if "FAILED" in said(console):
            (tmp_path / "hold14").unlink(missing_ok=True)
        return False

    outcomes = supervise(jobs, Local(jobs), console, watch)
    assert [outcomes[job].state for job in jobs] == ["finished", "failed", "finished"]
    assert outcomes[jobs[2]].metrics == {"val/mIoU": 0.14}
    assert "no such luck" in outcomes[jobs[1]].message
    lines = said(console).splitlines()
    assert any(line.startswith("FAILED  seed 13: exit code 1: no such luck") for line in lines)
    assert str(jobs[1].folder / "log.txt") in said(console)
    assert "no such luck" in (jobs[1].folder / "failed.txt").read_text()
    assert not (jobs[0].folder / "failed.txt").exists()
    assert (jobs[0].folder / "log.txt").read_text().startswith("before")


def test_what_the_watch_does_not_want_is_stopped_and_not_failed(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    (tmp_path / "hold1").touch()
    outcomes = supervise(jobs, Local(jobs), quiet(), lambda job: job is jobs[0])
    assert [outcomes[job].state for job in jobs] == ["stopped", "finished"]
    assert not (jobs[0].folder / "failed.txt").exists()


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupted_sweep_ends_its_jobs_by_force_if_need_be(
    stubborn: bool, tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stubborn:
        monkeypatch.setattr(local_module, "_GRACE", 0.2)
        script.write_text(FAKE_TRAIN.replace("SIGTERM, save", "SIGTERM, signal.SIG_IGN"))
    jobs = jobs_of(tmp_path, [1, 2])
    for seed in (1, 2):
        (tmp_path / f"hold{seed}").touch()

    def watch(job: Job) -> bool:
        if len(order(script)) == 2:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        supervise(jobs, Local(jobs, slots=2), quiet(), watch)
    for job in jobs:
        with alone(job.folder / "lock") as lock:
            assert lock is not None, "it still runs"
        assert (job.folder / "checkpoints" / "last.ckpt").exists() is not stubborn
    assert order(script, "end") == []


@pytest.mark.parametrize(
    ("package", "start"),
    [
        ("optuna", lambda: OptunaSweeper().sweep([])),
        ("submitit", lambda: SlurmLauncher().make_runner([])),
    ],
)
def test_without_a_package_of_the_extra_it_says_what_to_install(
    package: str, start: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}.*pip install 'isaseg\[sweep\]'"):
        start()


# ---------------------------------------------------------------- on this machine


def test_a_job_runs_the_code_of_the_checkout_that_starts_it(tmp_path: Path) -> None:
    """Not that of another checkout, which the environment has installed."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    ask = "from isaseg.sweep import jobs; print(jobs.command(jobs.Job('', None, ('seed=1',), None)))"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path / "src", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(
        [sys.executable, f"{tmp_path}/src/train.py", "seed=1", "hydra.mode=RUN"]
    )


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_no_more_jobs_at_a_time_than_slots(slots: int, tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, range(5))
    supervise(jobs, Local(jobs, slots=slots), quiet())
    lines = (tmp_path / "order.txt").read_text().splitlines()
    running = [0]
    for line in lines:
        running.append(running[-1] + (1 if line.startswith("start") else -1))
    assert len(lines) == 10
    assert max(running) <= slots


def test_every_job_has_gpus_of_its_own(tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,8")
    jobs = jobs_of(
        tmp_path, range(3), "trainer.accelerator=gpu", "trainer.devices=2", "trainer.strategy=ddp_spawn"
    )
    for seed in range(3):
        (tmp_path / f"hold{seed}").touch()

    def watch(job: Job) -> bool:
        if len(order(script)) == 2:  # two have room, the third waits
            for seed in range(3):
                (tmp_path / f"hold{seed}").unlink(missing_ok=True)
        return False

    supervise(jobs, Local(jobs), quiet(), watch)
    given = [line[1] for line in order(script)]
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
    assert room_for(cfg, there) == max(there // needed if needed else 1, 1)


def test_a_job_that_cannot_run_here_is_told_before_any_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    jobs = jobs_of(tmp_path, [0], "trainer.accelerator=gpu", "trainer.devices=4")
    with pytest.raises(ConfigError, match="needs 4 GPUs, this machine has 2"):
        Local(jobs)


@pytest.mark.parametrize("slots", [0, -1, "auto"])
def test_slots_that_cannot_be_are_told_before_anything_is_drawn(slots: Any) -> None:
    with pytest.raises(ConfigError, match="hydra.launcher.slots to be"):
        LocalLauncher(slots).setup(hydra_context=None, task_function=None, config=None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gres": "gpu:1"}, "no configuration key 'hydra.launcher.gres'"),
        ({"partition": "gpu"}, "expected a value for hydra.launcher.account, got none"),
    ],
)
def test_an_unknown_or_a_missing_key_of_a_launcher_is_one_sentence(
    keys: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SlurmLauncher(**keys).make_runner([])


def test_several_devices_are_started_by_torchrun(tmp_path: Path, script: Path) -> None:
    (one,) = jobs_of(tmp_path, [0])
    (two,) = jobs_of(tmp_path, [0], "trainer=ddp", "trainer.devices=2")
    assert local_command(one, 0)[:2] == [sys.executable, str(script)]
    for own in ("ddp_spawn", "ddp_fork", "ddp_notebook_find_unused_parameters_false"):
        (job,) = jobs_of(tmp_path, [0], "trainer=ddp", "trainer.devices=2", f"trainer.strategy={own}")
        assert local_command(job, 2)[:2] == [sys.executable, str(script)]
    words = local_command(two, 2)
    assert words[1:3] == ["-m", "torch.distributed.run"]
    assert "--nproc-per-node=2" in words
    assert words[words.index(str(script)) + 1 :] == [*two.overrides, "hydra.mode=RUN"]
    (chosen,) = jobs_of(tmp_path, [0], "trainer=ddp", "trainer.devices=[1,3]")
    assert local_command(chosen, 2)[-1] == "trainer.devices=2", "GPUs 1 and 3 are the job's 0 and 1"


def test_a_run_that_another_process_trains_is_waited_for_and_not_trained_twice(
    tmp_path: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    runner = Local(jobs, slots=2)
    with alone(jobs[0].folder / "lock") as lock:
        assert lock is not None
        mine: Any = runner.start(jobs)
        assert list(mine) == [jobs[1]]
        assert runner.start(jobs[:1]) == {}
        mine[jobs[1]].wait()
        jobs[0].folder.joinpath("metrics.json").write_text('{"val/mIoU": 0.5, "step": 1}')
        OmegaConf.save(jobs[0].cfg, jobs[0].folder / "config.yaml", resolve=True)
    (outcome,) = runner.start(jobs[:1]).values()
    assert outcome == Outcome("finished", {"val/mIoU": 0.5, "step": 1})
    assert [line[0] for line in order(script)] == ["2"]
    assert capsys.readouterr().err.count("another process trains in") == 1


def test_a_job_holds_the_lock_while_it_runs_and_is_not_in_the_group_that_ctrl_c_reaches(
    tmp_path: Path, script: Path
) -> None:
    (job,) = jobs_of(tmp_path, [1])
    (tmp_path / "hold1").touch()
    process: Any = Local([job]).start([job])[job]
    assert os.getpgid(process.pid) != os.getpgid(0)
    with alone(job.folder / "lock") as lock:
        assert lock is None
    (tmp_path / "hold1").unlink()
    process.wait()
    with alone(job.folder / "lock") as lock:
        assert lock is not None


def test_a_job_without_a_folder_fails_and_the_others_go_on(tmp_path: Path, script: Path) -> None:
    jobs = jobs_of(tmp_path, [1, 2])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "1").write_text("a file in its place")
    outcomes = supervise(jobs, Local(jobs), quiet())
    assert [outcomes[job].state for job in jobs] == ["failed", "finished"]
    assert "could not be started" in outcomes[jobs[0]].message


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


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_job_dies_with_a_sweep_that_is_killed(tmp_path: Path, script: Path) -> None:
    """Or the same command again would train it twice, in one folder, at the same time."""
    (tmp_path / "hold1").touch()
    jobs = jobs_of(tmp_path, [1])
    parent = os.fork()
    if parent == 0:
        try:
            supervise(jobs, Local(jobs), quiet())
        finally:
            os._exit(1)
    try:
        child = Path("/proc") / until(lambda: order(script))[0][-1]
        assert child.exists()
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        until(lambda: not child.exists() or "Z" in (child / "stat").read_text().split()[2])
    finally:
        (tmp_path / "hold1").unlink()


# ---------------------------------------------------------------- as a user starts it


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked.run("train.py", *arguments, cwd=cwd, seconds=500, children=True)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("attention=isa,dens", "did you mean 'dense'"),
        ("attention.group_size=[4,4]", "'attention.group_size' with these options of its group"),
    ],
)
def test_a_mistake_in_one_job_fails_before_any_starts(word: str, message: str, tmp_path: Path) -> None:
    result = run("-m", "attention=isa,dense", word, *TINY, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert not list(tmp_path.rglob("log.txt"))


def test_s5_two_processes_a_job_in_a_sweep_of_which_one_fails(tmp_path: Path) -> None:
    """The others are bit for bit what they are alone; the failed one is marked; the printed command compares them."""
    cpu = ["trainer.accelerator=cpu", "trainer.precision=32-true"]
    ddp = ["trainer=ddp", "trainer.devices=2", *cpu]
    ddp += ["trainer.sync_batchnorm=false", "trainer.benchmark=false"]
    rates = ["4e-3", "1e30", "2e-3"] if STRESS else ["1e30", "2e-3"]
    result = run("-m", f"optim.lr={','.join(rates)}", *ddp, *TINY, "output_dir='my runs [1]'", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert f"1 of {len(rates)} jobs did not finish" in result.stderr
    folder = tmp_path / "my runs [1]" / "lamps_isa"
    (listed,) = folder.glob("grid-*.sweep")
    members = [folder / line for line in listed.read_text().splitlines()[1:]]
    assert sorted(path for path in folder.iterdir() if path.is_dir()) == sorted(members)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["lamps_isa"]
    (hint,) = (line for line in result.stderr.splitlines() if line.startswith("compare them: "))
    python, script, *words = shlex.split(hint.removeprefix("compare them: "))
    assert (python, Path(script)) == ("python", forked.ROOT / "src" / "compare.py")
    compared = forked.run("compare.py", *words, cwd=tmp_path)
    assert compared.returncode == 0 and f"{len(rates)} runs" in compared.stderr, compared.stderr
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
        assert equal(weights(member), weights(tmp_path / lr))
        scores = [json.loads((path / "metrics.json").read_text()) for path in (member, tmp_path / lr)]
        assert all(score.pop("seconds_per_step") > 0 for score in scores)
        assert scores[0] == scores[1]
        assert read_history(member).last_step == 2
