"""Networks with parts of a user's own package: built again where it is trusted, and by nothing else."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from isaseg.checkpoints.loading import load_model
from isaseg.errors import CheckpointError
from isaseg.models.segmenter import build_described, check_described
from isaseg.models.tensor_files import save_safetensors
from isaseg.trust import VARIABLE
from tests.models.test_description import DESCRIPTION, NESTED

OWN: dict[str, Any] = {
    **DESCRIPTION,
    "backbone": {"_target_": "ownlab.Net", "width": 5},
    "attention": {"_target_": "ownlab.Gate", "gain": 2.0, "name": "mine", "sizes": [2, 3]},
}


@torch.no_grad()
def test_own_parts_are_built_again_from_a_file(ownlab: Path) -> None:
    segmenter = build_described(OWN).eval()
    check_described(OWN, segmenter)
    assert segmenter.head.attention.gain == 2 and segmenter.backbone.channels == [3, 5]
    save_safetensors(segmenter, OWN, ownlab / "a.safetensors")
    loaded = load_model(ownlab / "a.safetensors")
    assert loaded.description == OWN
    x = torch.randint(0, 256, (1, 3, 33, 41), dtype=torch.uint8)
    assert torch.equal(loaded.segmenter(x), segmenter(x))
    assert torch.allclose(segmenter.fuse()(x), segmenter(x), atol=1e-5)
    with pytest.raises(
        CheckpointError, match="only gain, name, sizes in attention, got attention.group_size"
    ):
        load_model(ownlab / "a.safetensors", group_size=(2, 2))
    twice = build_described(OWN).eval()
    twice.backbone.other = torch.nn.Sequential(twice.backbone.conv, torch.nn.BatchNorm2d(5).eval())
    twice.backbone.other[1].running_mean.fill_(1)
    assert torch.allclose(twice.fuse()(x), twice(x), atol=1e-5), (
        "what is inside a part of the user's is left as it is"
    )
    two = {**OWN, "attention": {"_target_": "ownlab.Open", "size": 2}}
    with pytest.raises(CheckpointError, match=r"weight \(3,\) -> \(2,\)"):
        check_described(two, build_described({**two, "attention": {"_target_": "ownlab.Open", "size": 3}}))


@pytest.mark.parametrize("trusted", [None, "", "otherlab", "own", "ownlab.other", "os,torch,subprocess"])
def test_a_stranger_s_description_imports_nothing_without_trust(
    trusted: str | None, ownlab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = build_described(OWN)
    save_safetensors(segmenter, OWN, ownlab / "a.safetensors")
    del sys.modules["ownlab"]
    (ownlab / "ran").unlink()
    if trusted is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, trusted)
    for part in ("backbone", "attention"):
        with pytest.raises(
            CheckpointError, match=rf"{part}._target_: .*trust=\[ownlab\].*ISASEG_TRUST=ownlab"
        ):
            build_described({**DESCRIPTION, part: OWN[part]})
    with pytest.raises(CheckpointError, match=r"cannot load '.*a.safetensors': backbone._target_: .*ownlab"):
        load_model(ownlab / "a.safetensors")
    assert "ownlab" not in sys.modules and not (ownlab / "ran").exists()


def test_a_package_that_is_absent_is_named(ownlab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="trusted package otherlab to have 'otherlab.Gate'.*install it"):
        build_described({**OWN, "attention": {"_target_": "otherlab.Gate"}})


@pytest.mark.parametrize("part", ["backbone", "attention"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"_target_": "ownlab.Plain"}, "a torch.nn.Module that is defined"),
        ({"_target_": "ownlab.function"}, "a torch.nn.Module that is defined"),
        ({"_target_": "ownlab.Popen", "args": ["touch", "built"]}, "a torch.nn.Module that is defined"),
        ({"_target_": "ownlab.nn.Identity"}, "No module named"),
        ({"_target_": "ownlab.math"}, "a torch.nn.Module that is defined"),
        ({"_target_": "ownlab.None"}, "AttributeError"),
        ({"_target_": "ownlab"}, "the dotted name of a class"),
        ({"_target_": "ownlab..Gate"}, "the dotted name of a class"),
        ({"_target_": "ownlab.Gate" + ".x" * 20}, "the dotted name of a class"),
        ({"_target_": ["ownlab.Gate"]}, "the dotted name of a class"),
        ({"_target_": "isaseg.models.fuse.FusedBlock"}, "derive a class of a package of your own"),
        ({"_target_": "ownlab.Gate", "strange": 1}, "got [a-z]+.strange=1"),
        ({"_target_": "ownlab.Gate", "_partial_": True}, "got [a-z]+._partial_=True"),
        ({"_target_": "ownlab.Open", "size": {"_target_": "ownlab.Plain"}}, "a flag, a short string"),
        ({"_target_": "ownlab.Open", "size": [{"_target_": "ownlab.Plain"}]}, "a flag, a short string"),
        ({"_target_": "ownlab.Open", "size": 5000}, "at most 4096"),
        ({"_target_": "ownlab.Open", "size": "x" * 101}, "a short string"),
        ({"_target_": "ownlab.Open", "size": NESTED}, "got [a-z]+.size"),
        ({"_target_": "ownlab.Open", "size": torch.ones(2)}, "got [a-z]+.size"),
        ({"_target_": "ownlab.Open"}, "cannot: "),
    ],
)
def test_trust_builds_modules_of_plain_arguments_alone(
    part: str, change: dict[str, Any], match: str, ownlab: Path
) -> None:
    if part == "backbone" and change["_target_"] in ("ownlab.Gate", "ownlab.Open"):
        change = {**change, "channels": 4}
    description = {**copy.deepcopy(OWN), part: change}
    with pytest.raises(CheckpointError, match=match):
        build_described(description)
    assert not (ownlab / "built").exists()
