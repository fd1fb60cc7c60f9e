"""Interlaced sparse self-attention for semantic segmentation."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isaseg.checkpoints.loading import load_segmenter
    from isaseg.models.interlaced import InterlacedSparseAttention
    from isaseg.models.segmenter import Segmenter

# Otherwise albumentations asks pypi.org for a newer version in every process.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

__all__ = ["InterlacedSparseAttention", "Segmenter", "load_segmenter"]
__version__ = "0.1.0"

_HOME = {
    "InterlacedSparseAttention": "isaseg.models.interlaced",
    "Segmenter": "isaseg.models.segmenter",
    "load_segmenter": "isaseg.checkpoints.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import isaseg` does not wait for torch."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
