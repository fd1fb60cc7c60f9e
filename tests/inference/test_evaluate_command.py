"""`isaseg evaluate` as a user calls it: what follows from the checkpoint, and a sentence for each mistake."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from isaseg.checkpoints.loading import Model, load_model
from isaseg.cli import evaluate as cli
from isaseg.errors import ConfigError
from isaseg.inference import evaluate as evaluation
from isaseg.inference.evaluate import evaluate_model
from tests import fakes
from tests.inference.tiny import compose_from, files, make_checkpoint

COMMAND = cli.main
NAMES = ["sky", "ground", "sea"]


def described(kind: str, data: str | None, protocol: str | None, align_corners: bool = False) -> Model:
    known = {"data": data, "protocol": protocol, "head": {"align_corners": align_corners}}
    return Model(torch.nn.Identity(), kind, {k: v for k, v in known.items() if v is not None})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        (described("isaseg", "lamps", "none"), {}, ("lamps", "none")),
        (described("isaseg", "cityscapes", "mmseg"), {}, ("cityscapes", "mmseg")),
        (described("isaseg", "cityscapes", "openseg", True), {}, ("cityscapes", "openseg")),
        (described("isaseg", "camvid", None), {}, ("camvid", "none")),
        (described("mmseg", "cityscapes", "mmseg"), {}, ("cityscapes", "mmseg")),
        (described("mmseg", "cityscapes", "mmseg", True), {}, ("cityscapes", "mmseg_769")),
        (described("isaseg", "cityscapes", "mmseg", True), {}, ("cityscapes", "mmseg_769")),  # exported
        (described("mmseg", "ade20k", "mmseg", True), {}, ("ade20k", "mmseg")),
        (described("mmseg", None, "mmseg"), {"data": "pascal_voc"}, ("pascal_voc", "mmseg")),
        (described("mmseg", "cityscapes", "mmseg"), {"data": "camvid"}, ("camvid", "none")),
        (described("openseg", "lip", "openseg", True), {}, ("lip", "openseg")),
    ],
    ids=lambda value: f"{value.kind}-{value.description}" if isinstance(value, Model) else None,
)
def test_data_and_protocol_follow_from_the_checkpoint(
    model: Model, given: dict[str, str], expected: tuple[str, str]
) -> None:
    found = cli._implied(given, model, Path("model.pth"))
    assert (found["data"], found["protocol"]) == expected


def test_a_data_set_whose_option_has_another_name_is_asked_for(tmp_path: Path) -> None:
    model = described("isaseg", "mine", "none")
    with pytest.raises(ConfigError, match=r"expected data=NAME.*'mine' of 'model.pth'.*--config-dir=DIR"):
        cli._implied({}, model, Path("model.pth"), [tmp_path])
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").touch()
    assert cli._implied({}, model, Path("model.pth"), [tmp_path])["data"] == "mine"
    assert cli._implied({"data": "other"}, model, Path("model.pth"))["data"] == "other"


def test_what_is_given_comes_before_what_follows(
    tool: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    city = make_checkpoint(tmp_path / "city.safetensors", 19, data="cityscapes", protocol="openseg")
    seen: list[DictConfig] = []
    monkeypatch.setattr(evaluation, "evaluate_model", lambda cfg, *models: seen.append(cfg))
    assert tool(f"checkpoint={city}", "data.root=x") == 0
    assert tool(f"checkpoint={city}", "data.root=x", "protocol=mmseg", "test.tta=true") == 0
    assert [cfg.data.name for cfg in seen] == ["cityscapes", "cityscapes"]
    assert [cfg.test.scaling for cfg in seen] == ["network", "file"]
    assert seen[1].test.tta


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["test.scales=[]"], "test.scales to be a list of factors above 0"),
        (["test.scale=[1.0]"], "no configuration key 'test.scale'; did you mean 'test.scales'?"),
        (["wurst=3"], "no configuration key 'wurst'; did you mean 'worst'?"),
        (["protocol=mmsec"], "no option 'mmsec' in the group protocol; did you mean 'mmseg'?"),
        (["worst=-1"], "worst to be greater than or equal to 0, got worst=-1"),
        (["worst=all"], "worst to be an integer, got worst=all"),
        (["data.val_length=0"], "data.val_length to be greater than 0 or null, got data.val_length=0"),
        (["data.val_batch_size=0"], "data.val_batch_size to be greater than 0"),
        (["split=tset"], "split to be 'train', 'val' or 'test', got split=tset"),
        (["split=test"], "a split with labels, got split=test, whose labels are not public"),
        (["data.classes=[sky,ground]"], "a network of 2 classes for data=folder, got 3 in '"),
        (["data.klasses=[sky]"], "no configuration key 'data.klasses'"),
        (["trainer.precision=17"], "precision"),
        (["test.tta"], "expected KEY=VALUE, got 'test.tta'"),
        (["--tta"], "expected KEY=VALUE, got '--tta'"),
    ],
)
def test_a_mistake_is_reported_in_a_sentence(
    words: list[str], text: str, refused: Callable[..., str], network: Path, own: list[str]
) -> None:
    assert text in refused(f"checkpoint={network}", *own, "output=out", *words)


def test_a_wrong_checkpoint_is_reported_in_a_sentence(
    refused: Callable[..., str], tmp_path: Path, own: list[str], network: Path
) -> None:
    nameless = make_checkpoint(tmp_path / "nameless.safetensors", 3)
    (tmp_path / "broken.pth").write_bytes(nameless.read_bytes()[:5000])
    assert "value for checkpoint, got none; give it as checkpoint=VALUE" in refused(*own)
    assert "'no.pth', which does not exist" in refused("checkpoint=no.pth", *own)
    assert "broken.pth" in refused(f"checkpoint={tmp_path}/broken.pth", *own)
    line = refused(f"checkpoint={nameless}")
    assert f"expected data=NAME, since '{nameless}' does not say" in line
    line = refused(f"checkpoint={nameless}", "data=cityscapes")
    assert "a network of 19 classes for data=cityscapes, got 3 in" in line
    line = refused(f"checkpoint={network}", *own[1:], "data.class=[a]")  # which only the checkpoint names
    assert "no configuration key 'data.class'" in line


def test_a_broken_picture_is_reported_and_nothing_is_written(
    refused: Callable[..., str], network: Path, own: list[str], tmp_path: Path
) -> None:
    root = fakes.make_fake_folder(tmp_path / "data", n=2)
    path = root / "images" / "val" / "a photo 1.jpg"
    path.write_bytes(path.read_bytes()[:300])
    words = [f"checkpoint={network}", *own, f"data.root={root}", "output=out"]
    assert "a photo 1.jpg" in refused(*words)


def test_ctrl_c_leaves_nothing(
    refused: Callable[..., str], network: Path, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "labels_of_views", interrupted)
    line = refused(f"checkpoint={network}", *own, "output=out", code=130)
    assert line == "error: interrupted; nothing is written"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (NAMES, None),
        (["Sky", "ground ", "sea, ocean"], None),
        (["sky", "sea", "ground"], "class 1 is 'sea' in the checkpoint and 'ground' in the data set"),
        (None, None),
    ],
)
def test_classes_of_other_names_are_reported(
    names: list[str] | None,
    said: str | None,
    network: Path,
    own: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = load_model(network)
    model.description["classes"] = names
    metrics = evaluate_model(compose_from(*own, "worst=0", "data.val_length=1", f"output={tmp_path}"), model)
    assert metrics["images"] == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [] if said is None else said in warnings[0]


def test_a_data_set_that_is_not_there(
    tool: Callable[..., int], network: Path, own: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(f"checkpoint={network}", *own, "data.root=nowhere", "output=out") == 2
    assert capsys.readouterr().err.startswith("error: data set not found: expected own images in a folder")
    assert not files(Path())


def test_the_words_of_the_help_are_understood(
    tool: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (tool("--help"), tool()) == (0, 2)
    text = capsys.readouterr().out
    words = set(re.findall(r"(?<=\s)[\w.]+=[\w.\[\],-]+(?=\s)", text.split("Examples:")[0]))
    assert len(words) > 10
    compose_from(*words)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(["a b", "c,d", "straße"], '["a b", "c,d", "straße"]'), (["${oc.env:HOME}", "b"], None)],
)
def test_the_classes_of_a_users_folder_follow_from_the_checkpoint(
    classes: list[str], expected: str | None
) -> None:
    """But for names that OmegaConf would resolve: the file may be a stranger's."""
    model = described("isaseg", "folder", "none")
    model.description["classes"] = classes
    assert cli._implied({}, model, Path("model.pth")).get("data.classes") == expected
