"""Which packages outside this project a configuration or a checkpoint may name: those that the user trusts.

Trust is given by the environment or on the command line, never by a file that is read.
"""

import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from isaseg.errors import ConfigError

VARIABLE = "ISASEG_TRUST"


def trusted() -> tuple[str, ...]:
    """Return the names of the packages that ISASEG_TRUST lists, separated by commas."""
    return tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())


def trust(packages: Iterable[str]) -> None:
    """Trust more packages, in this process and in those that it starts.

    Raises:
        ConfigError: If one is no name of a package.
    """
    packages = list(packages)
    for name in packages:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"expected the name of a package to trust, e.g. mylab, got '{name}'")
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*trusted(), *packages]))


def is_trusted(name: str) -> bool:
    """Return whether a dotted name is in a package that the user trusts."""
    return any(name == package or name.startswith(f"{package}.") for package in trusted())


def import_trusted(name: str) -> Any:
    """Return what a dotted name in a trusted package stands for; packages in the current folder are found too.

    Raises:
        ConfigError: If its package is not trusted, cannot be imported, or does not have it.
    """
    package = name.partition(".")[0]
    if not is_trusted(name):
        raise ConfigError(
            f"expected '{name}' to be of this project or of a package that you trust, got {package}; if you trust its "
            f"code, give +trust=[{package}] on the command line or {VARIABLE}={package} in the environment"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file in it takes the place of a library
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"expected the trusted package {package} to have '{name}', got {type(error).__name__}: {error}; install it, "
            "start in the folder that holds it, or set PYTHONPATH"
        ) from error
