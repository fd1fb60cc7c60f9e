"""The workspace as code: what W&B gets of it. (That runs have the keys it asks for: test_loggers.py.)"""

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from wandb.errors import AuthenticationError

from isaseg.cli import dashboard as command

ROOT = Path(__file__).parents[2]

# of wandb-workspaces 0.4.13 itself, while it is imported
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style `@validator` validators are deprecated")

SNAPSHOT = ROOT / "tests" / "dashboard.json"


def test_the_specification_is_the_one_that_was_looked_at(tmp_path: Path) -> None:
    """After a change: python src/dashboard.py entity=me group=lamps_isa spec=tests/dashboard.json, and look at it."""
    path = tmp_path / "new" / "spec.json"
    assert command.main(["entity=me", "group=lamps_isa", f"spec={path}"]) == 0
    assert _without_ids(path) == _without_ids(SNAPSHOT)
    assert os.listdir(path.parent) == ["spec.json"]


def _without_ids(path: Path) -> Any:
    """W&B draws the ids of the panels."""
    return json.loads(re.sub(r'"__id__": "\w+"', '"__id__": ""', path.read_text()))


def test_the_private_api_is_that_of_the_version_it_was_written_for() -> None:
    """`_compat.workspace_spec`; if wandb#4289 is solved, use that instead."""
    assert version("wandb-workspaces") == "0.4.13"


def test_without_a_group_all_training_runs_are_shown(tmp_path: Path) -> None:
    assert command.main(["entity=me", f"spec={tmp_path / 'spec.json'}"]) == 0
    (runs,) = json.loads((tmp_path / "spec.json").read_text())["section"]["runSets"]
    assert [(f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]] == [("jobType", "train")]


def test_the_scores_may_be_those_of_last_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    assert command.main(["entity=me", "group=lamps_isa", "score=last", f"spec={path}"]) == 0
    text = path.read_text()
    assert "last/mIoU" in text and "best/" not in text


def test_faults_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise AuthenticationError("invalid")

    (tmp_path / "file").write_text("")
    for words, message in (
        (["entity=me"], "wandb login"),
        (["entty=me"], "did you mean 'entity'"),
        (["entity=me", "score=first"], "expected score=best or score=last, got score=first"),
        (["spec=" + str(tmp_path / "file" / "x")], "expected a file or folder that can be used"),
    ):
        assert command.main(words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("error:") == 1
    monkeypatch.setattr("wandb.login", refuse)  # raises for a key that cannot be one
    assert command.main(["entity=me"]) == 2
    assert "W&B did not save the workspace (AuthenticationError" in capsys.readouterr().err
    for name in ("dashboard", "_compat"):  # imported anew
        monkeypatch.delitem(sys.modules, f"isaseg.runs.{name}")
        monkeypatch.delattr(f"isaseg.runs.{name}")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert command.main(["entity=me", f"spec={tmp_path / 'spec'}"]) == 2
    assert "pip install 'isaseg[dashboard]'" in capsys.readouterr().err
    assert command.main(["--help"]) == 0
    assert "Examples:" in capsys.readouterr().out
