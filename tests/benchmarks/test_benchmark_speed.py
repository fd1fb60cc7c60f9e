"""`benchmark.py attention` and `step`: what they compare is the same function, and what they report follows from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.openseg_block import OpensegBlock
from benchmarks.our_blocks import CEILINGS, ceiling_amount
from benchmarks.speed import Plan, Row, _amounts, across, ceiling, exponents, markdown, ratio

from isaseg.models.attention import InterlacedSparseAttention
from tests import forked
from tests.models.test_attention import random_map, randomise

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"


def run(*arguments: str, seconds: int = 300) -> Any:
    return forked.run("benchmark.py", *arguments, cwd=ROOT, seconds=seconds)


@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_openseg_block_is_ours_without_the_bias(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours: Any = randomise(InterlacedSparseAttention(16, value_bias=False))
    theirs = OpensegBlock(16).double().eval()
    renamed = {key.replace(".proj.", ".out."): value for key, value in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    x = random_map(2, 16, *size)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-12)


def rows() -> list[Row]:
    return [
        Row("linear", "float32", "ceiling", None, 8e9, 8e9, [0.1, 0.1]),
        Row("linear, oneDNN", "float32", "ceiling", None, 8e9, 8e9, [0.08, 0.08]),
        Row("convolution 3x3", "float32", "ceiling", None, 8e9, 8e9, [0.01, 0.01]),
        Row("forward 8", "float32", "isaseg", 2**20, 4e9, 3e9, [0.1, 0.2, 0.3]),
        Row("forward 8", "float32", "mmsegmentation", 2**20, 4e9, 4e9, [0.2, 0.6, 0.6]),
        Row("forward 8", "bfloat16", "isaseg", None, 4e9, 3e9, [0.05, 0.05, 0.05]),
    ]


def test_ratios_are_of_rounds_and_shares_of_the_fastest_matrix_product() -> None:
    found = rows()
    ours = found[3]
    assert ratio(found, ours) == pytest.approx([2.0, 3.0, 2.0])
    assert ratio(found, found[5]) == []
    assert ceiling(found, "float32") is found[1]
    assert ceiling(found, "bfloat16") is None
    assert across(found) == [
        "forward 8: ours in float32 is 2.00 (2.00 to 3.00) times as fast as mmsegmentation's in float32",
        "forward 8: ours in bfloat16 is 12.00 (4.00 to 12.00) times as fast as mmsegmentation's in float32",
    ]
    text = markdown("title", {"device": "abacus", "mmsegmentation": {"version": "1"}}, found, ["grows"])
    assert (
        "| forward 8 | float32 | isaseg | 200.0 | 100.0 to 300.0 | 2.00 (2.00 to 3.00) | 15 | 15 % | 1 |"
        in text
    )
    assert "device abacus." in text and "- grows" in text


def test_exponents_are_of_the_number_of_pixels() -> None:
    grown = [
        Row(f"forward {s}", "float32", "isaseg", 100 * s**2, 0, 0, [1e-9 * s**3] * 3) for s in (8, 16, 64)
    ]
    assert exponents(grown) == pytest.approx({"time": 1.5, "memory": 1.0})


def test_what_runs_is_less_than_the_definition_by_one_product_a_stage() -> None:
    plan = Plan([], channels=512)
    by_definition, done = _amounts(plan, "forward 128", "float32", "isaseg")
    assert by_definition == 2 * InterlacedSparseAttention(512).cost(128, 128).mult_adds
    assert by_definition - done == 2 * 2 * 128**2 * 512**2
    assert _amounts(plan, "forward 128", "float32", "mmsegmentation") == (by_definition, by_definition)
    assert _amounts(plan, "training 128", "float32", "isaseg")[1] == 3 * done
    assert _amounts(plan, "training 128", "float32", "isaseg, recomputed")[1] == pytest.approx(4 * done)


def power(content: Any) -> list[tuple[str, str]]:
    """Return the exponents as they are told, from the numbers that are written."""
    grown = [r for r in content["rows"] if r["work"].startswith("growing")]
    pixels = np.log([float(r["work"].split()[1]) ** 2 for r in grown])
    curves = {"time": [r["milliseconds"] for r in grown], "memory": [r["peak_bytes"] for r in grown]}
    return [(n, f"N^{np.polyfit(pixels, np.log(v), 1)[0]:.2f}") for n, v in curves.items()]


def test_the_command_writes_times_ceilings_and_a_table(tmp_path: Path) -> None:
    small = ["--sizes", "9", "--channels", "16", "--rounds", "2", "--types", "float32", "--growth", "8", "16"]
    done = run("attention", *small, "--peer", str(tmp_path / "none"), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "ours alone" in done.stderr
    content = json.loads((tmp_path / "benchmark" / "attention.json").read_text())
    assert [(r["work"], r["pipeline"]) for r in content["rows"]] == [
        *((work, "ceiling") for work in CEILINGS),
        *(("forward 9", name) for name in ("isaseg", "openseg", "dense")),
        *(("training 9", name) for name in ("isaseg", "isaseg, recomputed", "openseg")),
        *((f"growing {side}", "isaseg") for side in (8, 16)),
    ]
    assert [line.split()[:4] for line in content["said"][:2]] == [
        [n, "grows", "as", w] for n, w in power(content)
    ]
    assert all(len(r["rounds"]) == 2 and min(r["rounds"]) > 0 for r in content["rows"])
    assert content["facts"]["torch"] == torch.__version__
    assert content["rows"][0]["operations"] == ceiling_amount("linear", "float32")
    assert (tmp_path / "benchmark" / "attention.md").read_text().count("| forward 9 |") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "--sizes", "0"], "sides, rounds and threads of at least 1"),
        (["attention", "--channels", "20"], "in 16s, got --channels 20"),
        (["attention", "--device", "abacus"], "expected --device cpu, or cuda"),
        (["step", "--size", "16"], "pictures of at least 32 x 32"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(*arguments, "--output", str(tmp_path))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.peers
@pytest.mark.skipif(not PEER.is_file(), reason="`make peers` installs it")
@pytest.mark.parametrize(
    "command", [["attention", "--sizes", "9", "--channels", "16", "--no-dense"], ["step", "--size", "64"]]
)
def test_mmsegmentation_is_measured_beside_ours(command: list[str], tmp_path: Path) -> None:
    done = run(*command, "--rounds", "1", "--output", str(tmp_path), seconds=600)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "benchmark" / f"{command[0]}.json").read_text())
    measured = [r for r in content["rows"] if r["pipeline"] == "isaseg"]
    assert measured and all(r["times_mmseg"] > 0 for r in measured)
    assert content["facts"]["mmsegmentation"]["version"] == "1.2.2"
