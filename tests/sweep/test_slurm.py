"""Jobs on Slurm: against commands that play Slurm, and with `-m slurm` against a real one (tests/slurm/run.sh)."""

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.runs.run_folder import failure
from isaseg.sweep import slurm as slurm_module
from isaseg.sweep.jobs import Job
from isaseg.sweep.slurm import Options, Slurm, need
from isaseg.sweep.slurm_task import Train
from isaseg.sweep.supervise import Process, supervise
from tests.sweep.fake import jobs_of, order, until

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("submitit", reason="the extra `sweep`")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put commands that play Slurm first on the path; return the folder with their jobs."""
    commands, jobs = tmp_path / "commands", tmp_path / "slurm jobs"
    commands.mkdir()
    jobs.mkdir()
    text = (ROOT / "tests" / "slurm" / "fake_slurm.py").read_text()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        path = commands / name
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    monkeypatch.setattr(slurm_module, "_ASK_EVERY", 0.1)
    yield jobs
    for path in jobs.glob("*.json"):  # of a test that failed
        group = json.loads(path.read_text()).get("group")
        with suppress(ProcessLookupError, TypeError):
            os.killpg(group, signal.SIGKILL)


def options(**other: Any) -> Options:
    """Return what conf/hydra/launcher/slurm.yaml says."""
    node: Any = OmegaConf.to_container(
        OmegaConf.load(config.conf_dir() / "hydra" / "launcher" / "slurm.yaml")
    )
    del node["_target_"]
    return Options(**{**node, **other})


def submissions(cluster: Path) -> int:
    return len(list(cluster.glob("*.sh")))


def test_one_array_of_all_jobs_and_a_failure_stops_no_other(
    tmp_path: Path, cluster: Path, script: Path
) -> None:
    jobs = jobs_of(tmp_path, [1, 13, 2])
    console = Console(file=io.StringIO(), width=200)
    outcomes = supervise(jobs, Slurm(jobs, options()), console)
    assert [outcomes[job].state for job in jobs] == ["finished", "failed", "finished"]
    assert submissions(cluster) == 1
    assert failure(jobs[1].folder) == "exit code 1: no such luck"
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "FAILED  seed 13: exit code 1: no such luck" in told
    log = (jobs[0].folder / "log.txt").read_text()
    named = Path(log.split(" is in ")[1].splitlines()[0])
    assert named.is_file() and named.parent == tmp_path / "out" / "lamps_isa" / "slurm"
    assert [(job.folder / "slurm_job.txt").read_text() for job in jobs] == ["1_0", "1_1", "1_2"]


def test_a_job_whose_time_is_over_saves_and_goes_on_even_if_it_was_not_to_resume(
    tmp_path: Path, cluster: Path, script: Path
) -> None:
    (tmp_path / "hold3").touch()
    (job,) = jobs_of(tmp_path, [3], "resume=never")
    process = Slurm([job], options()).start([job])[job]
    until(lambda: order(script))
    subprocess.run(["scancel", "--signal=USR2", "1"], check=True)  # as Slurm does before the time is over
    assert until(process.poll) == 0
    assert [line[2] for line in order(script)] == ["never", "auto"]
    assert (job.folder / "checkpoints" / "last.ckpt").read_text() == "saved"


def test_a_job_that_may_not_be_queued_again_says_how_to_let_it(
    tmp_path: Path, cluster: Path, script: Path
) -> None:
    (tmp_path / "hold3").touch()
    (job,) = jobs_of(tmp_path, [3])
    process = Slurm([job], options(timeout_min=1, signal_delay_s=20, max_num_timeout=0)).start([job])[job]
    until(lambda: order(script))
    subprocess.run(["scancel", "--signal=USR2", "1"], check=True)
    assert until(process.poll) == 1
    said = failure(job.folder) or ""
    assert "timed-out too many times" in said and "hydra.launcher.max_num_timeout" in said


def test_an_interrupted_sweep_leaves_its_jobs_and_the_next_one_finds_them(
    tmp_path: Path, cluster: Path, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hold3").touch()
    jobs = jobs_of(tmp_path, [3, 4])
    first = Slurm(jobs, options())
    ran = first.start(jobs)
    until(lambda: len(order(script)) == 2)
    first.interrupt(ran)
    assert capsys.readouterr().err.count("scancel 1 ends them") == 1
    until(lambda: ran[jobs[1]].queue.state("1_1")[0] == "COMPLETED")  # type: ignore[attr-defined]
    again = Slurm(jobs[:1], options()).start(jobs[:1])
    assert "submitted before: 1_0" in capsys.readouterr().err
    assert submissions(cluster) == 1
    (tmp_path / "hold3").unlink()
    assert until(again[jobs[0]].poll) == 0
    assert sorted(line[0] for line in order(script)) == ["3", "4"]


def test_a_job_that_is_stopped_is_told_to_save(tmp_path: Path, cluster: Path, script: Path) -> None:
    (tmp_path / "hold3").touch()
    (job,) = jobs_of(tmp_path, [3])
    process = Slurm([job], options()).start([job])[job]
    until(lambda: order(script))
    process.terminate()
    assert until(process.poll) == 143
    until(lambda: (job.folder / "checkpoints" / "last.ckpt").exists())


def process_in_state(tmp_path: Path, cluster: Path, state: str, status: int) -> tuple[Job, Process]:
    (job,) = jobs_of(tmp_path, [5])
    job.folder.mkdir(parents=True)
    (job.folder / "slurm_job.txt").write_text("7")
    (cluster / "7.json").write_text(json.dumps({"state": "RUNNING", "status": 0}))
    process = Slurm([job], options()).start([job])[job]
    (cluster / "7.json").write_text(json.dumps({"state": state, "status": status}))
    return job, process


@pytest.mark.parametrize(
    ("state", "status", "code", "said"),
    [
        ("CANCELLED", 15, 143, None),
        ("FAILED", 3 << 8, 3, None),
        ("FAILED", 143 << 8, 143, None),
        ("FAILED", 137 << 8, -9, None),  # a task was killed
        ("OUT_OF_MEMORY", 9, -9, "ended as OUT_OF_MEMORY; raise hydra.launcher.mem_gb"),
        ("NODE_FAIL", 0, 1, "ended as NODE_FAIL"),
        ("COMPLETED", 0, 0, None),
    ],
)
def test_how_slurm_says_a_job_ended(
    tmp_path: Path, cluster: Path, state: str, status: int, code: int, said: str | None
) -> None:
    job, process = process_in_state(tmp_path, cluster, state, status)
    assert until(process.poll) == code
    assert failure(job.folder) == (None if said is None else f"Slurm job 7 {said}")


def test_a_job_runs_on_while_slurm_does_not_answer(
    tmp_path: Path, cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "silent").touch()
    _, process = process_in_state(tmp_path, cluster, "COMPLETED", 0)
    assert process.poll() is None
    assert capsys.readouterr().err.count("squeue does not answer") == 1
    (cluster / "silent").unlink()
    assert until(process.poll) == 0


def test_a_run_is_trained_by_one_slurm_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm_job.txt").write_text("9_1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    with pytest.raises(SystemExit, match="Slurm job 9_1 trains .*, 8 does not"):
        Train(["false"], tmp_path, 1.0)()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), (1, 1, 0)),
        (("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"), (2, 4, 4)),
        (("trainer=gpu", "trainer.devices=[1,3]"), (1, 2, 2)),
    ],
)
def test_what_a_job_asks_of_the_cluster(
    tmp_path: Path, overrides: Sequence[str], expected: tuple[int, int, int]
) -> None:
    (job,) = jobs_of(tmp_path, [0], *overrides)
    assert need(job) == expected


def test_what_cannot_work_is_told_before_anything_is_submitted(
    tmp_path: Path, cluster: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = jobs_of(tmp_path, [1])
    with pytest.raises(
        ConfigError, match="hydra.launcher.timeout_min to be greater than 0, got hydra.launcher.timeout_min=0"
    ):
        Slurm(jobs, options(timeout_min=0))
    with pytest.raises(ConfigError, match=r"signal_delay_s below timeout_min \(60 s\), got 60"):
        Slurm(jobs, options(timeout_min=1, signal_delay_s=60))
    with pytest.raises(ConfigError, match="trainer.devices as a number, got -1"):
        Slurm(jobs_of(tmp_path, [1], "trainer=ddp"), options())
    refused = Slurm(jobs, options(partition="none"))
    with pytest.raises(ConfigError, match="Slurm refused the jobs: .*invalid partition specified: none"):
        refused.start(jobs)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs Slurm's sbatch, which was not found"):
        Slurm(jobs, options())
    assert submissions(cluster) == 0


TINY = ["hydra.launcher.cpus_per_task=1", "data.val_length=4", "data.num_workers=0", "logger=csv"]
TINY += ["pictures=0", "score_test=false", "check_data=false"]
STEPS = "step "  # of a line of progress


@pytest.fixture
def real() -> None:
    """Want a Slurm that answers."""
    if "SLURM_CONF" not in os.environ or shutil.which("scontrol") is None:
        pytest.fail("expected a Slurm on this machine, start it with tests/slurm/run.sh")


def sweep(folder: Path, *overrides: str, launcher: str = "slurm") -> "subprocess.Popen[str]":
    tiny = TINY if launcher == "slurm" else TINY[1:]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "src" / "train.py"), "-m", f"hydra/launcher={launcher}", *tiny]
        + [f"output_dir={folder}", *overrides],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def told(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said = process.communicate(timeout=400)[1]
    return process.returncode, said


def run_folders(folder: Path) -> list[Path]:
    """Return the run folders of one output folder that Slurm knows."""
    return sorted(path.parent for path in folder.glob("*/*/slurm_job.txt"))


def progress(folder: Path) -> int:
    """Count the lines of progress in the log of the only run."""
    logs = list(folder.glob("*/*/log.txt"))
    return sum(line.startswith(STEPS) for line in logs[0].read_text().splitlines()) if logs else 0


@pytest.mark.slurm
def test_real_an_array_of_three_of_which_one_fails(real: None, tmp_path: Path) -> None:
    steps = ["data.batch_size=2", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    code, said = told(sweep(tmp_path, "optim.lr=0.001,-1,0.002", *steps))
    assert code == 1, said
    assert said.count("done    ") == 2 and said.count("FAILED  ") == 1
    folders = run_folders(tmp_path)
    numbers = {(path / "slurm_job.txt").read_text() for path in folders}
    (array,) = {number.split("_")[0] for number in numbers}
    assert numbers == {f"{array}_0", f"{array}_1", f"{array}_2"}
    assert sorted((path / "metrics.json").is_file() for path in folders) == [False, True, True]
    (failed,) = [path for path in folders if (path / "failed.txt").is_file()]
    assert failure(failed) == "expected optim.lr to be greater than 0, got optim.lr=-1"
    assert (failed / "slurm_job.txt").read_text() == f"{array}_1"


@pytest.mark.slurm
def test_real_two_tasks_that_are_preempted_end_as_a_run_on_this_machine(real: None, tmp_path: Path) -> None:
    words = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", "data.batch_size=4"]
    words += ["trainer.max_steps=60", "trainer.val_check_interval=30"]
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    process = sweep(there, *words, "resume=never")
    until(lambda: progress(there) >= 4)
    (folder,) = run_folders(there)
    number = (folder / "slurm_job.txt").read_text()
    # what Slurm does before it takes a node away
    subprocess.run(["scancel", "--signal=USR2", number], check=True)
    until(lambda: "requeued" if waits(number) else None)
    start_again(number)
    code, said = told(process)
    assert code == 0, said
    assert "continues from" in (folder / "log.txt").read_text()
    code, said = told(sweep(here, *words, launcher="local"))
    assert code == 0, said
    (other,) = (path.parent for path in here.glob("*/*/metrics.json"))
    scores = [json.loads((path / "metrics.json").read_text()) for path in (folder, other)]
    assert scores[0]["val/mIoU"] == scores[1]["val/mIoU"]
    assert (folder / "confusion.json").read_text() == (other / "confusion.json").read_text()


@pytest.mark.slurm
def test_real_a_sweep_that_is_left_is_found_again_and_goes_on_after_its_time(
    real: None, tmp_path: Path
) -> None:
    words = ["data.batch_size=2", "trainer.max_steps=40000", "trainer.val_check_interval=20000"]
    words += ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20"]
    process = sweep(tmp_path, *words)
    (folder,) = until(lambda: run_folders(tmp_path))
    number = (folder / "slurm_job.txt").read_text()
    until(lambda: "it runs" if not waits(number) else None)  # the node may still end the job of another test
    process.send_signal(signal.SIGINT)
    code, said = told(process)
    assert code == 130 and f"scancel {number} ends them" in said
    assert subprocess.run(["squeue", "-h", f"--jobs={number}"], capture_output=True, check=True).stdout
    process = sweep(tmp_path, *words)
    until_time_is_over = time.monotonic() + 150
    while not waits(number):
        assert time.monotonic() < until_time_is_over
        time.sleep(1)
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    start_again(number)
    until(lambda: "continues from" in (folder / "log.txt").read_text())
    subprocess.run(["scancel", number], check=True)
    code, said = told(process)
    assert code == 1 and f"submitted before: {number}" in said
    assert "stopped " in said and "submitted as" not in said


def waits(number: str) -> bool:
    words = ["squeue", "-h", "--states=PENDING", f"--jobs={number}"]
    return bool(subprocess.run(words, capture_output=True, check=False).stdout)


def start_again(number: str) -> None:
    """Start a job that was requeued, not in two minutes; in the second in which it ended Slurm's node refuses it."""
    subprocess.run(["scontrol", "update", f"job={number}", "StartTime=now+2"], check=True)
