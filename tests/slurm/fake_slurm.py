"""Slurm's commands without Slurm: started as sbatch, srun, squeue, scancel or scontrol; jobs are files in $FAKE_SLURM."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(os.environ["FAKE_SLURM"])


def read(job: str) -> dict[str, Any]:
    return json.loads((HERE / f"{job}.json").read_text())


def write(job: str, **values: Any) -> None:
    path = HERE / f"{job}.json"
    values = {**(read(job) if path.is_file() else {}), **values}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(values))
    temporary.replace(path)


def sbatch(script: str) -> None:
    text = Path(script).read_text()
    if "--partition=none" in text:
        sys.exit("sbatch: error: invalid partition specified: none")
    number = str(len(list(HERE.glob("*.sh"))) + 1)
    (HERE / f"{number}.sh").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    jobs = [f"{number}_{task}" for task in range(int(array.group(1)) + 1)] if array else [number]
    for job in jobs:
        write(job, state="RUNNING", status=0, again=False)
        subprocess.Popen(
            [sys.executable, __file__, "run", job],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    print(f"Submitted batch job {number}")


def run(job: str) -> None:
    """Run a job to its end, and again as often as it is requeued."""
    number, _, task = job.partition("_")
    environment = {**os.environ, "SLURM_JOB_ID": number, "SLURM_PROCID": "0", "FAKE_JOB": job}
    if task:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    count = 0
    while True:
        environment["SLURM_RESTART_COUNT"] = str(count)
        code = subprocess.run(["bash", str(HERE / f"{number}.sh")], env=environment, check=False).returncode
        if not read(job)["again"]:
            break
        write(job, again=False)
        count += 1
    if read(job)["state"] == "RUNNING":
        write(job, state="FAILED" if code else "COMPLETED", status=code << 8)


def srun(*words: str) -> None:
    """Start the task in a group of its own, which scancel signals."""
    line = shlex.join(words).replace("%A", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
    line = line.replace("%a", os.environ.get("SLURM_ARRAY_TASK_ID", "")).replace(
        "%j", os.environ["SLURM_JOB_ID"]
    )
    parts = shlex.split(line)
    first = next(place for place, part in enumerate(parts) if part.endswith("python") or "/python" in part)
    with open(parts[2], "a") as out, open(parts[4], "a") as err:
        task = subprocess.Popen(parts[first:], stdout=out, stderr=err, start_new_session=True)
        write(os.environ["FAKE_JOB"], group=task.pid)
        code = task.wait()
    sys.exit(code if code >= 0 else 128 - code)


def squeue(*words: str) -> None:
    if (HERE / "silent").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    for path in HERE.glob("*.json"):
        job = read(path.stem)
        print(f"{path.stem:40}{job['state']:20}{job['status']:<20}")


def scancel(*words: str) -> None:
    name = words[0].partition("=")[2] if words[0].startswith("--signal") else ""
    job = words[-1]
    if not name:
        write(job, state="CANCELLED", status=15)
    while "group" not in read(job):
        time.sleep(0.02)
    os.killpg(read(job)["group"], getattr(signal, f"SIG{name or 'TERM'}"))


def scontrol(verb: str, job: str) -> None:
    assert verb == "requeue"
    write(job, again=True)
    time.sleep(0.1)


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    if sys.argv[1:2] == ["run"]:
        run(sys.argv[2])
    else:
        globals()[name](*sys.argv[1:])
