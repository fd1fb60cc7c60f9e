"""The parts of a network that a training takes over from a file: backbone, attention, and head with the rest."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from isaseg.checkpoints.loading import read_network
from isaseg.errors import CheckpointError
from isaseg.models.description import other_name
from isaseg.models.segmenter import Segmenter

log = logging.getLogger(__name__)

PARTS = ("backbone", "attention", "head")
_CLASSIFIERS = ("head.classifier.", "aux_head.classifier.")


def copy_parts(
    segmenter: Segmenter, path: Path, parts: Collection[str], classes: Sequence[str]
) -> dict[str, str]:
    """Copy parts of the network in a file into `segmenter`, and log what is kept, what is new and why.

    The classifiers of both heads are kept only for the same classes. If the file does not name its
    classes, the same number counts as the same classes.

    Args:
        segmenter: Receives the weights.
        path: As `load_model` takes it.
        parts: Of `PARTS`.
        classes: The names of the classes of `segmenter`.

    Returns:
        `init_kept` and `init_new`, in words.

    Raises:
        CheckpointError: If the file does not load, or a part does not fit.
    """
    _, description, weights = read_network(path)
    ours = segmenter.state_dict()
    if wrong := misfits(ours, weights, parts):
        part, names = next(iter(wrong.items()))
        raise CheckpointError(
            f"expected the {part} of '{path}' to fit the network, got other tensors: {names[0]}"
        )
    others = _other_classes(description, classes)
    kept = {
        name: weights[name]
        for name in ours
        if name in weights and part_of(name) in parts and not (others and name.startswith(_CLASSIFIERS))
    }
    segmenter.load_state_dict(kept, strict=False)
    counts = {part: sum(part_of(name) == part for name in kept) for part in PARTS}
    kept_words = ", ".join(f"{count} tensors of {part}" for part, count in counts.items() if count)
    reasons = {part: "not in init_parts" for part in PARTS if part not in parts}
    if "head" in parts:
        if others:
            reasons["classifiers"] = others
        if segmenter.aux_head is not None and not any(name.startswith("aux_head.") for name in weights):
            reasons["aux_head"] = "the file has none"
    new = ", ".join(f"{part} ({why})" for part, why in reasons.items())
    log.info("kept of '%s': %s; new: %s", path, kept_words, new or "nothing")
    if (
        "head" in parts
        and segmenter.aux_head is None
        and any(name.startswith("aux_head.") for name in weights)
    ):
        log.info("left out: the auxiliary head of '%s', because head.aux_channels=null", path)
    if not others and "head" in parts and not description.get("classes"):
        log.info(
            "'%s' does not name its %d classes: they are taken for those of the data", path, len(classes)
        )
    return {"init_kept": kept_words, "init_new": new}


def part_of(name: str) -> str:
    """Return the part of the network to which a tensor belongs."""
    if name.startswith("backbone."):
        return "backbone"
    return "attention" if name.startswith("head.attention.") else "head"


def misfits(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], parts: Collection[str]
) -> dict[str, list[str]]:
    """Return, of each part that does not fit, what differs; neither classifiers nor an auxiliary head need be there."""
    found: dict[str, list[str]] = {}
    has_aux = all(any(name.startswith("aux_head.") for name in names) for names in (ours, theirs))
    for name in dict.fromkeys([*ours, *theirs]):
        if name.startswith(_CLASSIFIERS) or (name.startswith("aux_head.") and not has_aux):
            continue
        old, new = (tuple(side[name].shape) if name in side else "nothing" for side in (theirs, ours))
        if old != new and part_of(name) in parts:
            found.setdefault(part_of(name), []).append(f"{name} ({old} in the file, {new} in the network)")
    return found


def _other_classes(description: dict[str, Any], classes: Sequence[str]) -> str:
    """Return in which way the file has other classes, "" if it has the same."""
    if description["num_classes"] != len(classes):
        return f"the file has {description['num_classes']} classes, the data {len(classes)}"
    if (found := other_name(description.get("classes") or classes, classes)) is None:
        return ""
    number, theirs, ours = found
    return f"class {number} is '{theirs}' in the file and '{ours}' in the data"
