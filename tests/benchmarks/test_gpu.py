"""The benchmark of a GPU: its dry form, a part that fails, the waits of a run, and what is refused."""

import json
import re
import sys
import warnings
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import gpu
from benchmarks.gpu_parts import UNREACHED, Part, plan, serve_rows, train
from benchmarks.harness import OURS, PEER, Measurement, Report, Task, ratios
from benchmarks.host_waits import KINDS, HostWaits
from benchmarks.serve import one_by_one
from benchmarks.works import autocast

from isaseg.errors import ConfigError
from tests import forked

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LOGS, QUIET = KINDS[True], KINDS[False]
WAIT = "called a synchronizing CUDA operation"


def test_the_dry_form_runs_every_part_on_a_cpu(tmp_path: Path) -> None:
    words = ["gpu", "--dry", "--peer", str(tmp_path / "none"), "--output", str(tmp_path)]
    done = forked.run("benchmark.py", *words, cwd=ROOT, children=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "benchmark"
    assert sorted(p.name for p in folder.iterdir()) == ["gpu.json", "gpu.md"]
    content = json.loads((folder / "gpu.json").read_text())
    parts = {part["name"]: part["rows"] for part in content["parts"]}
    assert list(parts) == ["block", "network", "waits", "lamps", "loss"]
    for name, rows in parts.items():
        reason = "not counted on a CPU" if name == "waits" else None
        assert rows and [row["error"] for row in rows] == [reason] * len(rows)
        measured = [row["seconds"] or row["counts"] for row in rows]
        assert all(measured), name
    assert {"bfloat16", "tf32", "float32"} == {row["kind"] for row in parts["block"]}
    assert [row["counts"]["steps"] for row in parts["waits"]] == [2, 3]
    assert 0 <= parts["lamps"][0]["counts"]["mIoU"] <= 1
    text = (folder / "gpu.md").read_text()
    assert text in done.stdout
    machine = text.splitlines()[2]
    commit = r"commit ([0-9a-f]{40}(\+dirty)?|unknown)\."
    assert re.fullmatch(rf"device .+, torch {re.escape(torch.__version__)}, python 3\..+, {commit}", machine)
    assert text.count("\n## ") == 5
    assert "mmsegmentation is not measured: it is not installed" in text


def test_the_limits_add_up_to_less_than_eight_minutes(tmp_path: Path) -> None:
    parts = plan(Namespace(dry=False, peer=Path(sys.executable)), "cuda", tmp_path)
    assert sum(part.seconds for part in parts) <= 470, "and the command itself takes some seconds"
    assert all(row.error == UNREACHED for part in parts for row in part.rows)
    blocks = next(part.rows for part in parts if part.name == f"block of {OURS}")
    assert blocks[-1].work == "dense training 512", "what takes longest comes last"
    assert {row.pipeline for row in blocks} == {OURS}
    assert [row.work for row in blocks[:24]] == [row.work for row in blocks if row.work.startswith("isa")]
    batches = {
        row.work: row.counts["images"] for part in parts for row in part.rows if part.name == "network"
    }
    assert batches["resnet101_d8 cityscapes step"] == 8 and batches["resnet50_d8 ade20k step"] == 16


@pytest.mark.peers
@pytest.mark.skipif(not PEERS.is_file(), reason="`make peers` installs it")
def test_mmsegmentations_blocks_are_measured_beside_ours(tmp_path: Path) -> None:
    ours, *_, theirs, _ = plan(Namespace(dry=True, peer=PEERS), "cpu", tmp_path)
    for part in (ours, theirs):
        gpu.run(part)
    assert [row.error for row in ours.table.rows] == [None] * 24
    assert {row.pipeline for row in theirs.rows} == {PEER}
    compared = [ratios(ours.table.rows, row) for row in ours.rows]
    assert all(len(values) == 1 and values[0] > 0 for values in compared)
    assert theirs.table.facts[PEER]["version"] == "1.2.2"


def process(code: str) -> Task:
    """Return the task of a process that begins as `serve` does and goes on with `code`."""
    start = "import sys, json; read = sys.stdin.readline; read(); print('{}', flush=True); "
    return [sys.executable, "-c", start + code], {}


def served_part(table: Report, code: str, seconds: float) -> Part:
    rows = [Measurement(f"{table.name} {n}", "float32", OURS, error=UNREACHED) for n in (1, 2)]
    table.rows += rows
    return Part(table.name, table, rows, seconds, partial(serve_rows, process(code), table))


def test_what_fails_or_hangs_is_reported_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = "print(json.dumps({'bytes': 2**20, 'seconds': 0.25}), flush=True); "
    hangs, dies, fits = Report("hangs", "Hangs"), Report("dies", "Dies"), Report("fits", "Fits")
    raises = Report("raises", "Raises", rows=[Measurement("none", "float32", OURS, error=UNREACHED)])
    full = "print(json.dumps({'error': 'out of memory'}), flush=True); "

    def broken(rows: list[Measurement], seconds: float) -> None:
        assert "stopped after 3 s" in (tmp_path / "gpu.json").read_text(), "written after each part"
        raise KeyError("peak_memory_mib")

    parts = [
        served_part(hangs, f"read(); {answer} read(); {answer} read(); read()", 3),
        served_part(dies, "read(); sys.exit('CUDA error: an illegal memory access')", 60),
        Part("raises", raises, raises.rows, 60, broken),
        served_part(fits, f"read(); {full} read(); {answer} read(); {answer} read()", 60),
    ]
    monkeypatch.setattr(gpu, "plan", lambda *args: parts)
    gpu.benchmark(Namespace(dry=True, folder=tmp_path))
    errors = [row.error for part in parts for row in part.rows]
    assert errors[:2] == [None, "stopped after 3 s"]
    assert errors[2] == errors[3] and "CUDA error: an illegal memory access" in str(errors[2])
    assert errors[4:] == ["KeyError: 'peak_memory_mib'", "out of memory", None]
    assert parts[0].rows[0].seconds == [0.25]
    text = (tmp_path / "gpu.md").read_text()
    assert text in capsys.readouterr().out
    for shown in ("250.0", "stopped after 3 s", "illegal memory access", "KeyError", "out of memory"):
        assert shown in text


def test_a_run_that_fails_or_takes_too_long_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.py ended with exit code 2: error: .*'trainer.max_step'"):
        train(["trainer.max_step=1", f"run_dir={tmp_path}"], 200)
    with pytest.raises(ConfigError, match=r"^stopped after 0.01 s$"):
        train(["trainer.max_steps=1", f"run_dir={tmp_path}"], 0.01)


def test_one_that_fails_keeps_nothing_and_the_next_is_measured() -> None:
    def make(work: str, kind: str) -> Any:
        if work == "bad":
            raise NotImplementedError("no kernel\nsecond line")
        return lambda: torch.ones(1) if kind == "float32" else 1 / 0

    answer = one_by_one(make)
    question = {"what": "time", "work": "bad", "kind": "float32"}
    assert answer(question) == {"error": "NotImplementedError: no kernel"}
    assert answer({**question, "work": "good", "kind": "float16"})["error"].startswith("ZeroDivisionError")
    assert answer({**question, "work": "good"})["seconds"] > 0


def test_without_a_gpu_it_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="expected a GPU that torch can use, got none; .* --dry"):
        gpu.benchmark(Namespace(dry=False, folder=tmp_path, peer=None))
    assert list(tmp_path.iterdir()) == []


