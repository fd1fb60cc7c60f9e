"""Networks that are shared: a folder, or a repository of the hub, gives the same network, and nothing hostile runs."""

import copy
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from isaseg import config
from isaseg.checkpoints.loading import load_model, load_segmenter
from isaseg.checkpoints.parts import copy_parts
from isaseg.errors import CheckpointError
from isaseg.models.segmenter import Segmenter, build_described, build_segmenter
from isaseg.trust import VARIABLE
from tests.fake_hub import Hub, serving
from tests.models.test_description import DESCRIPTION
from tests.reliability.small import STRESS

IMAGE = torch.randint(0, 256, (1, 3, 33, 41), dtype=torch.uint8)
LOADERS = [Segmenter.from_pretrained, load_segmenter]


def make(seed: int = 0, description: dict[str, Any] = DESCRIPTION) -> Segmenter:
    torch.manual_seed(seed)
    return build_described(copy.deepcopy(description)).eval()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a hub; the current folder is another one."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    with serving(tmp_path / "cache", monkeypatch) as hub:
        yield hub


@torch.no_grad()
def same(loaded: Segmenter, segmenter: Segmenter) -> bool:
    assert not loaded.training and loaded.description == segmenter.description
    return torch.equal(loaded(IMAGE), segmenter(IMAGE))


def test_a_name_of_the_hub_gives_the_network_that_was_pushed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(0), make(1)
    address = first.push_to_hub("me/net")
    commit = address.rpartition("/")[2]
    assert hub.repos["me/net"]["main"].keys() == {"model.safetensors", "config.json", "README.md"}
    second.push_to_hub("me/net")
    for load in LOADERS:
        assert same(load("me/net"), second)
        assert same(load("me/net", revision=commit), first)
        assert same(load(f"me/net@{commit}"), first)
    assert load_segmenter("me/net", align_corners=True).align_corners
    assert not [asked for asked in hub.asked if "README" in asked]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(Segmenter.from_pretrained("me/net"), second)


def test_the_documented_lines_run(hub: Hub) -> None:
    """Those of docs/checkpoints.md, with a shared folder in the place of a published file."""
    make().save_pretrained("published")
    make().push_to_hub("USER/NAME")
    hub.repos["USER/NAME"]["v1.0"] = hub.repos["USER/NAME"]["main"]
    text = (Path(__file__).parents[2] / "docs/checkpoints.md").read_text()
    found: dict[str, Any] = {"image": IMAGE}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block.replace("isanet.pth", "published"), "checkpoints.md", "exec"), found)
    torch.testing.assert_close(found["fast"](IMAGE), found["segmenter"](IMAGE), rtol=1e-3, atol=1e-4)
    assert Path("shared/model.safetensors").is_file()


