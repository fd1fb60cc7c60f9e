"""Reading files of tensors, which may come from a stranger, so that they cannot run code.

The only file of the project that calls `torch.load`.
"""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from isaseg.errors import CheckpointError


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read tensors, numbers, strings, lists and dicts from a file. Nothing in it is executed.

    Raises:
        CheckpointError: If the file is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"expected a checkpoint file, got path='{path}', which does not exist; check the path"
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch does not verify the checksums
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it claims more bytes than it has, and torch never compresses")
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
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
    """Return the kind of an error and its first line."""
    if "Weights only load failed" in str(error):  # the rest of torch's text tells how to run the file's code
        return "it holds more than tensors and plain values, and loading the rest might run code"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
