"""What all benchmarks share: what follows from the rows, what is written, and what is refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.attention import CEILING, SPEEDS
from benchmarks.command import main
from benchmarks.harness import OURS, PEER, Measurement, Report, ratios, started, take_turns

from isaseg.errors import ConfigError
from tests import forked
from tests.reliability.small import STRESS

ROOT = Path(__file__).parents[2]
MIB = 2**20


def rows() -> list[Measurement]:
    work = {"operations": 8e9}
    return [
        Measurement("linear", "float32", CEILING, work, None, [0.1, 0.1]),
        Measurement("convolution", "float32", CEILING, work, None, [0.08, 0.08]),
        Measurement("forward 8", "float32", OURS, {"operations": 3e9}, MIB, [0.1, 0.2, 0.3]),
        Measurement("forward 8", "float32", PEER, {"operations": 4e9}, 4 * MIB, [0.2, 0.6, 0.6]),
        Measurement("forward 8", "bfloat16", OURS, {"operations": 3e9}, None, [0.05, 0.05, 0.05]),
    ]


def test_ratios_are_medians_over_rounds_and_shares_are_of_the_fastest_matrix_product(tmp_path: Path) -> None:
    """A round in which the whole machine was slow counts for both."""
    found = rows()
    assert ratios(found, found[2]) == pytest.approx([2.0, 3.0, 2.0])
    assert ratios(found, found[4]) == []
    report = Report(
        "step", "title", columns=SPEEDS, facts={"device": "abacus"}, rows=found, lines=["- grows"]
    )
    report.publish(tmp_path)
    text = (tmp_path / "step.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    assert cells[0] == ["work", "type", "of", "ms", "x mmseg", "peak MiB", "GFLOP/s", "of ceiling"]
    ours = ["200.0 (100.0 to 300.0)", "2.00 (2.00 to 3.00)", "1.0", "15", "15 %"]
    assert cells[4] == ["forward 8", "float32", OURS, *ours]
    assert cells[6][-2:] == ["60", ""], "there is no ceiling in this type"
    assert "device abacus." in text and "- grows" in text
    content = json.loads((tmp_path / "step.json").read_text())
    assert content["rows"][2]["milliseconds"] == pytest.approx(200)
    assert content["rows"][2]["times_mmseg"] == pytest.approx(2)
    assert content["facts"] == {"device": "abacus"}


class FakeServed:
    """Writes down who was asked for what, and has no room for `large`."""

    def __init__(self, name: str, asked: list[str]) -> None:
        self.name, self.asked = name, asked

    def ask(self, question: Any) -> dict[str, Any]:
        self.asked.append(f"{self.name} {question['what']}")
        if question["work"] == "large":
            return {"error": "out of memory"}
        return {"seconds": 1.0} if question["what"] == "time" else {"bytes": 7}


def test_processes_take_turns_and_what_does_not_fit_is_not_timed() -> None:
    asked: list[str] = []
    served: Any = {name: FakeServed(name, asked) for name in "ab"}
    found = [Measurement("small", "x", "a"), Measurement("small", "x", "b"), Measurement("large", "x", "b")]
    take_turns(served, found, 2, "test")
    assert asked == ["a memory", "b memory", "b memory", *["a time", "b time"] * 2]
    assert [(r.peak_bytes, len(r.seconds), r.error) for r in found] == [
        (7, 2, None),
        (7, 2, None),
        (None, 0, "out of memory"),
    ]


def test_a_process_that_dies_is_reported_with_its_last_line() -> None:
    code = "import sys; sys.stdin.readline(); print('{}', flush=True); sys.exit('no such kernel')"
    dies = pytest.raises(ConfigError, match="ended: no such kernel")
    with started({OURS: ([sys.executable, "-c", code], {})}) as served, dies:
        served[OURS].ask({})
    tasks = {OURS: ([sys.executable, "-c", "raise SystemExit('never started')"], {})}
    with pytest.raises(ConfigError, match="ended: never started"), started(tasks):
        pass


BAD = [
    ("attention --sizes 0", "argument --sizes: expected an integer of at least 1, got '0'"),
    ("attention --device abacus", "argument --device: invalid choice: 'abacus'"),
    ("step --size 16", "expected an integer of at least 32, got '16'"),
    ("evaluate --size 64 8", "expected an integer of at least 32, got '8'"),
    ("modules --modules isaa", "argument --modules: invalid choice: 'isaa' (choose from"),
    ("data ade20k", "expected NAME=ROOT"),
    ("data cityscape=/x", "no option 'cityscape' in the group data; did you mean 'cityscapes'"),
    ("data ade20k=/nowhere", "data set not found"),
    ("data lamps=/x", "expected a data set of files, got lamps"),
    ("data ade20k=/x --samples 4", "expected an integer of at least 8, got '4'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_sentence(
    arguments: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments.split(), "--output", str(tmp_path)])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        code = main()
    except SystemExit as end:  # argparse's
        code = int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, handler)
    err = capsys.readouterr().err
    assert code == 2 and message in err
    assert len([line for line in err.splitlines() if "error: " in line]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "message"), BAD if STRESS else [BAD[0], BAD[-3]])
def test_so_it_is_from_the_command(arguments: str, message: str, tmp_path: Path) -> None:
    done = forked.run("benchmark.py", *arguments.split(), "--output", str(tmp_path), cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if "error: " in line]) == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_torch() -> None:
    code = (
        f"import runpy, sys; sys.argv = ['benchmark.py', 'modules', '--help']\n"
        f"try: runpy.run_path({str(ROOT / 'src' / 'benchmark.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: print('torch' in sys.modules, end.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False 0"
    assert "--growth" in done.stdout and "(32 to 512)" in done.stdout
