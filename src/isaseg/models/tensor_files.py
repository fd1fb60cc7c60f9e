"""Files of tensors, which may come from a stranger, read so that they cannot run code; and safetensors written.

The only file of the project that calls `torch.load`.
"""

import json
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from isaseg.errors import CheckpointError
from isaseg.files import replace_file

WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"  # in the folder of a network that is shared
_LARGEST = 2**23  # bytes of a config.json: 4096 classes of long names have half of it


def load_checkpoint(path: Path, *, is_checked: bool = False, mapped: bool = False) -> dict[str, Any]:
    """Read tensors, numbers, strings, lists and dicts from a file. Nothing in it is executed.

    Args:
        is_checked: Skip the checksums, which were verified a moment ago.
        mapped: Leave tensors in the file: only what is looked at is read. Not for a file that may change meanwhile.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint file, got path='{path}', which does not exist; check the path"
        )
    try:
        if not is_checked and (damage := _damage(path)):
            raise CheckpointError(
                f"expected a whole checkpoint as torch.save writes it, got '{path}': {damage}; copy or download it again"
            )
        checkpoint = _mapped(path) if mapped else None
        if checkpoint is None:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"expected a whole checkpoint that holds only plain data, got '{path}': {reason(error)}; "
            "use another file, or export its state dict with torch.save where it was made"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f"expected a dict in '{path}', got {type(checkpoint).__name__}; use another file"
        )
    return checkpoint


def _mapped(path: Path) -> Any:
    """Return what a file holds, with the tensors left in it; None if torch cannot, as with its files of before 1.6."""
    with suppress(RuntimeError, OSError):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return None


def _damage(path: Path) -> str:
    """Return what is wrong with a file of `torch.save`, where torch's own message says little or nothing."""
    with path.open("rb") as file:
        begin = file.read(4)
    if not begin.startswith((b"PK", b"\x80")):  # a zip, or of torch before 1.6 a pickle
        return "it does not begin like one" if begin else "it is empty"
    if not zipfile.is_zipfile(path):  # the list of a zip is at its end
        return "its end is missing" if begin.startswith(b"PK") else ""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            return "it claims more bytes than it has, and torch never compresses"
        damaged = archive.testzip()
    return f"the checksum of {damaged} in it is wrong" if damaged is not None else ""


def load_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint, a safetensors file, or a folder with `model.safetensors` and `config.json` from there.

    Returns:
        What the checkpoint holds; of the others {"state_dict": tensors, "isaseg": the description if there is one}.

    Raises:
        CheckpointError: As `load_checkpoint` and `weights_of`, or if the two files describe different networks.
    """
    if path.is_dir():
        return _load_folder(path)
    if path.name == WEIGHTS and path.with_name(DESCRIPTION).is_file():
        return _load_folder(path.parent)
    return _load_safetensors(path) if _is_safetensors(path) else load_checkpoint(path)


def weights_of(folder: Path) -> Path:
    """Return the file `model.safetensors` of the folder of a shared network.

    Raises:
        CheckpointError: If there is none, or it is a link that leaves the folder.
    """
    file = _inside(folder, WEIGHTS)
    if file is None:
        raise CheckpointError(
            f"expected a file of a network, or a folder with {WEIGHTS} and {DESCRIPTION} as `isaseg export` writes them, "
            f"got '{folder}' without {WEIGHTS}; name the file itself; in a run folder, checkpoints/best.ckpt"
        )
    return file


def save_safetensors(network: nn.Module, description: Mapping[str, Any] | None, path: Path) -> None:
    """Write weights and description to a safetensors file, which `load_file` reads and which cannot hold code.

    Raises:
        OSError: If it cannot be written; an older file is left untouched.
    """
    weights = {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}
    with replace_file(path) as file:
        file.write(to_safetensors(weights, {"isaseg": json.dumps(description)}))


def save_folder(network: nn.Module, description: Mapping[str, Any] | None, folder: Path) -> None:
    """Write what `load_file` reads from a folder; each file is the old one or the new one, whole."""
    save_safetensors(network, description, folder / WEIGHTS)
    with replace_file(folder / DESCRIPTION) as file:
        file.write(json.dumps(description, indent=2).encode())


def _load_folder(folder: Path) -> dict[str, Any]:
    content = _load_safetensors(weights_of(folder))
    path = _inside(folder, DESCRIPTION)
    if path is None:
        return content
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        described = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"expected the description of a network in '{path}', got {reason(error)}; use another folder"
        ) from error
    if content.setdefault("isaseg", described) != described:
        raise CheckpointError(
            f"expected '{path}' to say what {WEIGHTS} beside it says of the network, got another description; "
            f"use the unchanged folder"
        )
    return content


def _inside(folder: Path, name: str) -> Path | None:
    """Return a file of a folder, None if there is none. It may be a link only as in the hub's cache, to ../../blobs."""
    path = folder / name
    if not path.is_file():
        return None
    here, there = folder.resolve(), path.resolve()
    if there.parent not in (here, here.parent.parent / "blobs"):
        raise CheckpointError(
            f"expected {name} in '{folder}' itself, got a link to '{there}'; put the file there, or name that file"
        )
    return path


def _is_safetensors(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:  # a length of eight bytes, then JSON
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _load_safetensors(path: Path) -> dict[str, Any]:
    """Return the tensors as `state_dict` and, if there is one, the description as `isaseg`."""
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
            text = (file.metadata() or {}).get("isaseg")
        described = {} if text is None else {"isaseg": json.loads(text)}
        return {"state_dict": weights, **described}
    except Exception as error:
        raise CheckpointError(
            f"expected a whole safetensors file, got '{path}': {reason(error)}; use another file"
        ) from error


def reason(error: BaseException) -> str:
    """Return the kind of an error and the first sentence of its text."""
    if "Weights only load failed" in str(error):  # the rest of torch's text tells how to run the file's code
        return "it holds more than tensors and plain values, and loading the rest might run code"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {shorten(first.partition('. ')[0].rstrip('.'), 300)}"
