"""What is computed rather than measured, and what is measured alone."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.attention import operations
from benchmarks.command import _parser
from benchmarks.harness import Measurement
from benchmarks.modules import counted_rows, measure_growth
from benchmarks.serve import Timer

from isaseg.models.interlaced import InterlacedSparseAttention
from tests import forked

MIB = 2**20
ROOT = Path(__file__).parents[2]
ASK = """
import json
import sys

root, task, questions = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
sys.path.append(root)
from benchmarks.harness import ours, started

with started({name: ours("modules", module=name, **task) for name, _ in questions}) as served:
    print(json.dumps([served[name].ask(question) for name, question in questions]))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux' /proc")


@linux
def test_peak_memory_is_above_what_is_held_and_time_is_of_one_run() -> None:
    held = torch.ones(16 * MIB)
    timer = Timer(lambda work, kind: lambda: (torch.ones(int(work) * MIB) + 1).sum().item() and held)
    reply = timer({"what": "memory", "work": "16", "kind": "float32"})
    assert reply["bytes"] == pytest.approx(2 * 64 * MIB, rel=0.05)
    assert 0 < timer({"what": "time", "work": "16", "kind": "float32"})["seconds"] < 10


@linux
def test_a_module_is_measured_within_its_limit_and_refused_beyond(tmp_path: Path) -> None:
    """Dense attention holds its scores twice; ISA a fraction of it, which is the claim of the paper."""
    options = _parser().parse_args(["modules", "--channels", "64", "32"])
    dense, large = counted_rows("dense-held", ["scores 64", "scores 128"], options)
    isa, few = counted_rows("isa-held", ["scores 64", "scores 128"], options)
    assert few.counts["mult_adds"] <= 0.03 * large.counts["mult_adds"]
    (tmp_path / "ask.py").write_text(ASK)
    task = {"channels": options.channels, "memory": 300 * MIB}
    questions = [
        (row.pipeline, {"what": "memory", "work": row.work, "kind": row.kind}) for row in (dense, isa, large)
    ]
    words = [str(ROOT), json.dumps(task), json.dumps(questions)]
    done = forked.run(tmp_path / "ask.py", *words, cwd=tmp_path, children=True)
    assert done.returncode == 0, done.stderr
    replies = json.loads(done.stdout)
    assert replies[0]["bytes"] == pytest.approx(2 * dense.counts["score_bytes"], rel=0.05)
    assert replies[1]["bytes"] < 0.15 * replies[0]["bytes"]
    assert replies[2] == {"error": "out of memory"}


def test_the_whole_that_the_authors_measure_is_two_convolutions_more_than_the_block() -> None:
    """Its parameters are those that openseg's script counts, and those of its 3x3 convolution."""
    options = _parser().parse_args(["modules"])
    block, whole = (counted_rows("isa", [f"{part} 128"], options)[0].counts for part in ("block", "whole"))
    convs = 9 * 2048 * 512 + 1024 * 512
    assert whole["mult_adds"] - block["mult_adds"] == convs * 128**2
    assert whole["parameters"] - block["parameters"] == convs + 2 * 2 * 512  # each with a batch norm


class FakeServed:
    """Takes a second for each pixel, and has room for a side of 3."""

    def ask(self, question: Any) -> dict[str, Any]:
        side = int(question["work"].split()[1])
        return {"error": "out of memory"} if side > 3 else {"bytes": side, "seconds": float(side**2)}


def test_a_growth_curve_ends_at_the_first_size_that_fails_or_would_take_too_long() -> None:
    def rows() -> list[Measurement]:
        return [
            Measurement(f"growing {side}", "float32", "x", {"mult_adds": side}) for side in (1, 2, 3, 4, 5)
        ]

    served: Any = FakeServed()
    long, short = rows(), rows()
    measure_growth(served, long, 100)
    assert [row.error for row in long] == [None] * 3 + ["out of memory"] * 2
    assert [row.peak_bytes for row in long] == [1, 2, 3, None, None]
    measure_growth(served, short, 13)  # each size runs three times
    assert [row.error for row in short] == [None] * 2 + ["more than 13 s"] * 3


def test_what_runs_is_less_than_the_definition_by_one_product_a_stage() -> None:
    done = operations(512, "forward", 128, "isaseg")
    defined = 2 * InterlacedSparseAttention(512).cost(128, 128).mult_adds
    assert defined - done == 2 * 2 * 128**2 * 512**2
    assert operations(512, "forward", 128, "mmsegmentation") == defined
    assert operations(512, "training", 128, "isaseg") == 3 * done
    assert operations(512, "training", 128, "isaseg, recomputed") == pytest.approx(4 * done)
