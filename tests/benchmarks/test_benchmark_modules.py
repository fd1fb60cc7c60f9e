"""The efficiency comparison: what is computed is what is measured, and the command writes what it says."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.modules import Entry, Part, Point, _measure_points
from benchmarks.modules_count import Computed, Counter, LiveBytes, largest_side
from benchmarks.modules_report import compare
from benchmarks.modules_rows import ROWS, Setting
from PIL import Image
from torch import Tensor

from tests import forked

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "src" / "benchmark.py"
MIB = 2**20


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run("benchmark.py", "modules", *arguments, cwd=ROOT, seconds=400)


# ---------------------------------------------------------------- computed and measured

_MEASURE = """
import json
from benchmarks.modules_rows import ROWS, Setting
from benchmarks.modules_work import Worker
from isaseg.training.memory import map_every_tensor
import torch
torch.set_num_threads(1)
map_every_tensor()
found = {}
for name, part, side in %s:
    worker = Worker(ROWS[name], Setting(), None)
    found[name + " " + part] = worker.answer({"what": "memory", "part": part, "side": side})["bytes"]
worker = Worker(ROWS["dense-held"], Setting(), 100 * 2**20)
print(json.dumps([found, worker.answer({"what": "memory", "part": "block", "side": 64})]))
"""
_CASES = [(name, "block", 64) for name in ("dense-held", "criss-cross-1", "aspp", "cgnl", "double-attention")]
_CASES += [("pyramid-pooling", "head", 64), ("isa-held", "scores", 64)]
_CASES += [
    ("isa", "block", 128)
]  # its output takes pages piece by piece: at 64, two pieces, the last one too late


@pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux' /proc")
def test_computed_memory_is_what_is_measured() -> None:
    """Within a twentieth, in a process of their own; what does not fit is an answer, not the end of the process."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE % _CASES], capture_output=True, text=True, timeout=400, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found, refused = json.loads(done.stdout)
    wrong = {}
    for name, part, side in _CASES:
        computed = Counter(ROWS[name], Setting())(part, side).peak_bytes
        if not 0.95 < found[f"{name} {part}"] / computed < 1.05:
            wrong[name, part] = (found[f"{name} {part}"] / MIB, computed / MIB)
    assert wrong == {}
    assert refused == {"error": "out of memory"}


def test_live_bytes_are_those_of_tensors_that_something_refers_to() -> None:
    def work(x: Tensor) -> Tensor:
        a = x.t() + 1  # one: a view of what is there already is none
        b = a * 2  # two at a time
        del a
        c = torch.cat((b, b, b))  # four: b is still there
        return c[: len(x)].t()  # a view is no tensor of its own

    x = torch.zeros(256, 256)
    with LiveBytes([x]) as live:
        out = work(x)
    assert live.peak == 4 * x.nbytes
    assert live.live == 3 * x.nbytes, "what the view keeps"
    del out
    assert live.live == 0


def test_isa_takes_a_fraction_of_dense_attention() -> None:
    """The claim of the paper at its size, scores and contexts alone."""
    isa, dense = (Counter(ROWS[name], Setting())("scores", 128) for name in ("isa-held", "dense-held"))
    assert isa.mult_adds <= 0.03 * dense.mult_adds
    assert isa.peak_bytes <= 0.05 * dense.peak_bytes
    assert dense.peak_bytes >= 2 * 128**4 * 4, "scores, and weights made from them"


def test_the_3x3_convolution_and_the_backward_pass_count() -> None:
    counter = Counter(ROWS["cgnl"], Setting(channels=(64, 32)))
    block, head = counter("block", 20), counter("head", 20)
    assert head.mult_adds - block.mult_adds == 9 * 64 * 32 * 20 * 20
    train = Counter(ROWS["cgnl"], Setting(channels=(64, 32), batch=2, train=True))("block", 20)
    assert train.mult_adds == block.mult_adds, "of one map, forward"
    assert train.peak_bytes > 4 * block.peak_bytes


def test_the_largest_side_is_the_last_that_fits() -> None:
    counter = Counter(ROWS["dense-held"], Setting(channels=(64, 32)))
    side = largest_side(counter, "block", 50 * MIB)
    assert side is not None
    sums = [c.held_bytes + c.peak_bytes for c in (counter("block", side), counter("block", side + 8))]
    assert sums[0] <= 50 * MIB < sums[1]
    assert largest_side(counter, "block", 10**15, most=64) is None


