"""The package of examples/mylab: trained, evaluated and predicted from, by commands as typed there."""

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isaseg.config.checks import check
from isaseg.runs.history import read_history
from tests import forked
from tests.conftest import compose_overrides

ROOT = Path(__file__).parents[1]
WORDS = ["experiment=mylab", "trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.accelerator=cpu"]
WORDS += ["logger=csv", "pictures=0", "trainer.log_every_n_steps=1"]
# evaluate folds the norms, which rounds otherwise; with seed 0 two pixels have two equal logits after six steps
WORDS += ["seed=1"]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the example, as the current folder, trusted."""
    shutil.copytree(ROOT / "examples/mylab", tmp_path / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "lab")
    monkeypatch.setenv("ISASEG_TRUST", "mylab")
    return tmp_path / "lab"


def test_its_loss_serves_an_experiment_that_weighs_the_classes_of_ours(lab: Path) -> None:
    check(compose_overrides("hydra.searchpath=[file://conf]", "experiment=lamps_isa", "loss=dice"))


def test_the_example_trains_and_is_evaluated_and_predicted_from(lab: Path) -> None:
    """(That runs with own parts go on: tests/training/test_own_parts.py.)"""
    run = lab / "run"
    done = forked.run("train.py", "--config-dir", "conf", *WORDS, f"run_dir={run}", cwd=lab)
    assert done.returncode == 0, done.stderr
    worst = read_history(run).curves["val/worst_IoU"]
    assert sorted(worst) == [3, 6] and min(worst.values()) >= 0
    facts = json.loads((run / "facts.json").read_text())
    assert facts["attention_label"] == "strip-mean"

    best = f"checkpoint={run}/checkpoints/best.ckpt"
    done = forked.run("evaluate.py", "--config-dir", "conf", best, "output=scores", cwd=lab)
    assert done.returncode == 0, done.stderr
    scored = json.loads((lab / "scores/metrics.json").read_text())["mIoU"]
    assert scored == pytest.approx(json.loads((run / "metrics.json").read_text())["val/mIoU"])
    Image.new("RGB", (50, 40)).save(lab / "photo.png")
    done = forked.run("predict.py", best, "input=photo.png", "output=labels", cwd=lab)
    assert done.returncode == 0, done.stderr
    assert list((lab / "labels").rglob("photo*.png"))
    done = forked.run("predict.py", best, "input=photo.png", "output=more", cwd=lab, ISASEG_TRUST=None)
    assert done.returncode == 2 and "+trust=[mylab]" in done.stderr


def test_the_documented_own_module_is_tested_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files, written as it shows them, its test and its command."""
    text = (ROOT / "docs/your-own-module.md").read_text()
    files = re.findall(r"```\w+\n# (my\S+)[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    assert [name for name, _ in files] == ["mylab.py", "myconf/attention/row_mean.yaml"]
    lines = [line for _, content in files for line in content.splitlines() if line]
    assert len(lines) == 5
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (test,) = re.findall(r"```python\n# test_mylab\.py[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.syspath_prepend(tmp_path)
    found: dict[str, Any] = {}
    monkeypatch.delitem(sys.modules, "mylab", raising=False)  # that of examples/, if a test has imported it
    exec(compile(test, "test_mylab.py", "exec"), found)
    del sys.modules["mylab"]
    found["test_each_position_is_the_mean_of_its_row"]()
    command = re.search(r"^python src/(train\.py) (.*\+trust=\[mylab\].*)$", text, flags=re.MULTILINE)
    assert command is not None
    few = ["trainer.max_steps=2", "data.val_length=4", "head.channels=16", "logger=csv", "pictures=0"]
    few += ["score_test=false", "output_dir=out", "trainer.accelerator=cpu"]
    done = forked.run(command[1], *shlex.split(command[2]), *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "out/lamps_isa").iterdir()
    assert run.name.startswith("RowMean_")
    recorded = shlex.split(json.loads((run / "facts.json").read_text())["command"])
    assert {f"--config-dir={tmp_path / 'myconf'}", "attention=row_mean", "+trust=[mylab]"} <= set(recorded)
    assert os.listdir(run / "checkpoints")
