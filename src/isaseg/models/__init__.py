"""The science, in pure PyTorch: context modules, the head, the backbone, the whole network and its losses.

Every context module can be imported from here by its name, and so can what `__all__` lists.
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from isaseg.models.backbone import Backbone
    from isaseg.models.head import ContextHead
    from isaseg.models.layers import Cost
    from isaseg.models.regroup import deinterlace, interlace, merge_windows, split_windows
    from isaseg.models.segmenter import Segmenter, build_segmenter

__all__ = [
    "Backbone",
    "ContextHead",
    "Cost",
    "Segmenter",
    "build_segmenter",
    "context_modules",
    "deinterlace",
    "interlace",
    "merge_windows",
    "split_windows",
]


@cache
def context_modules() -> "dict[str, type[nn.Module]]":
    """Return all context modules by name: the public modules with a `cost` that are defined in a file of this package."""
    return {
        name: value
        for name, value in _defined().items()
        if isinstance(value, type) and hasattr(value, "cost") and hasattr(value, "forward")
    }


@cache
def _defined() -> dict[str, Any]:
    """Return the public classes and functions of all files of this package."""
    files = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {
        name: value
        for file in files
        for name, value in vars(file).items()
        if getattr(value, "__module__", None) == file.__name__ and not name.startswith("_")
    }


def __getattr__(name: str) -> Any:
    # Lazy, so that a command which needs one file of this package does not wait for all of them and for timm.
    if name in __all__ or (name[:1].isupper() and name in context_modules()):
        return _defined()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
