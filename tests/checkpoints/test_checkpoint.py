"""Checkpoint files survive crashes, damage and malice."""

import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isaseg import config
from isaseg.checkpoints.loading import Model, copy_weights, load_model, load_segmenter
from isaseg.checkpoints.writing import DurableCheckpointIO
from isaseg.data.module import SegmentationDataModule
from isaseg.errors import CheckpointError, ConfigError
from isaseg.models.segmenter import build_described
from isaseg.models.tensor_files import load_checkpoint, save_safetensors
from isaseg.training.build import build_module, describe
from isaseg.training.resume import find_resume
from isaseg.training.run import train
from tests.reliability.small import SMALL


def save(path: Path, step: int) -> Path:
    DurableCheckpointIO().save_checkpoint({"global_step": step, "w": torch.full((5000,), float(step))}, path)
    return path


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_c1_c4_a_kill_while_saving_never_spoils_the_file_and_what_it_left_is_swept(
    moment: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "checkpoints" / "last.ckpt", 1)
    child = os.fork()
    if child == 0:
        setattr(os, moment, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        save(path, 2)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(os.listdir(path.parent)) == 2, "killed in the middle of a save"
    assert load_checkpoint(path)["global_step"] == 1
    assert find_resume(tmp_path, "auto")[0] == path
    assert os.listdir(path.parent) == ["last.ckpt"], "what was left is swept"


def test_c9_copying_weights_lists_every_difference_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {
        "0.weight": torch.zeros(5, 3),
        "1.weight": torch.zeros(2, 2),
        "1.bias": torch.zeros(2),
        "x": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        copy_weights(model, {"state_dict": state}, Path("a.pt"))
    for part in ("missing: 0.bias", "unexpected: x", "0.weight (5, 3) -> (2, 3)", "'a.pt'"):
        assert part in str(caught.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_file_that_claims_more_bytes_than_it_has_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="claims more bytes than it has"):
        load_checkpoint(tmp_path / "bomb.pt")


# ---------------------------------------------------------------- whole networks

DESCRIPTION: dict[str, Any] = {
    "backbone": {"name": "test_resnet", "output_stride": 8},
    "attention": {"name": "InterlacedSparseAttention", "group_size": [2, 2]},
    "head": {"channels": 8, "dropout": 0.1, "aux_channels": 4, "align_corners": False},
    "num_classes": 3,
    "data": "camvid",
    "classes": ["sky", "road", "ground"],
}


def picture(height: int = 33, width: int = 41) -> Tensor:
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)


@pytest.fixture
def model() -> Model:
    return described(DESCRIPTION)


def described(description: dict[str, Any]) -> Model:
    segmenter = build_described(description).eval()
    for name, buffer in segmenter.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            nn.init.uniform_(buffer, 0.5, 1.5)
    return Model(segmenter, "isaseg", description)


def save_ours(model: Model, path: Path, **changes: Any) -> Path:
    """Save what a training run would."""
    state = {f"segmenter.{k}": v for k, v in model.segmenter.state_dict().items()}
    content = {"state_dict": state | {"loss.weight": torch.ones(3)}, "isaseg": model.description} | changes
    torch.save({k: v for k, v in content.items() if v is not None}, path)
    return path


@torch.no_grad()
def test_the_checkpoint_of_a_run_is_a_whole_network(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    common = [*SMALL, "trainer.val_check_interval=1", "optim.total_steps=2", f"run_dir={tmp_path}"]
    train(compose(*common, "trainer.max_steps=1"))
    last = tmp_path / "checkpoints" / "last.ckpt"
    model = load_model(last)
    assert model.kind == "isaseg"
    assert (model.description["data"], model.description["protocol"]) == ("lamps", "none")
    classes = model.description["classes"]
    assert len(classes) == len(model.description["palette"]) == model.description["num_classes"]
    twin = build_described(model.description).eval()
    weights = load_checkpoint(last)["state_dict"]
    copy_weights(twin, {name.removeprefix("segmenter."): value for name, value in weights.items()}, last)
    x = picture()
    assert torch.equal(model.segmenter(x), twin(x))
    content = load_checkpoint(last)
    del content["isaseg"]  # as it was before there were descriptions
    torch.save(content, last)
    (last.parent / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"cannot load '.*last.ckpt'.*older version.*`resume`"):
        load_model(last)
    train(compose(*common, "trainer.max_steps=2", "resume=must"))
    assert load_checkpoint(last)["global_step"] == 2
    assert load_model(last).description == model.description


CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    "override",
    [
        f"{group}={path.stem}"
        for group in ("attention", "backbone")
        for path in sorted((CONF / group).glob("[!_]*.yaml"))
    ],
)
def test_every_network_of_the_configuration_can_be_described(
    override: str, compose: Callable[..., DictConfig]
) -> None:
    cfg = compose(override, "head.aux_channels=null")
    source = SimpleNamespace(palette=torch.ones(8, 3, dtype=torch.uint8))
    labels = SimpleNamespace(classes=list("abcdefgh"), source=lambda split: source)
    described = describe(cfg, cast(SegmentationDataModule, labels))
    with torch.device("meta"):
        assert build_described(json.loads(json.dumps(described))).head.classifier.out_channels == 8


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("data.name='my data'", "letters, digits, _ and - for the data set, got data='my data'"),
        ("data.name=cityscapes", "expected a network of the 19 classes of Cityscapes, got one of 8"),
        ("head.channels=5000", "a number of at most 4096.*got head.channels=5000"),
        ("+backbone.model_args={in_chans:3}", "only .*drop_path_rate.*got backbone.model_args.in_chans=3"),
        ("attention._target_=isaseg.models.fuse.FusedBlock", "."),
    ],
)
def test_what_a_checkpoint_cannot_describe_is_refused_before_the_first_step(
    words: str, match: str, compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=match):
        train(compose(words, "logger=csv", "check_data=false", f"run_dir={tmp_path}"))
    assert not list(tmp_path.iterdir())


