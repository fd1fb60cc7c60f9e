"""Each benchmark at tiny sizes: alone, and beside mmsegmentation where it is installed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.attention import CEILING, CEILINGS
from PIL import Image

from tests import fakes, forked

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-peers" / "bin" / "python"


def run(
    *words: str, output: Path, seconds: int = 400, children: bool = True
) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Return how the command ended and what it wrote as JSON."""
    words = (*words, "--output", str(output))
    done = forked.run("benchmark.py", *words, cwd=ROOT, seconds=seconds, children=children)
    assert done.returncode == 0, done.stderr
    folder = output / "benchmark"
    assert (folder / f"{words[0]}.md").read_text() in done.stdout
    return done, json.loads((folder / f"{words[0]}.json").read_text())


def power(rows: list[Any], name: str, key: str) -> str:
    """Return the exponent of the growth of `key` with the number of pixels."""
    grown = [row for row in rows if row["work"].startswith("growing") and row["pipeline"] == name]
    pixels = np.log([float(row["work"].split()[1]) ** 2 for row in grown])
    return f"N^{np.polyfit(pixels, np.log([row[key] for row in grown]), 1)[0]:.2f}"


def test_attention_is_measured_beside_the_ceilings_of_the_machine(tmp_path: Path) -> None:
    small = ["--sizes", "9", "--channels", "16", "--rounds", "1", "--types", "float32"]
    done, content = run("attention", *small, "--peer", str(tmp_path / "none"), output=tmp_path)
    assert "ours alone" in done.stderr
    rows = content["rows"]
    assert [(r["work"], r["pipeline"]) for r in rows] == [
        *((product, CEILING) for product in CEILINGS),
        ("forward 9", "isaseg"),
        *(("training 9", name) for name in ("isaseg", "isaseg, recomputed")),
    ]
    assert all(len(r["seconds"]) == 1 and min(r["seconds"]) > 0 for r in rows)
    assert content["facts"]["torch"] == torch.__version__
    assert content["facts"]["threads"] == 1


def test_modules_are_counted_measured_and_drawn(tmp_path: Path) -> None:
    small = ["--channels", "64", "32", "--rounds", "2", "--memory", "100", "--output", str(tmp_path)]
    few = ["--modules", "none", "isa-held", "dense-held", "--sizes", "13", "--growth", "8", "96"]
    # memory is to be the limit, however slow the machine
    _, content = run("modules", *few, *small, "--seconds", "100000", output=tmp_path)
    folder = tmp_path / "benchmark"
    assert sorted(p.name for p in folder.iterdir()) == ["modules.json", "modules.md", "modules.png"]
    rows = {(r["work"], r["pipeline"]): r for r in content["rows"]}
    held = ("isa-held", "dense-held")
    measured = [(f"{part} 13", name) for part in ("block", "head", "scores") for name in held]
    assert all(rows[key]["peak_bytes"] > 0 and rows[key]["error"] is None for key in measured)
    timed = [key for key, row in rows.items() if len(row["seconds"]) == 2]
    blocks = [("block 13", name) for name in ("dense-held", "isa-held", "none")]
    assert sorted(timed) == [*blocks, ("head 13", "none")], "the last is the 3x3 convolution alone"
    assert rows["head 13", "none"]["counts"]["mult_adds"] == 9 * 64 * 32 * 169
    dense = rows["block 13", "dense-held"]["counts"]
    scores = rows["scores 13", "dense-held"]["counts"]
    assert dense["attention_mult_adds"] == scores["mult_adds"] == 169**2 * (16 + 32)
    assert dense["score_bytes"] == 169**2 * 4
    assert rows["growing 8", "dense-held"]["error"] is None
    assert rows["growing 96", "dense-held"]["error"] == "out of memory"
    ratio = rows["scores 13", "isa-held"]["counts"]["mult_adds"] / scores["mult_adds"]
    (line,) = [line for line in content["lines"] if line.startswith("- scores 13")]
    assert f"{100 * ratio:.2f} % of the multiply-adds" in line
    time, memory = (power(content["rows"], "isa-held", key) for key in ("milliseconds", "peak_bytes"))
    grows = f"time grows as {time} and memory as {memory} with the pixels N"
    assert f"- isa-held: from 8² to 96², {grows}" in content["lines"]
    with Image.open(folder / "modules.png") as image:
        assert image.width > 1000


def test_data_is_measured_with_and_without_the_cache(tmp_path: Path) -> None:
    root = fakes.make_fake_ade20k(tmp_path / "a, (strange) 'root'")
    small = ["--samples", "8", "--rounds", "2", "--workers", "0", "1", "--peer", str(tmp_path / "none")]
    done, content = run("data", f"ade20k={root}", *small, output=tmp_path / "out")
    assert "ours alone" in done.stderr
    assert [(r["pipeline"], r["kind"]) for r in content["rows"]] == [
        (name, workers) for workers in "01" for name in ("isaseg", "isaseg, cached")
    ]
    assert all(len(r["seconds"]) == 2 and r["milliseconds"] > 0 for r in content["rows"])
    assert {p.name for p in tmp_path.iterdir()} == {root.name, "out"}


@pytest.mark.peers
@pytest.mark.skipif(not PEER.is_file(), reason="`make peers` installs it")
@pytest.mark.parametrize(
    "words",
    ["attention --sizes 9 --channels 16", "step --size 64", "evaluate --size 64 64", "data"],
)
def test_mmsegmentation_is_measured_beside_ours(words: str, tmp_path: Path) -> None:
    data = (
        [f"ade20k={fakes.make_fake_ade20k(tmp_path / 'ade20k')}", "--samples", "8"] if words == "data" else []
    )
    _, content = run(
        *words.split(), *data, "--rounds", "1", output=tmp_path / "out", seconds=600, children=False
    )
    ours = [r for r in content["rows"] if r["pipeline"] == "isaseg"]
    assert ours and all(r["times_mmseg"] > 0 for r in ours)
    assert content["facts"]["mmsegmentation"]["version"] == "1.2.2"