class FakeServed:
    """Takes 1 s a multiply-add, and has room for a side of 3."""

    def ask(self, question: Any) -> dict[str, Any]:
        side = question["side"]
        return {"error": "out of memory"} if side > 3 else {"bytes": side, "seconds": float(side)}


def test_a_growth_curve_ends_at_the_first_size_that_fails_or_would_take_too_long() -> None:
    def points() -> list[Point]:
        return [Point(side, Computed(side, 0, 0)) for side in (1, 2, 3, 4, 5)]

    served: Any = FakeServed()
    long, short = points(), points()
    _measure_points(long, served, 100, lambda: None)
    assert [p.stopped for p in long] == [None] * 3 + ["out of memory"] * 2
    assert [p.measured_bytes for p in long] == [1, 2, 3, None, None]
    _measure_points(short, served, 5, lambda: None)
    assert [p.stopped for p in short] == [None] * 2 + ["more than 5 s"] * 3


def test_isa_is_compared_with_dense_of_the_same_size() -> None:
    def entry(name: str, side: int, amount: int) -> Entry:
        part = Part(Computed(10 * amount, 0, 0), 0, measured_bytes=100 * amount)
        scores = {"mult_adds": amount, "bytes": 3 * amount} if name.endswith("held") else {}
        return Entry(name, name, side, amount, 7 * amount, {"block": part}, scores)

    entries = [
        entry("dense-held", 8, 4),
        entry("isa-held", 8, 1),
        entry("isa-held", 16, 1),
        entry("isa", 8, 9),
    ]
    assert compare(entries) == {
        8: dict.fromkeys(("mult_adds", "memory", "scores", "block_mult_adds", "block_memory"), 0.25)
    }


# ---------------------------------------------------------------- the command


def test_the_command_writes_numbers_table_and_figure(tmp_path: Path) -> None:
    small = [
        "--channels",
        "64",
        "32",
        "--rounds",
        "2",
        "--memory",
        "0.1",
        "--seconds",  # the memory is to be the limit, however slow the machine
        "100000",
        "--output",
        str(tmp_path),
    ]
    done = run("--modules", "isa-held", "dense-held", "--sizes", "13", "--growth", "8", "96", *small)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "benchmark"
    assert sorted(p.name for p in folder.iterdir()) == ["modules.json", "modules.md", "modules.png"]
    content = json.loads((folder / "modules.json").read_text())
    assert [(m["name"], m["side"]) for m in content["modules"]] == [("dense-held", 13), ("isa-held", 13)]
    for module in content["modules"]:
        for part in module["parts"].values():
            assert part["measured_bytes"] > 0 and part["error"] is None
        assert len(module["parts"]["block"]["seconds"]) == 2
    assert {s: len(seconds) for s, seconds in content["facts"]["reduction_seconds"].items()} == {"13": 2}
    dense = content["modules"][0]
    assert dense["attention_mult_adds"] == dense["scores"]["mult_adds"] == 169**2 * (16 + 32)
    assert dense["score_bytes"] == 169**2 * 4
    assert content["facts"]["torch"] == torch.__version__
    assert content["facts"]["threads"] == 1
    assert set(content["isa_of_dense"]) == {"13"}
    held = content["growth"][0]
    assert [p["stopped"] for p in held["points"]] == [None, "out of memory"]
    assert 8 <= held["largest"] < 96
    text = (folder / "modules.md").read_text()
    percent = f"{100 * content['isa_of_dense']['13']['mult_adds']:.2f} %"
    assert f"{percent} of the multiply-adds" in text
    assert f"{percent} of the multiply-adds" in done.stdout
    assert text.count("| ISA 8×8, scores held |") == 1
    assert f"up to a side of {held['largest']} (computed)" in text
    with Image.open(folder / "modules.png") as image:
        assert image.width > 1000


@pytest.fixture(scope="module")
def main() -> Callable[[], int]:
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modules", "isaa"], "expected --modules among dense, dense-held, isa,"),
        (["--sizes", "0"], "sides, rounds, threads, seconds and channels of at least 1"),
        (["--channels", "64", "20"], "in 16s, got --channels 20"),
        (["--memory", "-1"], "expected --memory above 0, got -1.0"),
        (["--device", "abacus"], "expected --device cpu, or cuda where a GPU is there, got 'abacus'"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    message: str,
    main: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "modules", *arguments, "--output", str(tmp_path)])
    assert main() == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_torch() -> None:
    code = (
        f"import runpy, sys; sys.argv = ['benchmark.py', 'modules', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end: print('torch' in sys.modules, end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False 0"
    assert "--growth" in done.stdout and "Example" in done.stdout