def test_what_timm_takes_as_a_number_or_flag_can_be_described(compose: Callable[..., DictConfig]) -> None:
    given = "{drop_path_rate:0.1,drop_block_rate:0.05,feature_cls:getter}"
    words = [f"+backbone.model_args={given}", "backbone.freeze=[stem]"]
    cfg = compose(*words, "check_data=false")
    module = build_module(cfg, config.build(cfg.data, "data"))
    assert module.description is not None
    args = {"drop_path_rate": 0.1, "drop_block_rate": 0.05, "feature_cls": "getter"}
    assert module.description["backbone"]["model_args"] == args
    assert not {"freeze", "norm_eval", "weights"} & set(module.description["backbone"])


def test_c1_files_are_written_beside_their_places(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, Path]] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append((Path(a), Path(b))), replace(a, b)))
    checkpoint, tensors = tmp_path / "last.ckpt", tmp_path / "model.safetensors"
    save(checkpoint, 1)
    save_safetensors(model.segmenter, model.description, tensors)
    assert [target for _, target in seen] == [checkpoint, tensors]
    assert {temporary.parent for temporary, _ in seen} == {tmp_path}
    assert torch.equal(DurableCheckpointIO().load_checkpoint(checkpoint)["w"], torch.full((5000,), 1.0))


@torch.no_grad()
def test_our_files_give_the_same_network(model: Model, tmp_path: Path) -> None:
    x = picture()
    want = model.segmenter(x)
    save_safetensors(model.segmenter, model.description, tmp_path / "new" / "model.safetensors")
    for path in (save_ours(model, tmp_path / "a.ckpt"), tmp_path / "new" / "model.safetensors"):
        loaded = load_model(path)
        assert loaded.kind == "isaseg"
        assert loaded.description == DESCRIPTION
        assert not loaded.segmenter.training
        assert torch.equal(loaded.segmenter(x), want)
        other = load_segmenter(path, group_size=(4, 1), align_corners=True)
        assert other.head.attention.group_size == (4, 1)
        assert other.align_corners
    (tmp_path / "new" / "model.safetensors").rename(tmp_path / "renamed")  # known by what it holds
    assert torch.equal(load_segmenter(tmp_path / "renamed")(x), want)
    assert os.listdir(tmp_path / "new") == []


@torch.no_grad()
def test_a_network_of_inplace_abn_keeps_the_signs_of_its_weights(tmp_path: Path) -> None:
    model = described({**DESCRIPTION, "head": {**DESCRIPTION["head"], "norm": "inplace_abn"}})
    for name, weight in model.segmenter.named_parameters():
        if weight.ndim == 1:
            weight.normal_()
    save_safetensors(model.segmenter, model.description, tmp_path / "a.safetensors")
    x = picture()
    for path in (save_ours(model, tmp_path / "a.ckpt"), tmp_path / "a.safetensors"):
        loaded = load_segmenter(path)
        assert torch.equal(loaded(x), model.segmenter(x))
        for name, value in model.segmenter.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value), name


def test_loading_makes_single_precision(model: Model, tmp_path: Path) -> None:
    state = {
        f"segmenter.{k}": v.half() if v.is_floating_point() else v
        for k, v in model.segmenter.state_dict().items()
    }
    loaded = load_segmenter(save_ours(model, tmp_path / "a.ckpt", state_dict=state))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())


