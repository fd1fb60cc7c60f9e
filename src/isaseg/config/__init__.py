"""The configuration: where it is, what it may say, what is built from it, and how runs are named by it."""

from isaseg.config.building import build
from isaseg.config.checks import check, check_nodes
from isaseg.config.composition import PROFILED, compose_from, conf_dir, explain, require, shortened
from isaseg.config.identity import (
    attention_label,
    data_dir,
    digest,
    identity,
    run_dir,
    run_name,
    safe_name,
    same_run,
    validation_interval,
)
from isaseg.config.targets import suggest

__all__ = [
    "PROFILED",
    "attention_label",
    "build",
    "check",
    "check_nodes",
    "compose_from",
    "conf_dir",
    "data_dir",
    "digest",
    "explain",
    "identity",
    "require",
    "run_dir",
    "run_name",
    "safe_name",
    "same_run",
    "shortened",
    "suggest",
    "validation_interval",
]
