"""Exported networks give PyTorch's logits; `isaseg export` as a user calls it."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from isaseg.checkpoints.loading import Model, load_model
from isaseg.cli import export as cli
from isaseg.errors import CheckpointError, ConfigError
from isaseg.inference import export
from isaseg.models import context_modules
from isaseg.models.segmenter import Segmenter, build_described
from isaseg.models.tensor_files import save_safetensors
from tests import forked
from tests.inference.tiny import files
from tests.reliability.small import STRESS

ROOT = Path(__file__).parents[2]
COMMAND = cli.main
CLASSES = ["road", "sky", "café"]
PALETTE = [[0, 0, 0], [10, 20, 30], [255, 255, 255]]

# (batch, height, width); on the map of stride 4, multiples of both, one and none of the sides of the group (5, 3). Four
# further sizes are compared before a graph is written, also that which is recorded.
SIZES = [(2, 80, 96), (1, 80, 67), (1, 67, 96), (2, 33, 161)]


def make(attention: str = "NoContext", align_corners: bool = False, **backbone: Any) -> Model:
    """Return a tiny network whose norms and auxiliary head are there to be forgotten."""
    torch.manual_seed(0)
    arguments = {"group_size": [5, 3]} if attention.startswith("Inter") else {}
    head = {"channels": 16, "dropout": 0.1, "aux_channels": 4, "align_corners": align_corners}
    description = {
        "backbone": {"name": "test_resnet", "out_indices": [0, 1], **backbone},
        "attention": {"name": attention, **arguments},
        "head": head,
        "num_classes": 3,
        "negative_slope": 0.01,
        "data": None,
        "protocol": "none",
        "classes": CLASSES,
        "palette": PALETTE,
    }
    segmenter = build_described(description)
    for norm in segmenter.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.0)
            nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.uniform_(cast(Tensor, norm.running_var), 0.5, 1.5)
    return Model(segmenter.eval(), "isaseg", description)


def image(batch: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@torch.no_grad()
def difference(run: onnxruntime.InferenceSession, model: Model, shape: tuple[int, int, int]) -> float:
    x = image(*shape)
    (found,), wanted = run.run(None, {"image": x.numpy()}), model.segmenter(x)
    assert found.shape == (shape[0], 3, *shape[1:]) and found.dtype == np.float32
    return float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max())


# ---------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """Give a network without context that pads its image and aligns corners, and its ONNX file."""
    model = make(align_corners=True, input_multiple=8, bgr=True)
    path = tmp_path_factory.mktemp("onnx") / "aligned.onnx"
    assert export.export_onnx(model, path) <= 1e-5
    return model, path


# to record a graph takes seconds
@pytest.mark.parametrize("attention", context_modules() if STRESS else ["InterlacedSparseAttention"])
def test_onnx_serves_every_size_with_every_context_module(attention: str, tmp_path: Path) -> None:
    model = make(attention)
    assert export.export_onnx(model, tmp_path / "network.onnx") <= 1e-5
    run = session(tmp_path / "network.onnx")
    assert {shape: d for shape in SIZES if (d := difference(run, model, shape)) > 1e-5} == {}


def test_onnx_aligns_corners_and_pads_the_image(aligned: tuple[Model, Path]) -> None:
    run = session(aligned[1])
    for shape in ((1, 64, 72), (2, 97, 131), (1, 200, 65)):
        assert difference(run, aligned[0], shape) <= 1e-5, shape


def test_onnx_tells_what_it_takes_and_gives(aligned: tuple[Model, Path]) -> None:
    run = session(aligned[1])
    (given,), (got,) = run.get_inputs(), run.get_outputs()
    assert (given.name, given.type, given.shape) == (
        "image",
        "tensor(uint8)",
        ["batch", 3, "height", "width"],
    )
    assert (got.name, got.type, got.shape[:2]) == ("logits", "tensor(float)", ["batch", 3])
    facts = run.get_modelmeta().custom_metadata_map
    assert json.loads(facts["isaseg"]) == aligned[0].description
    assert "uint8 RGB" in facts["input"] and "float32" in facts["output"]


def test_onnx_is_one_file_that_names_no_folder(aligned: tuple[Model, Path]) -> None:
    assert [p.name for p in aligned[1].parent.iterdir()] == ["aligned.onnx"]
    content = aligned[1].read_bytes()
    assert str(ROOT).encode() not in content and b"site-packages" not in content
    names = {tensor.name for tensor in onnx.load(aligned[1]).graph.initializer}
    assert names and not any("aux_head" in name for name in names)


# ---------------------------------------------------------------- the comparison


@pytest.fixture
def recorded(aligned: tuple[Model, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph of `aligned` for that of any network: to record one takes seconds."""
    monkeypatch.setattr(export, "_onnx_content", lambda *_: aligned[1].read_bytes())


@pytest.mark.usefixtures("recorded")
def test_a_graph_that_differs_is_not_written(tmp_path: Path) -> None:
    model = make(align_corners=False, input_multiple=8, bgr=True)  # the same weights
    target = tmp_path / "a.onnx"
    target.write_bytes(b"an older one")
    with pytest.raises(ConfigError, match="expected PyTorch's logits within .*no model.onnx is written"):
        export.export_onnx(model, target)
    assert target.read_bytes() == b"an older one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


