"""Load weights or whole networks from checkpoint files. Needs neither Lightning nor Hydra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isaseg.checkpoints import published
from isaseg.errors import CheckpointError
from isaseg.models.description import differences
from isaseg.models.hub import located
from isaseg.models.segmenter import Segmenter, fitting, network_of
from isaseg.models.tensor_files import load_file


def copy_weights(module: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Copy the weights of a checkpoint into `module`: all of them, or none.

    Args:
        module: Receives the weights.
        checkpoint: What `path` holds: a checkpoint with a `state_dict`, or a bare state dict.
        path: The file, for messages.

    Raises:
        CheckpointError: If names, shapes or types differ; lists all that differ.
    """
    content = checkpoint.get("state_dict", checkpoint)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointError(f"expected named tensors in '{path}', got none; use another file")
    theirs = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    listed = differences(module.state_dict(), theirs, str)
    if listed:
        raise CheckpointError(
            f"expected the weights of this model in '{path}', got others. {listed}. "
            "Build the model from the configuration with which the file was made"
        )
    module.load_state_dict(theirs)


class Model(NamedTuple):
    """A network and what is known about it.

    Attributes:
        segmenter: The network, in evaluation mode, float32, on the CPU.
        kind: Who wrote the file: "isaseg", "mmseg" or "openseg".
        description: Plain data, from which `build_described` builds the network again.
    """

    segmenter: Segmenter
    kind: str
    description: dict[str, Any]


def load_model(
    path: Path | str,
    *,
    revision: str | None = None,
    group_size: Sequence[int] | None = None,
    align_corners: bool | None = None,
) -> Model:
    """Load a network from one of our checkpoints, or from an ISANet checkpoint of mmsegmentation or openseg.

    Everything that defines the network is read from the file, down to how the image is normalised. Nothing in it is
    executed, and a file with a tensor that is not used is refused.

    Args:
        path: A checkpoint of a training run, a safetensors file of ours or a published .pth file; tensors tell which.
            Or what `Segmenter.from_pretrained` takes: a folder of `save_pretrained`, or USER/NAME on the hub.
        revision: Of a network of the hub: a branch, tag or commit.
        group_size: (P_h, P_w), instead of the file's. A published file without its configuration does not say; then it
            is (8, 8), the only published value.
        align_corners: How logits are resized, instead of the file's. openseg: True. mmsegmentation: True for its models
            of 769x769, else False; False where a file lacks its configuration.

    Raises:
        CheckpointError: If the file is missing, damaged or of another network; lists all tensors that are missing,
            unexpected or of another shape.
    """
    path = located(path, revision)
    kind, description, weights = read_network(path)
    if group_size is not None:
        attention = {**description["attention"], "group_size": list(group_size)}
        description = {**description, "attention": attention}
    if align_corners is not None:
        description = {**description, "head": {**description["head"], "align_corners": align_corners}}
    try:
        return Model(network_of(description, weights), kind, description)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load '{path}': {error}") from error


def read_network(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return kind and description of the network in a file or folder, as in `Model`, and its weights under our names.

    Raises:
        CheckpointError: As `load_model`.
    """
    content = load_file(path)
    try:
        kind, description, weights, key = _recognise(content)
        return kind, description, fitting(description, weights, key)
    except CheckpointError as error:
        raise CheckpointError(f"cannot load '{path}': {error}") from error


def load_segmenter(
    path: Path | str,
    *,
    revision: str | None = None,
    group_size: Sequence[int] | None = None,
    align_corners: bool | None = None,
) -> Segmenter:
    """Return only the network of `load_model`: uint8 RGB (B, 3, H, W) in, logits (B, K, H, W) out."""
    return load_model(path, revision=revision, group_size=group_size, align_corners=align_corners).segmenter


def _recognise(content: dict[str, Any]) -> published.Published:
    weights = content.get("state_dict", content)
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise CheckpointError("expected a state_dict of named tensors in it, got none")
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise CheckpointError(
                f"expected nothing but tensors in its state_dict, got {name[:100]} of type {type(value).__name__}"
            )
        if value.is_meta or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"expected whole tensors, got {name[:100]}, whose file holds fewer values")
    ours = any(name.startswith(("segmenter.", "backbone.model.")) for name in weights)
    if "isaseg" not in content and ours:
        raise CheckpointError(
            "expected a description of the network beside its weights, got none: an older version wrote it. Continue "
            "the run (`resume`), or load its state_dict yourself"
        )
    if "isaseg" not in content:
        return published.recognise(content, weights)
    prefix = "segmenter." if any(name.startswith("segmenter.") for name in weights) else ""
    weights = {name: value for name, value in weights.items() if name.startswith(prefix)}
    return published.Published("isaseg", content["isaseg"], weights, lambda name: prefix + name)
