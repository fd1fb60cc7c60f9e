"""What is computed rather than measured, what is measured alone, and that peers compute the same function."""

import sys
from typing import Any

import pytest
import torch
from benchmarks._compat import onednn_linear
from benchmarks.attention import exponents, operations
from benchmarks.command import _parser
from benchmarks.harness import Measurement, ours, started
from benchmarks.modules import counted_rows, measure_growth
from benchmarks.openseg_block import OpensegBlock
from benchmarks.serve import Timer

from isaseg.models.interlaced import InterlacedSparseAttention
from tests.models.references import random_map, randomise

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="measured with Linux' /proc")


@linux
def test_peak_memory_is_above_what_is_held_and_time_is_of_one_run() -> None:
    held = torch.ones(16 * MIB)
    timer = Timer(
        lambda work, kind: lambda: (torch.ones(int(work) * MIB) + 1).sum().item() and [held.numel()]
    )
    reply = timer({"what": "memory", "work": "16", "kind": "float32"})
    assert reply["bytes"] == pytest.approx(2 * 64 * MIB, rel=0.05)
    assert reply["result"] == [16 * MIB]
    assert 0 < timer({"what": "time", "work": "16", "kind": "float32"})["seconds"] < 10


@linux
def test_a_module_is_measured_within_its_limit_and_refused_beyond() -> None:
    """Dense attention holds its scores twice; ISA a fraction of it, which is the claim of the paper."""
    options = _parser().parse_args(["modules"])
    dense, large = counted_rows("dense-held", ["scores 64", "scores 128"], options)
    (isa,) = counted_rows("isa-held", ["scores 64"], options)
    task = {"channels": options.channels, "memory": 300 * MIB}
    with started(
        {name: ours("modules", module=name, **task) for name in ("dense-held", "isa-held")}
    ) as served:
        replies = [
            served[row.pipeline].ask({"what": "memory", "work": row.work, "kind": row.kind})
            for row in (dense, isa, large)
        ]
    assert replies[0]["bytes"] == pytest.approx(2 * dense.counts["score_bytes"], rel=0.05)
    assert replies[1]["bytes"] < 0.15 * replies[0]["bytes"]
    assert replies[2] == {"error": "out of memory"}


def test_isa_takes_a_fraction_of_the_multiply_adds_of_dense_attention() -> None:
    """At the size of the paper, scores and contexts alone; the 3x3 convolution counts in the head."""
    options = _parser().parse_args(["modules"])
    isa, dense = (counted_rows(name, ["scores 128", "block 128"], options) for name in ("isa", "dense"))
    assert isa[0].counts["mult_adds"] <= 0.03 * dense[0].counts["mult_adds"]
    assert isa[1].counts["mult_adds"] == InterlacedSparseAttention(512).cost(128, 128).mult_adds
    (head,) = counted_rows("isa", ["head 128"], options)
    assert head.counts["mult_adds"] - isa[1].counts["mult_adds"] == 9 * 2048 * 512 * 128**2


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


def test_exponents_are_of_the_number_of_pixels() -> None:
    grown = [
        Measurement(f"growing {s}", "float32", "isaseg", {}, 100 * s**2, [1e-9 * s**3] * 3)
        for s in (8, 16, 64)
    ]
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