@pytest.mark.parametrize("change", [lambda y: y * 1.0001, lambda y: y * float("nan"), lambda y: y[:, :2]])
@torch.no_grad()
def test_logits_that_differ_are_found(change: Callable[[Tensor], Tensor]) -> None:
    segmenter = make().segmenter
    with pytest.raises(ConfigError, match="expected .*logits"):
        export._difference(lambda x: change(segmenter(x)), segmenter)


@torch.no_grad()
def test_a_difference_in_one_size_is_not_forgotten_over_the_next() -> None:
    segmenter = make().segmenter
    worst = export._difference(lambda x: segmenter(x) * (1.000005 if len(x) == 2 else 1), segmenter)
    assert 4e-6 < worst < 6e-6


class Rounding(nn.Module):
    """A network that loses most of its digits: in float32 but not in float64."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(self.weight.dtype) * 1.000014
        return (y + 1e5) - 1e5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


def test_what_rounding_explains_is_no_difference() -> None:
    segmenter = cast(Segmenter, Rounding())
    worst = export._difference(lambda x: x * 1.000014, segmenter)
    assert worst > export.TOLERANCE
    with pytest.raises(ConfigError, match="expected PyTorch's logits within"):
        export._difference(lambda x: x * 1.001, segmenter)


@pytest.mark.usefixtures("recorded")
def test_a_network_of_broken_weights_is_refused(tmp_path: Path) -> None:
    model = make()
    cast(Tensor, model.segmenter.head.classifier.weight).data.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="expected a network of finite logits"):
        export.export_onnx(model, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the command


def test_the_command_writes_every_format(tmp_path: Path) -> None:
    model = make()
    save_safetensors(model.segmenter, model.description, tmp_path / "net.safetensors")
    done = forked.run(
        "export.py", "checkpoint=net.safetensors", "output=out", "align_corners=true", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    compared, *listed = (done.stdout + done.stderr).splitlines()
    names = ["model.safetensors", "config.json", "README.md", "model.onnx"]
    assert [line.split("  ")[0] for line in listed] == [f"out/{name}" for name in names]
    assert compared.startswith("largest relative difference from PyTorch ")
    assert files(tmp_path / "out") == set(names)
    aligned = load_model(tmp_path / "out")
    assert aligned.segmenter.align_corners and aligned.segmenter.aux_head is not None
    assert difference(session(tmp_path / "out" / "model.onnx"), aligned, (1, 40, 56)) <= 1e-5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["formats=[onxx]"],
            r"expected formats to be a list of safetensors and onnx, got formats=\['onxx'\]",
        ),
        (["formats=[]"], r"a list of safetensors and onnx, got formats=\[\]"),
        (
            ["group_size=8"],
            r"group_size to be \[P_h, P_w\], two positive integers, or null, got group_size=8",
        ),
        (["group_size=[8,0]"], r"got group_size=\[8, 0\]"),
        (["align_corners=yes_please"], "expected align_corners to be true or false or null"),
        (["formatz=[onnx]"], "did you mean 'formats'"),
        (["--fast"], "expected KEY=VALUE, got '--fast'"),
        ([], "expected a checkpoint file, got .*nowhere.ckpt"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    words: list[str], message: str, refused: Callable[..., str]
) -> None:
    line = refused("checkpoint=nowhere.ckpt", "output=out", *words)
    assert re.search(message, line), line
    assert not Path("out").exists()


def test_an_output_that_cannot_be_used_is_reported(refused: Callable[..., str]) -> None:
    for key, other in (("checkpoint", "output"), ("output", "checkpoint")):
        assert f"expected a value for {key}, got none" in refused(f"{other}=a")
    save_safetensors(make().segmenter, make().description, Path("net.safetensors"))
    words = ("checkpoint=net.safetensors", "formats=[safetensors]")
    Path("shared").mkdir()
    Path("shared/model.onnx").touch()
    assert cli.main([*words, "output=shared"]) == 0
    assert not Path("shared/model.onnx").exists(), "it would be of other weights"
    assert "expected another folder" in refused("checkpoint=net.safetensors", "output=.")
    Path("out").write_bytes(b"")
    line = refused(*words, "output=out")
    assert "got 'out': File exists" in line


def test_the_run_of_a_checkpoint_is_found_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/facts.json").write_text('{"seed": 3}')
    monkeypatch.chdir(tmp_path / "run/checkpoints")
    assert export._run_of(Path("best.ckpt"))["facts"]["seed"] == 3


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_its_packages_is_reported_at_once(
    package: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ("checkpoint=nowhere.ckpt", "output=out")
    line = refused(*words)
    assert "pip install 'isaseg[onnx]'" in line and package in line
    assert "isaseg[onnx]" not in refused(*words, "formats=[safetensors]")


def test_a_network_that_cannot_be_traced_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("pages of advice") from ValueError("depends on the pixels")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ConfigError, match=r"as ONNX: ValueError: depends on the pixels; set formats="):
        export.export_onnx(make(), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
