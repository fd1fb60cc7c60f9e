"""C7: checkpoints of strangers. None runs, none is written elsewhere, each is refused in one sentence.

Hostile configurations are in `test_configurations.py`, hostile archives in `tests/data/tools/test_unpack.py`.
"""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from isaseg.checkpoints.loading import copy_weights, load_model
from isaseg.errors import CheckpointError, ConfigError
from isaseg.models.backbone import Backbone
from isaseg.models.tensor_files import load_checkpoint
from isaseg.training.resume import find_resume
from isaseg.training.run import train
from tests import forked
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, STRESS

RAN = "touch ran"  # in the folder where the test runs


class Calls:
    """Is pickled as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def written(write: Callable[..., object], content: Any) -> bytes:
    """Return the bytes that `write(file, content)` writes."""
    file = io.BytesIO()
    write(file, content)
    return file.getvalue()


def saved(content: Any, **kwargs: Any) -> bytes:
    return written(lambda file, content: torch.save(content, file, **kwargs), content)


def repacked(
    change: Callable[[str, bytes], bytes | None], more: dict[str, bytes], compress: bool = False
) -> bytes:
    """Return a saved state dict of which the members are changed, and more are there."""
    file = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(saved(STATE))) as old, zipfile.ZipFile(file, "w", how) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in more.items():
            new.writestr(name, content)
    return file.getvalue()


def in_tar(content: bytes) -> bytes:
    """Return the tar that torch wrote before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


STATE = {"state_dict": {"w": torch.zeros(64)}, "global_step": 1}
EVIL = Calls(os.system, RAN)
BY_NAME = pickle.dumps(EVIL, protocol=2)


def in_data(name: str, content: bytes, replace: Callable[[bytes], bytes]) -> bytes:
    return replace(content) if name.endswith("data.pkl") else content


def longer(content: bytes) -> bytes:
    """Claim a tensor of more elements than its storage has: 64 is `K@`, 20,000 `M N`."""
    assert content.count(b"K@") >= 2
    return content.replace(b"K@", b"M N")


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = dict(STATE)
    content["state_dict"] = content
    return content


CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "a command": lambda: BY_NAME,
    "a command saved by torch": lambda: saved({"state_dict": EVIL}),
    "a command in torch's old format": lambda: saved(
        {"state_dict": EVIL}, _use_new_zipfile_serialization=False
    ),
    "a command as a key": lambda: b"\x80\x02}cos\nsystem\nX\x09\x00\x00\x00touch ran\x85RK\x01s.",
    "a command in the optimizer": lambda: saved({**STATE, "optimizer_states": [EVIL]}),
    "a command after the end": lambda: saved(STATE, _use_new_zipfile_serialization=False) + BY_NAME,
    "a path": lambda: saved({**STATE, "path": Path("ran")}),
    "a whole network": lambda: saved(nn.Linear(2, 2)),
    "load, unsafely": lambda: saved(Calls(torch.load, "inner", "cpu", None, None, False)),
    "numpy's objects": lambda: written(np.save, np.array([EVIL], dtype=object)),
    "a dict with a state": lambda: (
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00xcos\nsystem\nsb."
    ),
    "a second data.pkl": lambda: repacked(lambda n, c: c, {"evil/data.pkl": BY_NAME, "data.pkl": BY_NAME}),
    "another data.pkl": lambda: repacked(lambda n, c: in_data(n, c, lambda _: BY_NAME), {}),
    "names that lead out": lambda: repacked(
        lambda n, c: in_data(n, c, lambda _: BY_NAME), {"../ran": b"x", "/tmp/ran": b"x"}
    ),
    "a bomb": lambda: repacked(lambda n, c: c, {"archive/data/9": bytes(10**8)}, compress=True),
    "more elements than it has": lambda: repacked(lambda n, c: in_data(n, c, longer), {}),
    "no storage": lambda: repacked(lambda n, c: None if "/data/" in n else c, {}),
    "a cut storage": lambda: repacked(lambda n, c: c[:8] if "/data/" in n else c, {}),
    "a script": lambda: written(
        lambda file, script: torch.jit.save(script, file), torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    ),
    "an old tar": lambda: in_tar(BY_NAME),
    "lists in lists": lambda: b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "a dict in itself": lambda: saved(cyclic()),
    "nothing": lambda: b"",
    "zeros": lambda: bytes(4096),
    "text": lambda: b"#!/bin/sh\ntouch ran\n",
    "compressed": lambda: gzip.compress(BY_NAME),
    "a list": lambda: saved([1, 2]),
    "a list of weights": lambda: saved({"state_dict": [torch.zeros(1)], "global_step": "1"}),
    "numbers for names": lambda: saved({"state_dict": {1: torch.zeros(1)}, "global_step": 1.5}),
    "a description that runs": lambda: saved(
        {**STATE, "isaseg": {"backbone": {"name": "resnet18", "weights": "inner"}, "_target_": "os.system"}}
    ),
}


