"""Make mmsegmentation 1.2.2 importable with a current torch: imported before it, by its own Python.

It does not import unless `mmcv.ops`, compiled operators that are never called here, is replaced by an empty stand-in.
"""

import os
import sys
import types
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")


class _Operators(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


sys.modules["mmcv.ops"] = _Operators("mmcv.ops")
