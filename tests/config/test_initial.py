"""`init_from`: what a configuration becomes with a file, what a command may change of it, and how runs are named."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from isaseg import config
from isaseg.checkpoints.parts import copy_parts
from isaseg.config.checks import check
from isaseg.errors import CheckpointError, ConfigError, IsasegError
from isaseg.models.segmenter import build_described
from isaseg.models.tensor_files import save_safetensors
from tests import forked
from tests.reliability.small import attempted

DESCRIPTION: dict[str, Any] = {
    "backbone": {"name": "test_resnet", "output_stride": 8, "out_indices": [-2, -1], "mean": [1.0, 2.0, 3.0]},
    "attention": {"name": "InterlacedSparseAttention", "group_size": [4, 4], "key_channels": 4},
    "head": {"channels": 8, "dropout": 0.2, "aux_channels": 4, "align_corners": True},
    "negative_slope": 0.01,
    "num_classes": 3,
    "classes": ["Sky", "ground; soil", "thing"],
}


def saved(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write the network of DESCRIPTION, with changes."""
    description = DESCRIPTION | changes
    torch.manual_seed(seed)
    save_safetensors(build_described(description), description, path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("made") / "made.safetensors")


@pytest.fixture
def begun(compose: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Give `begun(file, *words)`: the configuration of a command."""
    return lambda file, *words: config.initialised(compose(f"init_from={file}", *words), words)


def test_the_file_decides_unless_the_command_does(file: Path, begun: Callable[..., DictConfig]) -> None:
    cfg = begun(file)
    check(cfg)
    assert (cfg.backbone.name, list(cfg.backbone["mean"]), cfg.backbone.pretrained) == (
        "test_resnet",
        [1, 2, 3],
        False,
    )
    assert (list(cfg.attention.group_size), cfg.attention.recompute) == ([4, 4], False)
    assert cfg.head == DESCRIPTION["head"] | {"negative_slope": 0.01, "init": "torch"}
    words = [
        "backbone.output_stride=16",
        "backbone.freeze=[stem]",
        "head.dropout=0.5",
        "head.aux_channels=null",
    ]
    cfg = begun(
        file, *words, "attention.group_size=[8,8]", "attention.recompute=true", "+attention.label=mine"
    )
    check(cfg)
    assert (cfg.backbone.output_stride, cfg.backbone.freeze, list(cfg.backbone["mean"])) == (
        16,
        ["stem"],
        [1, 2, 3],
    )
    assert (cfg.head.dropout, cfg.head.aux_channels, cfg.head.channels) == (0.5, None, 8)
    assert (
        config.attention_label(cfg) == "mine-8x8"
        and cfg.attention.key_channels == 4
        and cfg.attention.recompute
    )
    cfg = begun(file, "backbone=tiny_d8")
    assert cfg.backbone == begun(file, "init_parts=[attention]", "backbone=tiny_d8").backbone
    assert "mean" not in cfg.backbone, "the whole node is the command's"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (
            ["backbone.pretrained=false", "attention=dense", "head.aux_channels=null"],
            r"takes attention of .* got attention=dense \(.*SelfAttention2d.*init_parts=\[backbone,head\]",
        ),
        (
            ["head.channels=16"],
            r"takes head and attention of .*got head\.channels=16 .*init_parts=\[backbone\]",
        ),
        (
            ["backbone=resnet18", "init_parts=[backbone]"],
            r"takes backbone of .*\(test_resnet with .*; leave that out$",
        ),
        (
            ["backbone=resnet18", "backbone.freeze=[stem]", "head.channels=16"],
            r"got backbone=resnet18 head\.channels=16 \(.*; leave those words out",
        ),
        (["init_sha256=abc"], "to have init_sha256=abc, got "),
    ],
)
def test_a_conflict_is_one_sentence(
    words: list[str], match: str, file: Path, begun: Callable[..., DictConfig]
) -> None:
    with pytest.raises(IsasegError, match=match):
        begun(file, *words)


def test_a_run_is_named_by_the_content_of_the_file(
    file: Path, tmp_path: Path, begun: Callable[..., DictConfig], compose: Callable[..., DictConfig]
) -> None:
    name = config.run_name(begun(file))
    moved = shutil.copy(file, tmp_path / "moved.safetensors")
    assert config.run_name(begun(moved)) == config.run_name(begun(tmp_path)) == name
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    assert config.run_name(begun(file, f"init_sha256={content.upper()}")) == name, "as some systems print it"
    assert config.run_name(begun(file, "init_parts=[backbone]")) != name
    saved(tmp_path / "moved.safetensors", seed=1)
    assert config.run_name(begun(moved)) != name
    assert not {"init_sha256", "init_parts", "init_from"} & config.identity(compose()).keys()
    assert config.run_name(begun("null")) == config.run_name(compose())


def test_a_folder_has_one_file(tmp_path: Path, begun: Callable[..., DictConfig]) -> None:
    for name in ("a.ckpt", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(
        ConfigError, match=r"one file of a network \(.*\) in init_from=.*, got a\.ckpt, b\.pth"
    ):
        begun(tmp_path)


ALL = ["backbone", "attention", "head"]


@pytest.mark.parametrize(
    ("named", "classes", "new", "said"),
    [
        (["Sky", "ground; soil", "thing"], ["sky", "ground", "thing"], "", ""),
        (None, ["a", "b", "c"], "", "does not name its 3 classes"),
        (
            ["Sky", "cow", "thing"],
            ["sky", "ground", "thing"],
            "classifiers (class 1 is 'cow' in the file",
            "",
        ),
        (["x"] * 3, ["x"] * 4, "classifiers (the file has 3 classes, the data 4)", ""),
    ],
)
def test_classifiers_are_kept_for_the_same_classes(
    named: list[str] | None,
    classes: list[str],
    new: str,
    said: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = saved(tmp_path / "a.safetensors", classes=named)
    caplog.set_level("INFO")
    segmenter = build_described(DESCRIPTION | {"num_classes": len(classes), "classes": None})
    drawn, theirs = segmenter.head.classifier.weight.clone(), build_described(DESCRIPTION)
    copy_parts(theirs, path, ALL, named or classes)
    found = copy_parts(segmenter, path, ALL, classes)
    assert found["init_new"].startswith(new) and bool(found["init_new"]) == bool(new)
    kept = segmenter.head.classifier.weight
    assert torch.equal(kept, drawn if new else theirs.head.classifier.weight)
    assert said in caplog.text and ("does not name" in caplog.text) == bool(said)


def test_auxiliary_heads_may_be_new_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    without = {"head": DESCRIPTION["head"] | {"aux_channels": None}}
    paths = saved(tmp_path / "with.safetensors"), saved(tmp_path / "without.safetensors", **without)
    networks = build_described(DESCRIPTION | without), build_described(DESCRIPTION)
    assert copy_parts(networks[0], paths[0], ALL, DESCRIPTION["classes"])["init_new"] == ""
    assert "left out: the auxiliary head" in caplog.text
    assert (
        copy_parts(networks[1], paths[1], ALL, DESCRIPTION["classes"])["init_new"]
        == "aux_head (the file has none)"
    )
    found = copy_parts(networks[1], paths[0], ["attention"], DESCRIPTION["classes"])
    assert found["init_new"] == "backbone (not in init_parts), head (not in init_parts)"
    with pytest.raises(
        CheckpointError, match=r"the head of '.*' to fit the network, got .*head\.reduce\.0\.weight \("
    ):
        copy_parts(
            build_described(DESCRIPTION | {"head": without["head"] | {"channels": 6}}),
            paths[0],
            ["head"],
            "abc",
        )


class Runs:
    """Is pickled as a command."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def test_the_command_refuses_before_anything_is_made(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing file, a hostile one without running it, a conflict before any job starts."""
    torch.save({"state_dict": Runs()}, tmp_path / "evil.pth")
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:2000])
    (tmp_path / "page.pth").write_text("<html>404</html>")
    monkeypatch.chdir(tmp_path)
    for path, words, said in (
        ("cut.pth", [], "writes it, got 'cut.pth': its end is missing; copy or download it again\n"),
        ("page.pth", [], "writes it, got 'page.pth': it does not begin like one; copy or "),
        (
            file,
            ["init_parts=null", "head.dropout=0"],
            "expected init_parts to be a list of backbone, attention",
        ),
        ("'~/nowhere.ckpt'", [], f"got '{Path.home()}/nowhere.ckpt', which does not exist"),
        ("nowhere.ckpt", [], "expected a file as init_from, got 'nowhere.ckpt', which does not exist"),
    ):
        assert attempted(f"init_from={path}", *words, "output_dir=out") == 2
        err = capsys.readouterr().err
        assert said in err and err.splitlines()[-1].startswith("error: "), err
    for words, said in (
        ([f"init_from={tmp_path / 'evil.pth'}"], "loading the rest might run code"),
        ([f"init_from={file}", "-m", "attention=isa,dense"], "got attention=dense"),
    ):
        done = forked.run("train.py", *words, "output_dir=out", cwd=tmp_path)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ")
    found = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"evil.pth", "cut.pth", "page.pth"}