TRAINED = ("a command", "no storage", "numbers for names")  # a whole run refuses these too, by `find_resume`


@pytest.fixture(scope="module")
def cfg() -> DictConfig:
    return compose_overrides(*SMALL, "trainer.max_steps=1", "resume=hostile.ckpt", "run_dir=run")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (kind, suffix)
        for kind in CHECKPOINTS
        for suffix in (".ckpt", ".safetensors")
        if suffix == ".ckpt" or STRESS
    ],
)
def test_c7_a_hostile_checkpoint_is_refused_and_runs_nothing(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cfg: DictConfig
) -> None:
    """Whatever it is called, by each function that takes the file of a stranger."""
    monkeypatch.chdir(tmp_path)
    Path("inner").write_bytes(BY_NAME)
    path = Path(f"hostile{suffix}")
    path.write_bytes(CHECKPOINTS[kind]())
    there = set(os.listdir())
    for refuse in (
        lambda: load_model(path),
        lambda: copy_weights(nn.Linear(1, 1), load_checkpoint(path), path),
        lambda: copy_weights(nn.Linear(1, 1), find_resume(Path("run"), str(path))[1], path),
    ):
        with pytest.raises(CheckpointError, match="hostile") as caught:
            refuse()
        assert len(str(caught.value)) < 2000
    with pytest.raises(ConfigError, match="hostile"):
        Backbone("test_resnet", weights=str(path))
    if suffix == ".ckpt" and (STRESS or kind in TRAINED):
        with pytest.raises(CheckpointError, match="hostile"):
            train(cfg)
    assert set(os.listdir()) == there


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder", "a loop", "a link to nothing"])
def test_c7_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A pipe would be waited for, and a device read, for ever."""
    path = tmp_path / "hostile.ckpt"
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a folder":
            path.mkdir()
        case "a loop":
            path.symlink_to(path)
        case _:
            path.symlink_to("/no/such/file")
    for refuse in (lambda: load_model(path), lambda: find_resume(tmp_path, str(path))):
        with pytest.raises(CheckpointError, match="hostile"):
            refuse()
    with pytest.raises(ConfigError, match="hostile"):
        Backbone("test_resnet", weights=str(path))


MORE_COMMANDS = [
    ("train.py", [*SMALL, "trainer.max_steps=1", "backbone.weights=evil.ckpt"]),
    ("predict.py", ["checkpoint=evil.ckpt", "input=a.png", "output=out"]),
    ("export.py", ["checkpoint=evil.ckpt", "output=out"]),
]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train.py", [*SMALL, "trainer.max_steps=1", "resume=evil.ckpt"]),
        ("evaluate.py", ["checkpoint=evil.ckpt", "output=out"]),
        *(MORE_COMMANDS if STRESS else []),
    ],
)
def test_c7_no_command_runs_a_checkpoint(script: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "evil.ckpt").write_bytes(saved({"state_dict": EVIL}))
    (tmp_path / "a.png").write_bytes(b"")
    done = forked.run(script, *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "evil.ckpt" in done.stderr
    assert "Traceback" not in done.stderr
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["a.png", "evil.ckpt"]