def test_group_size_of_a_network_without_groups_is_refused(model: Model, tmp_path: Path) -> None:
    description = {**DESCRIPTION, "attention": {"name": "NoContext"}}
    path = save_ours(Model(build_described(description), "isaseg", description), tmp_path / "a.ckpt")
    load_model(path)
    with pytest.raises(CheckpointError, match=r"a.ckpt'.*got attention.group_size=\[2, 2\]"):
        load_model(path, group_size=(2, 2))


def test_every_tensor_of_ours_is_needed_and_no_other(model: Model, tmp_path: Path) -> None:
    state = {f"segmenter.{k}": v for k, v in model.segmenter.state_dict().items()}
    del state["segmenter.head.classifier.bias"]
    state |= {"segmenter.extra": torch.ones(1), "segmenter.head.classifier.weight": torch.ones(4, 8, 1, 1)}
    state["segmenter.backbone.model.bn1.bias"] = state["segmenter.backbone.model.bn1.bias"].int()
    with pytest.raises(CheckpointError) as caught:
        load_model(save_ours(model, tmp_path / "a.ckpt", state_dict=state))
    for part in (
        "missing: segmenter.head.classifier.bias;",
        "unexpected: segmenter.extra;",
        "(file -> model): segmenter.head.classifier.weight (4, 8, 1, 1) -> (3, 8, 1, 1); ",
        "segmenter.backbone.model.bn1.bias torch.int32 -> torch.float32",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"isaseg": {**DESCRIPTION, "attention": {"name": "os.system"}}}, "attention.name='os.system'"),
        (
            {"isaseg": {**DESCRIPTION, "num_classes": 4000, "classes": None}},
            r"\(3, 8, 1, 1\) -> \(4000, 8, 1, 1\)",
        ),
        ({"isaseg": {**DESCRIPTION, "backbone": {"name": "vit_giant_patch14_224"}}}, "vit_giant.*missing: "),
        ({"isaseg": None}, "expected a description of the network beside its weights, got none"),
        ({"state_dict": None}, "expected nothing but tensors|expected the weights"),
    ],
)
def test_a_hostile_description_is_refused_before_anything_is_built(
    changes: dict[str, Any], match: str, model: Model, tmp_path: Path
) -> None:
    """(More of them: tests/models/test_description.py.)"""
    path = save_ours(model, tmp_path / "a.ckpt", **changes)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    assert "a.ckpt" in str(caught.value)
    with pytest.raises(CheckpointError, match="a.ckpt"):
        load_model(path, group_size=(2, 2), align_corners=True)


def header(text: str | bytes, claimed: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return (len(raw) if claimed is None else claimed).to_bytes(8, "little") + raw


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        header("{", claimed=2**63),
        header("{}", claimed=10**9),
        header("{" * 100_000),
        header('{"w":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}') + b"1234",
        header('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000]}}') + b"1234",
        header('{"w":{"dtype":"pickle","shape":[1],"data_offsets":[0,4]}}') + b"1234",
        header('{"__metadata__":{"isaseg":5}}'),
        header(json.dumps({"__metadata__": {"isaseg": "not json"}})),
        header(json.dumps({"__metadata__": {"isaseg": "[" * 100_000}})),
        header(json.dumps({"__metadata__": {"isaseg": "{}"}})),
        header(json.dumps({"__metadata__": {"isaseg": "5"}})),
        header("{}"),
    ],
)
def test_a_hostile_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors'"):
        load_model(path)


def test_a_spoiled_safetensors_file_of_ours_is_refused(model: Model, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.safetensors", tmp_path / "model.safetensors"
    save_safetensors(model.segmenter, model.description, whole)
    for size in (5, 100, 10_000, whole.stat().st_size - 1):
        path.write_bytes(whole.read_bytes()[:size])
        with pytest.raises(CheckpointError, match="expected a whole safetensors file"):
            load_model(path)
    save_file(load_file(whole), path)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors'.*description of the network beside its weights"
    ):
        load_model(path)


@pytest.mark.parametrize("kept", [0, 0.5, 0.99, 1])
def test_a_damaged_network_is_refused(kept: float, model: Model, tmp_path: Path) -> None:
    path = save_ours(model, tmp_path / "a.ckpt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"whole checkpoint .* got '.*a.ckpt'"):
        load_model(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "none.ckpt")


def test_c7_only_one_file_loads_or_saves() -> None:
    source = Path(__file__).parents[2] / "src"
    risky = (
        "torch.load(",
        "torch.save(",
        "import pickle",
        "pickle.load",
        "cloudpickle",
        "joblib",
        "yaml.load(",
        "allow_pickle=True",
        "torch.jit.load(",
    )
    found = {r: {p.name for p in source.rglob("*.py") if r in p.read_text()} for r in risky}
    assert {r: names for r, names in found.items() if names} == {
        "torch.load(": {"tensor_files.py"},
        "torch.save(": {"writing.py"},
    }
