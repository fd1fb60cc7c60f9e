"""The commands: one file each. If this Python lacks their packages, one sentence says which Python has them."""

import os
import sys
from importlib.util import find_spec


def _check_python() -> None:
    missing = [name for name in ("hydra", "torch", "lightning", "timm") if find_spec(name) is None]
    if sys.version_info >= (3, 11, 4) and not missing:
        return
    why = "no module named " + missing[0] if missing else "they need Python 3.11.4 or newer"
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
    if not os.path.isabs(sys.argv[0]):  # paths are written as the command's own
        root = os.path.relpath(root)
    remedy = "run pip install isaseg in an environment of Python 3.11.4 or newer"
    if os.path.isfile(os.path.join(root, "Makefile")):
        venv = os.path.normpath(os.path.join(root, ".venv"))
        first = "" if os.path.isdir(venv) else f"make -C {root} install, then "
        remedy = f"run {first}source {venv}/bin/activate, or {venv}/bin/python {sys.argv[0]} ..."
    version = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(
        f"error: isaseg's packages are not installed in this Python {version} ({why}); {remedy}\n"
    )
    sys.exit(2)


_check_python()
