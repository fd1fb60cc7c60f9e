"""`isaseg export`: the folder that is shared, its card with the scores of the run, and the hub."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from isaseg.checkpoints.loading import Model, load_model
from isaseg.cli import export as cli
from isaseg.inference import export
from isaseg.models.segmenter import Segmenter
from tests.fake_hub import serving
from tests.inference.tiny import files

COMMAND = cli.main
FACTS: dict[str, Any] = {
    "seed": 3,
    "git_commit": "0123abcd",
    "torch": "9.9",
    "command": "isaseg train 'data.root=/home/a secret' 'data.dirs=[../a, /c d,c]' '+a={b: /e}' init_from=me/net "
    """'x="/f, g"' y=./../h z=file:///i at=https://j seed=3""",
    "files": {"train": {"count": 367, "bytes": 1}, "val": {"count": 101}, "backbone.weights": {"count": 1}},
}
METRICS: dict[str, Any] = {
    "checkpoint": "best",
    "step": 40,
    **{"val/mIoU": 0.5, "val/mAcc": 0.625, "val/aAcc": 0.75, "test/mIoU": None},
    "val/IoU": {"sky": 0.25, "ground": None, "sea": 0.75},
}
WORDS = ["output=out", "formats=[safetensors]"]


@pytest.fixture
def run(network: Path, tmp_path: Path) -> Path:
    """Return the folder of a run with two checkpoints, of which the best one is scored."""
    model = load_model(network)
    state = {f"segmenter.{name}": tensor for name, tensor in model.segmenter.state_dict().items()}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("best", "last"):
        content = {"state_dict": state, "isaseg": model.description}
        torch.save(content, tmp_path / "run" / "checkpoints" / f"{name}.ckpt")
    (tmp_path / "run" / "facts.json").write_text(json.dumps(FACTS))
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(METRICS))
    return tmp_path / "run"


@torch.no_grad()
def test_an_exported_folder_is_the_network_with_the_scores_of_its_run(
    run: Path, tool: Callable[..., int]
) -> None:
    best = run / "checkpoints" / "best.ckpt"
    assert tool(f"checkpoint={best}", *WORDS) == 0
    assert files(Path("out")) == {"model.safetensors", "config.json", "README.md"}
    image = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    assert torch.equal(Segmenter.from_pretrained("out")(image), load_model(best).segmenter(image))
    card = Path("out/README.md").read_text()
    for line in (
        "| data set | `folder` |",
        "| images | `train 367, val 101` |",
        "| steps | `40` |",
        "| seed | `3` |",
        "| command | `isaseg train data.root=... 'data.dirs=[..., ...,c]' '+a={b: ...}' init_from=me/net "
        """'x="..."' y=... z=... at=https://j seed=3` |""",
        "| commit of isaseg | `0123abcd` |",
        "Unknown: protocol, started.",
        "of the checkpoint `best`, which the validation split chose, at step 40:",
        "| validation | 50.00 | 62.50 | 75.00 |",
        "| 0 | `sky` | 25.00 |",
        "| 1 | `ground` | absent |",
    ):
        assert f"{line}\n" in card, line
    assert ", torch 9.9` |\n" in card and "| test |" not in card and "secret" not in card

    assert tool(f"checkpoint={run}/checkpoints/last.ckpt", *WORDS) == 0  # whose scores nobody knows
    card = Path("out/README.md").read_text()
    assert "## Scores\n\nUnknown." in card and "| seed | `3` |" in card and "50.00" not in card
    assert tool("checkpoint=out", "output=again", "formats=[safetensors]") == 0  # without its run
    assert "| seed |" not in Path("again/README.md").read_text()


def test_a_folder_is_pushed_as_it_is(
    run: Path, tool: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(model: Model, target: Path) -> float:  # the real one takes seconds: test_export.py
        target.write_bytes(b"graph")
        return 0.0

    monkeypatch.setattr(export, "export_onnx", write)
    Path("out").mkdir()
    Path("out/private.txt").write_text("mine")
    words = [f"checkpoint={run}/checkpoints/best.ckpt", "output=out", "push_to_hub=me/net"]
    with serving(tmp_path / "cache", monkeypatch) as hub:
        assert tool(*words) == 0
        names = {"model.safetensors", "config.json", "README.md", "model.onnx"}
        assert hub.repos["me/net"]["main"] == {name: Path("out", name).read_bytes() for name in names}
        assert tool("checkpoint=me/net", "output=again", "formats=[safetensors]") == 0
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_what_cannot_be_pushed_is_one_sentence(
    run: Path,
    tool: Callable[..., int],
    refused: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [f"checkpoint={run}/checkpoints/best.ckpt", *WORDS]
    for name in ("net", "me/net/x", "../net", "me/"):
        assert "expected push_to_hub to be USER/NAME on the hub, or null" in refused(
            *words, f"push_to_hub={name}"
        )
    line = refused(*words, "push_to_hub=me/net", "formats=[onnx]")
    assert "expected safetensors in formats for push_to_hub=me/net" in line
    line = refused(*words, "push_to_hub=me/net")
    assert "expected a token of the hub" in line and "hf auth login" in line
    monkeypatch.setenv("HF_TOKEN", "hf_stand_in")
    assert tool(*words, "push_to_hub=me/net") == 2  # tests are offline
    (line,) = (text for text in capsys.readouterr().err.splitlines() if text.startswith("error: "))
    assert "'out' is complete: run the same command again" in line
    Path("out/README.md").write_text("# Another project\n")
    assert "whose README.md is not an isaseg model card" in refused(*words)
    assert "expected another folder than that of checkpoint='out'" in refused("checkpoint=out", "output=out")