def test_tf32_is_on_for_its_rows_alone_and_every_reader_of_torch_agrees() -> None:
    """Those of the older interface raise where they and the newer one disagree."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for kind, on in [("tf32", True), ("float32", False), ("tf32", True), ("bfloat16", False)]:
            with autocast(kind, "cpu"):
                assert torch.is_autocast_enabled("cpu") == (kind == "bfloat16")
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is on
            assert torch.get_float32_matmul_precision() == ("high" if on else "highest")
            parts = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
            assert [part.fp32_precision == "tf32" for part in parts] == [on, on]
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_waits_are_counted_a_step_with_the_line_that_waits(tmp_path: Path) -> None:
    """Steps 3 to 8 are counted, of which 4 and 8 log; the wait is torch's warning, once for each time."""
    waits = HostWaits(str(tmp_path / "waits.json"), skip=2)
    trainer: Any = SimpleNamespace(global_step=0, log_every_n_steps=4, max_steps=9)
    module = SimpleNamespace(device=torch.device("cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(9):
            trainer.global_step = step
            waits.on_train_batch_start(trainer, module, None, step)
            if step == 8:
                break  # it is not watched any more
            warnings.warn("another", stacklevel=1)
            for _ in range(3 if step + 1 in (4, 8) else 1):
                warnings.warn(WAIT, stacklevel=1)
    found = json.loads((tmp_path / "waits.json").read_text())
    assert {kind: found[kind]["steps"] for kind in found} == {LOGS: 2, QUIET: 4}
    (place,) = found[LOGS]["waits"]
    assert re.fullmatch(r"tests/benchmarks/test_gpu\.py:\d+", place)
    assert found[LOGS]["waits"][place] == 6 and found[QUIET]["waits"] == {place: 4}
