"""The configuration: where it is, what it may say, what is built from it, and how runs are named by it."""

from typing import TYPE_CHECKING, Any

from isaseg.config.composition import PROFILED as PROFILED
from isaseg.config.composition import compose_from as compose_from
from isaseg.config.composition import conf_dir as conf_dir
from isaseg.config.composition import explain as explain
from isaseg.config.composition import require as require
from isaseg.config.composition import shortened as shortened
from isaseg.config.identity import attention_label as attention_label
from isaseg.config.identity import data_dir as data_dir
from isaseg.config.identity import digest as digest
from isaseg.config.identity import identity as identity
from isaseg.config.identity import run_dir as run_dir
from isaseg.config.identity import run_name as run_name
from isaseg.config.identity import safe_name as safe_name
from isaseg.config.identity import same_run as same_run
from isaseg.config.identity import validation_interval as validation_interval
from isaseg.config.targets import build as build
from isaseg.config.values import check_value as check_value
from isaseg.config.values import suggest as suggest

if TYPE_CHECKING:
    from isaseg.config.checks import check as check
    from isaseg.config.checks import check_nodes as check_nodes
    from isaseg.config.checks import check_sections as check_sections


def __getattr__(name: str) -> Any:
    if name not in ("check", "check_nodes", "check_sections"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from isaseg.config import checks  # pydantic: a mistyped key is reported before that

    return getattr(checks, name)