def test_a_folder_gives_the_same_network_and_wins_over_the_hub(hub: Hub) -> None:
    here, there = make(0), make(1)
    there.push_to_hub("me/net")
    hub.asked.clear()
    here.save_pretrained("me/net")
    assert {p.name for p in Path("me/net").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert json.loads(Path("me/net/config.json").read_text()) == here.description
    for load in LOADERS:
        assert same(load("me/net"), here) and same(load(Path("me/net")), here)
    assert same(load_segmenter("me/net/model.safetensors"), here)
    Path("me/net/config.json").unlink()
    assert same(Segmenter.from_pretrained("me/net"), here)
    assert hub.asked == []
    for load in LOADERS:
        with pytest.raises(
            CheckpointError, match="name of the hub, USER/NAME, with revision='v1', got path="
        ):
            load("me/net", revision="v1")


def test_what_looks_like_a_path_is_not_asked_of_the_hub(hub: Hub) -> None:
    Path("outputs").mkdir()
    for name in ("outputs/best", "runs/best.ckpt", "net", "a/b/c", "/a/b", "../net", "a/b?c"):
        with pytest.raises(CheckpointError, match="does not exist|expected a folder, or USER/NAME"):
            load_segmenter(name)
        with pytest.raises(CheckpointError, match="expected a folder, or USER/NAME on the hub, got '"):
            Segmenter.from_pretrained(name)
    assert hub.asked == []


def test_what_the_hub_does_not_give_is_one_sentence(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("me/pickled", {"pytorch_model.bin": b"cos\nsystem\n", "config.json": b"{}"})
    hub.commit("me/net", {})
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    cases = {"me/none": "RepositoryNotFoundError", "me/net@v1": "RevisionNotFoundError"}
    cases |= {"me/pickled": "without model.safetensors"}
    for name, why in cases.items():
        with pytest.raises(CheckpointError, match=why):
            Segmenter.from_pretrained(name)
    assert not [asked for asked in hub.asked if "pytorch_model" in asked]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for load in LOADERS:
        with pytest.raises(
            CheckpointError, match="got 'me/new': .*127.0.0.1:9 does not.*HF_HOME.*HF_ENDPOINT"
        ):
            load("me/new")


def test_a_run_begins_with_a_network_of_the_hub(hub: Hub, compose: Callable[..., DictConfig]) -> None:
    make(1).push_to_hub("me/net")
    cfg = config.initialised(compose("init_from=me/net"), [])
    assert cfg.backbone.name == "test_resnet" and cfg.head.channels == 8 and len(cfg.init_sha256) == 64
    network = make(0)
    copy_parts(network, config.initial_file(cfg), cfg.init_parts, DESCRIPTION["classes"])
    assert same(network, make(1))


# ---------------------------------------------------------------- what is refused


def test_only_what_loads_again_is_shared(tmp_path: Path) -> None:
    segmenter = make()
    segmenter.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = make(description={**DESCRIPTION, "num_classes": 3, "classes": None, "palette": None})
    other.description = DESCRIPTION
    built = build_segmenter(segmenter.backbone, 5, lambda channels: torch.nn.Identity(), channels=8)
    for network, why in (
        (segmenter.fuse(), "got a fused one or one that was built otherwise"),
        (built, "got a fused one or one that was built otherwise"),
        (other, "got other tensors: mismatched"),
    ):
        with pytest.raises(CheckpointError, match=why):
            network.save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=why):
            network.save_pretrained(tmp_path / "new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "README.md").write_text("# My thesis\n")
    with pytest.raises(
        CheckpointError, match="whose README.md is not an isaseg model card; name another folder"
    ):
        segmenter.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").exists()


def test_a_network_survives_copies_and_torch_save(tmp_path: Path) -> None:
    segmenter, file = make(), io.BytesIO()
    torch.save(segmenter, file)
    torch.save(segmenter.state_dict(), tmp_path / "state.pt")
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    for again in (whole, copy.deepcopy(segmenter)):
        assert same(again, segmenter)
        again.save_pretrained(tmp_path / "again")
        assert same(Segmenter.from_pretrained(tmp_path / "again"), segmenter)
    other = make(1)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(other, segmenter)


HOSTILE: dict[str, Any] = {
    "os.system": {"attention": {"name": "os.system"}},
    "a class of ours that is none": {"attention": {"_target_": "isaseg.models.fuse.FusedBlock"}},
    "a class of a library": {"backbone": {"_target_": "torch.hub.load", "model": "x"}},
    "a package without trust": {"attention": {"_target_": "ownlab.Gate"}},
    "code": {"auto_map": {"AutoModel": "net.Net"}},
    "a wish": {"trust_remote_code": True},
    "weights to fetch": {"backbone": {**DESCRIPTION["backbone"], "pretrained": True}},
    "a file to read": {"backbone": {**DESCRIPTION["backbone"], "weights": "/etc/passwd"}},
    "many classes": {"num_classes": 10**9},
    "a large number": {"head": {**DESCRIPTION["head"], "channels": 10**9}},
    "a network of other sizes": {"head": {**DESCRIPTION["head"], "channels": 4096}},
    "a nest": {"attention": {**DESCRIPTION["attention"], "group_size": [[[[[[[[2, 2]]]]]]]]}},
}


# test_description.py refuses the others
@pytest.mark.parametrize("agreed", [True, False])
@pytest.mark.parametrize("case", HOSTILE if STRESS else ["a class of a library", "a network of other sizes"])
def test_a_hostile_description_is_refused(
    case: str, agreed: bool, ownlab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both where the weights are said to have the same description and where they have none."""
    monkeypatch.delenv(VARIABLE)
    described = json.dumps({**DESCRIPTION, **HOSTILE[case]})
    Path("net").mkdir()
    save_file(make().state_dict(), "net/model.safetensors", {"isaseg": described} if agreed else None)
    Path("net/config.json").write_text(described)
    before = set(ownlab.rglob("*"))
    for load in (*LOADERS, load_model):
        with pytest.raises(
            CheckpointError, match=r"^cannot load 'net': ((attention|backbone)._target_: )?expected "
        ):
            load("net")
    assert set(ownlab.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"[" * 100_000, "RecursionError"),
        (b"{", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
        (b" " * (2**23 + 1), "more than 8388608 bytes"),
        (b'{"num_classes": ' + b"9" * 5000 + b"}", "ValueError"),
        (b"[]", "another description"),
        (json.dumps({**DESCRIPTION, "attention": {"name": "NoContext"}}).encode(), "another description"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(text: bytes, why: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    for load in LOADERS:
        for path in (tmp_path, tmp_path / "model.safetensors") if load is load_segmenter else (tmp_path,):
            with pytest.raises(CheckpointError, match=f"config.json'.*{why}"):
                load(path)


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def _without(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: _without("head.classifier.bias", s), "missing: head.classifier.bias"),
        (lambda s: {**s, "extra": torch.ones(1)}, "unexpected: extra"),
        (lambda s: {**s, "head.classifier.bias": torch.ones(4)}, r"head.classifier.bias \(4,\) -> \(5,\)"),
        (lambda s: {**s, "head.classifier.bias": torch.ones(5).int()}, "torch.int32 -> torch.float32"),
        (lambda s: pickle.dumps(Bomb()), "expected a whole safetensors file"),
        (lambda s: (10**9).to_bytes(8, "little") + b"{}", "expected a whole safetensors file"),
        (lambda s: b"", "expected a whole safetensors file"),
        (lambda s: None, "without model.safetensors"),
    ],
)
def test_weights_that_do_not_belong_are_refused(
    change: Callable[..., Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make().save_pretrained("net")
    content, file = change(make().state_dict()), Path("net/model.safetensors")
    file.unlink()
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save_file(content, file)
    for load in LOADERS:
        with pytest.raises(CheckpointError, match=why):
            load("net")
    assert not Path("ran").exists()


def test_nan_is_no_reason_to_refuse_weights(tmp_path: Path) -> None:
    segmenter = make()
    segmenter.head.classifier.bias.data.fill_(float("nan"))
    segmenter.save_pretrained(tmp_path)
    assert Segmenter.from_pretrained(tmp_path).head.classifier.bias.isnan().all()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    net, blobs = tmp_path / "snapshots" / "net", tmp_path / "blobs"
    make().save_pretrained(net)
    (tmp_path / "outside").mkdir()
    (net / name).rename(tmp_path / "outside" / name)
    for target in (Path("../../outside") / name, tmp_path / "outside" / name):
        (net / name).symlink_to(target)
        for load in LOADERS:
            with pytest.raises(CheckpointError, match=f"expected {name} in '.*' itself, got a link to"):
                load(net)
        (net / name).unlink()
    blobs.symlink_to("outside")  # as in the hub's cache, but for this
    (net / name).symlink_to(Path("../../blobs") / name)
    with pytest.raises(CheckpointError, match="got a link to"):
        load_segmenter(net)
    (net / name).unlink()
    (net / name).symlink_to(name)  # a circle
    if name == "model.safetensors":
        with pytest.raises(CheckpointError, match="without model.safetensors"):
            load_segmenter(net)


def test_parts_of_a_users_own_need_trust_and_the_card_says_so(
    ownlab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {**DESCRIPTION, "attention": {"_target_": "ownlab.Gate", "gain": 2.0}}
    segmenter = make(description=own)
    segmenter.save_pretrained("net")
    assert "`ISASEG_TRUST=ownlab` if you trust it" in Path("net/README.md").read_text()
    assert same(Segmenter.from_pretrained("net"), segmenter)
    monkeypatch.delenv(VARIABLE)
    for load in LOADERS:
        with pytest.raises(
            CheckpointError, match=r"^cannot load 'net': attention._target_: .*trust=\[ownlab\]"
        ):
            load("net")
    with pytest.raises(CheckpointError, match=r"trust=\[ownlab\]"):
        segmenter.save_pretrained("new")
    assert not Path("new").exists()


# ---------------------------------------------------------------- the card


def test_a_card_says_what_is_known_and_what_is_not(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: isaseg\npipeline_tag: image-segmentation\n")
    assert "Unknown: images, steps, seed, command, commit of isaseg, versions, started." in card
    assert "## Scores\n\nUnknown.\n" in card and "%" not in card
    evil = ["a`|b", "# c\n\n## d", "<script>", "{e}", "[x](javascript:y)"]
    segmenter = make(description={**DESCRIPTION, "classes": evil, "data": None})
    segmenter.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for name in ("`a b`", "`# c ## d`", "`<script>`", "`{e}`", "`[x](javascript:y)`"):
        assert f". {name}\n" in card
    assert "on an unknown data set" in card
