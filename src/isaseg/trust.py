"""Which packages outside this project a configuration or a checkpoint may name: those that the user trusts.

Trust is given by the environment or on the command line, never by a file that is read.
"""

import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from isaseg.errors import ConfigError

VARIABLE = "ISASEG_TRUST"

# Of these a configuration may name classes of some kinds (config/targets.py). They cannot be trusted as a whole:
# functions such as torch.load run what a file says.
KNOWN = ("isaseg", "torch", "torchvision", "timm", "lightning", "torchmetrics", "albumentations")
_WORD = re.compile(r"\+{0,2}trust=\[?([^]]*)]?")  # of the command line


def trusted() -> tuple[str, ...]:
    """Return the names of the packages that ISASEG_TRUST lists, separated by commas."""
    names = (name.strip() for name in os.environ.get(VARIABLE, "").split(","))
    return tuple(name for name in names if name and name.partition(".")[0] not in KNOWN)


def trust(packages: Iterable[str]) -> None:
    """Trust more packages, in this process and in those that it starts.

    Raises:
        ConfigError: If one is no name of a package, or is of `KNOWN`.
    """
    packages = list(packages)
    for name in packages:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"expected the name of a package to trust, e.g. mylab, got '{name}'")
        if name.partition(".")[0] in KNOWN:
            raise ConfigError(
                f"expected a package of your own to trust, got '{name}', of which a configuration may name some classes "
                "without trust; for anything else write a function in a package of your own"
            )
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*trusted(), *packages]))


def take_trust(words: Sequence[str]) -> list[str]:
    """Trust the packages of `+trust=[mylab,otherlab]` among the words of a command line, and return the other words.

    Raises:
        ConfigError: If one is no name of a package.
    """
    for word in words:
        if found := _WORD.fullmatch(word):
            trust(name.strip(" '\"") for name in found[1].split(","))
    return [word for word in words if not _WORD.fullmatch(word)]


def refuse_trust(words: Iterable[str]) -> None:
    """Raise a ConfigError if words, or keys, that a file may have written give trust."""
    for word in words:
        if word == "trust" or _WORD.fullmatch(word):
            raise ConfigError(
                f"expected no trust from a file, got '{word}'; give it on the command line, e.g. +trust=[mylab], or as "
                f"{VARIABLE}=mylab in the environment"
            )


def as_words() -> list[str]:
    """Return the word of a command line that gives the trust of this process to another one, or none."""
    return [f"+trust=[{','.join(trusted())}]"] if trusted() else []


def is_trusted(name: str) -> bool:
    """Return whether a dotted name is in a package that the user trusts."""
    return any(name == package or name.startswith(f"{package}.") for package in trusted())


def import_trusted(name: str) -> Any:
    """Return what a dotted name in a trusted package stands for; packages in the current folder are found too.

    Raises:
        ConfigError: If its package is not trusted, cannot be imported, or does not have it.
    """
    package = name.partition(".")[0]
    if package in KNOWN:
        raise ConfigError(
            f"expected a part of this project or of a package that you trust, got '{name}'; derive a class of a package "
            "of your own from it, and name that"
        )
    if not is_trusted(name):
        raise ConfigError(
            f"expected '{name}' to be of this project or of a package that you trust, got {package}; if you trust its "
            f"code, give +trust=[{package}] on the command line or {VARIABLE}={package} in the environment"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file in it takes the place of a library
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ConfigError(f"expected the name of a class or function, e.g. {package}.Mine, got '{name}'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module that is imported may raise anything
        raise ConfigError(
            f"expected the trusted package {package} to have '{name}', got {type(error).__name__}: {error}; install it, "
            "start in the folder that holds it, or set PYTHONPATH"
        ) from error
