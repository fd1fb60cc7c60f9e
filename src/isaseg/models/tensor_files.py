"""Reading files of tensors, which may come from a stranger, so that they cannot run code.

The only file of the project that calls `torch.load`.
"""

import json
import zipfile
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import safe_open

from isaseg.errors import CheckpointError


def load_checkpoint(path: Path, *, is_checked: bool = False, mapped: bool = False) -> dict[str, Any]:
    """Read tensors, numbers, strings, lists and dicts from a file. Nothing in it is executed.

    Args:
        path: The file.
        is_checked: Its checksums were compared a moment ago, which reads the whole file.
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
    """Return what is wrong with a file of `torch.save` of which torch says little or nothing."""
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
    """Read a checkpoint, or a safetensors file as {"state_dict": tensors, "isaseg": its description if it has one}.

    Raises:
        CheckpointError: As `load_checkpoint`.
    """
    return _load_safetensors(path) if _is_safetensors(path) else load_checkpoint(path)


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
