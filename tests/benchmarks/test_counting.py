"""What is computed rather than measured: operations, memory, growth; and that peers compute the same function."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks._compat import onednn_linear
from benchmarks.attention import exponents, operations
from benchmarks.context_parts import MODULES, Setting
from benchmarks.counting import Counter, LiveBytes
from benchmarks.harness import Row
from benchmarks.modules import measure_growth
from benchmarks.openseg_block import OpensegBlock
from torch import Tensor

from isaseg.models.attention import InterlacedSparseAttention
from tests.models.test_attention import random_map, randomise

ROOT = Path(__file__).parents[2]
MIB = 2**20

_MEASURE = """
import json
from benchmarks.modules import _start
import torch
torch.set_num_threads(1)
found = {}
for name, part, side in %s:
    answer = _start({"module": name, "setting": [[2048, 512], "cpu", "float32"], "timed": False})
    reply = answer({"what": "memory", "work": f"{part} {side}", "kind": "float32"})
    found[name + " " + part] = reply["bytes"]
print(json.dumps(found))
"""
_CASES = [(name, "block", 64) for name in ("dense-held", "criss-cross-1", "aspp", "cgnl", "double-attention")]
_CASES += [("pyramid-pooling", "head", 64), ("isa-held", "scores", 64)]
# the output takes pages piece by piece: at 64 there are two pieces, and the last comes too late
_CASES += [("isa", "block", 128)]


@pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux' /proc")
def test_computed_memory_is_what_is_measured() -> None:
    """Within a twentieth, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE % _CASES], capture_output=True, text=True, timeout=400, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wrong = {}
    for name, part, side in _CASES:
        computed = Counter(name, Setting())(part, side).peak_bytes
        if not 0.95 < found[f"{name} {part}"] / computed < 1.05:
            wrong[name, part] = (found[f"{name} {part}"] / MIB, computed / MIB)
    assert wrong == {}


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
    isa, dense = (Counter(name, Setting())("scores", 128) for name in ("isa-held", "dense-held"))
    assert isa.mult_adds <= 0.03 * dense.mult_adds
    assert isa.peak_bytes <= 0.05 * dense.peak_bytes
    assert dense.peak_bytes >= 2 * 128**4 * 4, "scores, and weights made from them"


def test_the_3x3_convolution_counts() -> None:
    counter = Counter("cgnl", Setting(channels=(64, 32)))
    block, head = counter("block", 20), counter("head", 20)
    assert head.mult_adds - block.mult_adds == 9 * 64 * 32 * 20 * 20


@pytest.mark.parametrize("name", MODULES)
def test_cost_is_what_torch_counts(name: str) -> None:
    counter = Counter(name, Setting(channels=(64, 32)))
    module: Any = counter.module
    assert counter("block", 20).mult_adds == module.cost(20, 20).mult_adds


def test_the_largest_side_is_the_last_that_fits() -> None:
    counter = Counter("dense-held", Setting(channels=(64, 32)))
    side = counter.largest_side(50 * MIB)
    assert side is not None
    sums = [c.held_bytes + c.peak_bytes for c in (counter("block", side), counter("block", side + 8))]
    assert sums[0] <= 50 * MIB < sums[1]
    assert counter.largest_side(10**15, most=64) is None


class FakeServed:
    """Takes a second for each pixel, and has room for a side of 3."""

    def ask(self, question: Any) -> dict[str, Any]:
        side = int(question["work"].split()[1])
        return {"error": "out of memory"} if side > 3 else {"bytes": side, "seconds": float(side**2)}


def test_a_growth_curve_ends_at_the_first_size_that_fails_or_would_take_too_long() -> None:
    def rows() -> list[Row]:
        return [Row(f"growing {side}", "float32", "x", {"mult_adds": side}) for side in (1, 2, 3, 4, 5)]

    served: Any = FakeServed()
    long, short = rows(), rows()
    measure_growth(served, long, 100)
    assert [row.error for row in long] == [None] * 3 + ["out of memory"] * 2
    assert [row.peak_bytes for row in long] == [1, 2, 3, None, None]
    measure_growth(served, short, 13)  # each size runs three times
    assert [row.error for row in short] == [None] * 2 + ["more than 13 s"] * 3


def test_exponents_are_of_the_number_of_pixels() -> None:
    grown = [Row(f"growing {s}", "float32", "isaseg", {}, 100 * s**2, [1e-9 * s**3] * 3) for s in (8, 16, 64)]
    assert exponents(grown) == pytest.approx({"time": 1.5, "memory": 1.0})


def test_what_runs_is_less_than_the_definition_by_one_product_a_stage() -> None:
    defined, done = operations(512, "forward", 128, "isaseg").values()
    assert defined == 2 * InterlacedSparseAttention(512).cost(128, 128).mult_adds
    assert defined - done == 2 * 2 * 128**2 * 512**2
    assert set(operations(512, "forward", 128, "mmsegmentation").values()) == {defined}
    assert operations(512, "training", 128, "isaseg")["operations_run"] == 3 * done
    recomputed = operations(512, "training", 128, "isaseg, recomputed")
    assert recomputed["operations_run"] == pytest.approx(4 * done)


@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_openseg_block_is_ours_without_the_bias(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours: Any = randomise(InterlacedSparseAttention(16, value_bias=False))
    theirs = OpensegBlock(16).double().eval()
    theirs.load_state_dict(ours.state_dict())
    x = random_map(2, 16, *size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_private_product_of_torch_2_14_is_linear(dtype: torch.dtype) -> None:
    """Look at `_compat` again where torch has no such operator any more."""
    x, weight = torch.randn(64, 32).to(dtype), torch.randn(16, 32).to(dtype)
    product = onednn_linear(x, weight)
    assert torch.__version__.startswith("2.14") and product is not None
    torch.testing.assert_close(product(), torch.nn.functional.linear(x, weight))
