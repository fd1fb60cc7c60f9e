"""The page of operators: its tables are those of the code, and its pictures show what the patterns say."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks import operators
from benchmarks.command import _parser
from PIL import Image
from torch import Tensor, nn

from isaseg.errors import IsasegError
from isaseg.models.attention_block import AttentionBlock
from isaseg.models.baselines import NoContext
from isaseg.models.criss_cross import CrissCrossAttention, PlainCrissCross
from isaseg.models.interlaced import InterlacedSparseAttention
from tests.models.references import Pattern, allowed, cross, everything, lattice, window

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
ISA = partial(InterlacedSparseAttention, 16, group_size=(2, 4))


def pattern(hears: Pattern, pixel: tuple[int, int]) -> Tensor:
    """Return what a pixel of a 6 x 8 map hears from."""
    return allowed((6, 8), hears)[pixel[0] * 8 + pixel[1]].view(6, 8)


@pytest.mark.parametrize("pixel", [(0, 0), (3, 5), (5, 2)])
@pytest.mark.parametrize(
    ("module", "stages", "output"),
    [
        (ISA(order="short"), [window((2, 4))], window((2, 4))),
        (ISA(order="long"), [lattice((2, 4))], lattice((2, 4))),
        (ISA(), [lattice((2, 4)), everything], everything),
        (ISA(order="short_long"), [window((2, 4)), everything], everything),
        (PlainCrissCross(16), [cross, everything], everything),
        (CrissCrossAttention(16, recurrence=1), [], cross),
        (NoContext(16), [], lambda a, b: a == b),
    ],
)
def test_a_pixel_hears_from_the_pattern(
    module: nn.Module, stages: list[Pattern], output: Pattern, pixel: tuple[int, int]
) -> None:
    found = operators.heard(module, (6, 8), pixel)
    assert torch.equal(found.output, pattern(output, pixel))
    assert len(found.stages) == len(stages)
    for cells, hears in zip(found.stages, stages, strict=True):
        assert torch.equal(cells, pattern(hears, pixel))


def test_a_block_that_gets_less_than_the_map_is_refused() -> None:
    class Cropped(nn.Module):
        out_channels = 16

        def __init__(self) -> None:
            super().__init__()
            self.block = AttentionBlock(16)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.block(x[..., 1:], lambda q, k, v: v)
            return out

    with pytest.raises(ValueError, match=r"returns a map of \(6, 8\), got \(1, 16, 6, 7\)"):
        operators.heard(Cropped(), (6, 8), (0, 0))


def test_the_page_has_a_row_for_everything_that_attends() -> None:
    assert {"isa", "isa_long", "isa_short", "dense", "criss_cross", "criss_cross_plain"} < set(
        operators.names()
    )
    assert not {"none", "aspp", "pyramid_pooling"} & set(operators.names())
    names_table = PAGE.read_text().partition("## Under another name")[2].partition("## ")[0]
    assert re.findall(r"^\| `(\w+)`", names_table, flags=re.MULTILINE) == list(operators.names())
    assert [name for name in operators.SCORES if name in operators.names()] == list(operators.names())


def test_the_costs_of_the_page_are_of_this_code() -> None:
    assert PAGE.read_text() == operators.current(PAGE.read_text()), "python src/benchmark.py operators"


def test_the_formulas_count_the_scores() -> None:
    height, width = 128, 64
    sizes = {"N": height * width, "H": height, "W": width, "P": 64, "Q": 128, "R": 64, "k": 7, "M": 128}
    found, wanted = {}, {}
    for name in operators.names():
        formula = operators.SCORES[name].replace("none", "0").replace("²", "**2")
        if not re.search("about|each", formula):
            formula = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula)
            found[name] = operators.cost(name, height, width).score_entries
            wanted[name] = eval(formula, dict(sizes))
    assert len(found) > 6
    assert found == wanted


def test_the_command_writes_the_picture_and_the_table(tmp_path: Path) -> None:
    page = tmp_path / "operators.md"
    page.write_text(re.sub(r"(?<=-->\n\n)(?:\|.*\n)+(?=\n<!-- end)", "", PAGE.read_text()))
    assert page.read_text() != PAGE.read_text()
    operators.benchmark(_parser().parse_args(["operators", "--output", str(tmp_path)]))
    assert page.read_text() == PAGE.read_text()
    with Image.open(tmp_path / operators.PICTURE) as image:
        assert image.width == 1500
        assert image.height > 300


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(IsasegError, match="end of costs -->"):
        operators.current("<!-- costs, generated -->\n")
