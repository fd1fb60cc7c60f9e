"""`isaseg evaluate checkpoint=RUN/checkpoints/best.ckpt`: the data are those of the run, from its config.yaml."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from isaseg.cli import evaluate as cli
from tests import fakes
from tests.conftest import compose_overrides
from tests.inference.tiny import make_checkpoint

COMMAND = cli.main
NAMES = ["sky", "ground", "sea"]


def make_run(folder: Path, num_classes: int, *words: str, name: str | None = None) -> Path:
    """Write what a run of these words has in its folder, and return its checkpoint."""
    cfg = compose_overrides(*words, "data.num_workers=0")
    cfg.data.name = name or cfg.data.name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return make_checkpoint(
        folder / "checkpoints" / "best.safetensors", num_classes, data=cfg.data.name, classes=None
    )


def metrics() -> Any:
    return json.loads(Path("out/metrics.json").read_text())


def test_generated_scenes_are_those_of_the_run(
    tool: Callable[..., int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    best = make_run(tmp_path / "run", 8, "data=lamps", "data.val_length=3", "data.source.seed=7")
    words = [f"checkpoint={best}", "worst=0", "output=out"]
    assert tool(*words) == 0
    of_run = metrics()
    assert of_run["images"] == 3
    assert f"data=lamps as in the run, from {tmp_path}/run/config.yaml\n" in caplog.text
    assert tool(*words, "data=lamps", "data.val_length=3") == 0
    assert metrics()["confusion"] != of_run["confusion"], "of seed 0"
    assert tool(*words, "data=lamps", "data.val_length=3", "data.source.seed=7") == 0
    assert metrics()["confusion"] == of_run["confusion"]
    assert tool(*words, "data.val_length=2") == 0
    assert metrics()["images"] == 2


def test_a_folder_of_the_users_own_another_root_and_a_run_that_was_moved(
    tool: Callable[..., int],
    refused: Callable[..., str],
    tmp_path: Path,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The option is of a --config-dir that the command does not name."""
    root = shutil.copytree(photos, tmp_path / "photos")
    given = ["data=folder", f"data.root={root}", f"data.classes=[{','.join(NAMES)}]", "data.val_length=4"]
    best = make_run(tmp_path / "run", 3, *given, name="mine")
    words = ["worst=0", "output=out"]
    assert tool(f"checkpoint={best}", *words) == 0
    of_run = metrics()
    assert (of_run["data"], of_run["images"], list(of_run["IoU"])) == ("mine", 4, NAMES)

    (tmp_path / "run").rename(tmp_path / "moved")
    moved = f"checkpoint={tmp_path}/moved/checkpoints/best.safetensors"
    other = fakes.make_fake_folder(tmp_path / "other", n=2)
    caplog.set_level(logging.INFO)
    assert tool(moved, *words, f"data.root={other}") == 0
    assert metrics()["images"] == 2
    assert (
        f"data=mine as in the run, from {tmp_path}/moved/config.yaml; given: data.root={other}" in caplog.text
    )

    root.rename(tmp_path / "gone")
    shutil.rmtree("out")
    line = refused(moved, *words)
    assert f"expected the folder '{root}', which is data.root in '{tmp_path}/moved/config.yaml'" in line
    assert line.endswith("give data.root=DIR")
    assert "no configuration key 'data.rot'; did you mean 'data.root'?" in refused(
        moved, *words, "data.rot=x"
    )
    copied = shutil.copy(tmp_path / "moved/checkpoints/best.safetensors", tmp_path / "copied.safetensors")
    assert "expected data=NAME, the option with the data set 'mine'" in refused(
        f"checkpoint={copied}", *words
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.source._target_", "os.system", "data.source._target_ to begin with"),
        ("data.source._target_", "mylab.Source", "+trust=[mylab]"),
        ("data.shuffled", "true", "no configuration key 'data.shuffled'"),
        ("data.root", "${oc.env:AWS_SECRET_ACCESS_KEY}", "oc.env:AWS_SECRET_ACCESS_KEY"),
        ("data", "7", "expected '"),
        ("data.name", "cards", "data.name=cards, where the checkpoint was trained on lamps"),
    ],
)
def test_what_a_file_of_a_stranger_says_is_refused_and_data_do_without_it(
    key: str, value: str, said: str, tool: Callable[..., int], refused: Callable[..., str], tmp_path: Path
) -> None:
    best = make_run(tmp_path / "run", 8, "data=lamps", "data.val_length=1")
    held = OmegaConf.load(tmp_path / "run" / "config.yaml")
    OmegaConf.update(held, key, value, force_add=True)
    OmegaConf.save(held, tmp_path / "run" / "config.yaml")
    line = refused(f"checkpoint={best}", "output=out")
    assert said in line and f"{tmp_path}/run/config.yaml" in line and "give data=NAME" in line
    if key == "data.root":
        assert tool(f"checkpoint={best}", "output=out", "worst=0", "data=lamps", "data.val_length=1") == 0
