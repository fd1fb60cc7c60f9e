"""The ablation: the sweep over context modules, and what the report says of it beyond any other sweep."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from isaseg import config
from isaseg.config.checks import check
from isaseg.report import charts, figures, table
from isaseg.report.reach import with_bounds
from isaseg.report.rows import Comparison
from tests import forked
from tests.conftest import compose_overrides
from tests.report.fake_runs import compared, write_run

ROOT = Path(__file__).parents[2]
ROWS, OPERATORS = (
    [row.split() for row in OmegaConf.load(ROOT / "conf" / "sweep" / f"{name}.yaml").hydra.sweeper.rows]
    for name in ("context", "operators")
)


def cells(comparison: Comparison, key: str) -> list[str]:
    (column,) = [column for column in table.shown_columns(comparison) if column.key == key]
    return [column.show(row) for row in comparison.rows]


def test_every_row_is_another_module_in_the_same_experiment() -> None:
    cfgs = [compose_overrides(*row) for row in ROWS]
    for cfg in cfgs:
        check(cfg)
    assert len({config.attention_label(cfg) for cfg in cfgs}) == len(ROWS) == 13
    for cfg in cfgs:
        cfg.trainer.max_steps = 1
        del cfg.attention
    assert all(cfg == cfgs[0] for cfg in cfgs), "rows differ in the context module and the steps alone"


@pytest.fixture(scope="module")
def operators() -> list[DictConfig]:
    """Give the configurations of the sweep over operators, as its file names them."""
    return [compose_overrides("experiment=cards_isa", "trainer.max_steps=600", *row) for row in OPERATORS]


def test_the_rows_of_operators_differ_in_the_pattern_alone(operators: list[DictConfig]) -> None:
    for cfg in operators:
        check(cfg)
    assert len({config.attention_label(cfg) for cfg in operators}) == len(OPERATORS) == 16
    rest = [{key: value for key, value in cfg.items() if key != "attention"} for cfg in operators]
    assert all(cfg == rest[0] for cfg in rest)


def test_operators_with_a_size_are_compared_at_about_the_cost_of_isa(operators: list[DictConfig]) -> None:
    """Between 0.6 and 1.4 times its scores, but for what has no size to choose."""
    shares = {}
    for row, cfg in zip(OPERATORS, operators, strict=True):
        module = config.build(cfg.attention, "attention")(64)
        shares[row[0].partition("=")[2]] = module.cost(32, 32).score_entries / (
            80 * 32 * 32 * module_heads(row)
        )
    assert shares.pop("dense") == 12.8
    assert shares.pop("none") == shares.pop("linear") == 0
    assert shares.pop("criss_cross_plain") == 1.6
    assert {name for name, share in shares.items() if not 0.6 < share < 1.4} == set()


def module_heads(row: list[str]) -> int:
    return next((int(word.split("=")[1]) for word in row if word.startswith("attention.heads=")), 1)


def test_rows_that_have_not_converged_are_marked_wherever_they_are_shown(tmp_path: Path) -> None:
    flat = {200: 0.9, 250: 0.99, 300: 0.99}
    for seed, end in enumerate((0.99, 0.9)):
        write_run(tmp_path / f"dense{seed}", "attention=dense", seed=seed, curve=flat)
        write_run(tmp_path / f"none{seed}", "attention=none", seed=seed, curve={**flat, 300: end})
    comparison = compared(tmp_path)
    assert [charts.marked(comparison, row) for row in comparison.rows] == ["dense", "none *"]
    assert cells(comparison, "converged") == ["2", "1"]
    assert "Converged: the score moved by less than 1 point" in table.markdown(comparison)


def test_further_metrics_and_bounds_are_columns(tmp_path: Path) -> None:
    modules = (["attention=none"], ["attention=criss_cross_plain", "attention.passes=1"])
    for place, module in enumerate(modules):
        folder = write_run(tmp_path / f"lamps{place}", *module, "data.val_length=8", "backbone=tiny")
        (folder / "metrics.csv").write_text("step,val/mIoU,val/group_acc\n50,0.2,0.1\n100,0.9,0.345\n")
    write_run(tmp_path / "cards", "attention=none", "data=cards", "data.val_length=8", "experiment=lamps_isa")
    comparison = with_bounds(compared(tmp_path, also=["val/group_acc"]))
    assert cells(comparison, "val/group_acc") == ["34.50", "–", "34.50"]
    assert "| val/group_acc % | bound % | far bound % |" in table.markdown(comparison)
    crossing, cards, none = csv.DictReader(io.StringIO(table.as_csv(comparison)))
    assert float(none["bound"]) < 0.5 < float(crossing["bound"]) < 0.9
    assert float(none["far_bound"]) == pytest.approx(1 / 3, abs=0.01), "far is beyond the field of view"
    assert 1 / 3 < float(cards["bound"]) < 0.5, "few objects lie beside the card of their hue"
    assert float(cards["far_bound"]) == pytest.approx(1 / 3, abs=0.01)
    assert "Bound: group accuracy" in table.latex(comparison)


@pytest.mark.parametrize("count", [1, 13])
def test_figures_are_drawn_for_any_number_of_rows(count: int, tmp_path: Path) -> None:
    for row in ROWS[:count]:
        write_run(tmp_path / "_".join(row), *row)
    comparison = compared(tmp_path)
    assert not any("steps" in row.label for row in comparison.rows), "the module distinguishes them"
    figures.write_figures(comparison, tmp_path)
    for name in ("accuracy_cost.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert 700 < picture.width < 1600
            assert np.asarray(picture.convert("L")).std() > 5


def test_the_sweep_and_the_report_go_all_the_way(tmp_path: Path) -> None:
    few = [
        "trainer.max_steps=4",
        "trainer.val_check_interval=2",
        "data.val_length=8",
        "data.batch_size=2",
        "seed=0",
        "logger=csv",
    ]
    rows = 'hydra.sweeper.rows=["attention=none trainer.max_steps=600","attention=isa"]'
    trained = forked.run("train.py", "-m", "sweep=context", rows, *few, cwd=tmp_path, children=True)
    assert trained.returncode == 0, trained.stderr
    (members,) = (tmp_path / "outputs" / "lamps_isa").glob(
        "context-*.sweep"
    )  # other words than sweep=context
    done = forked.run("compare.py", str(members), "--bounds", "--also", "val/group_acc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, _, isa, none, *_ = done.stdout.splitlines()
    assert isa.startswith("| isa-8x8 | 1 |") and none.startswith("| none | 1 |")
    assert "val/group_acc %" in header and "bound %" in header
    for name in ("table.md", "table.csv", "curves.png", "accuracy_cost.png", "index.html"):
        assert (tmp_path / "outputs" / "compare" / name).stat().st_size > 0, name
