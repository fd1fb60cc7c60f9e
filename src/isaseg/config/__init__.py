"""The configuration: where it is, what it may say, what is built from it, and how runs are named by it."""

# checks.py is imported where it is used: it needs pydantic, and a mistyped key is reported before that
from isaseg.config.composition import PROFILED as PROFILED
from isaseg.config.composition import UNREADABLE as UNREADABLE
from isaseg.config.composition import command_flags as command_flags
from isaseg.config.composition import compose_from as compose_from
from isaseg.config.composition import conf_dir as conf_dir
from isaseg.config.composition import explain as explain
from isaseg.config.composition import require as require
from isaseg.config.composition import shortened as shortened
from isaseg.config.composition import user_dirs as user_dirs
from isaseg.config.composition import with_experiment as with_experiment
from isaseg.config.identity import attention_label as attention_label
from isaseg.config.identity import backbone_label as backbone_label
from isaseg.config.identity import data_dir as data_dir
from isaseg.config.identity import digest as digest
from isaseg.config.identity import identity as identity
from isaseg.config.identity import leaves as leaves
from isaseg.config.identity import run_dir as run_dir
from isaseg.config.identity import run_name as run_name
from isaseg.config.identity import safe_name as safe_name
from isaseg.config.identity import same_run as same_run
from isaseg.config.identity import validation_interval as validation_interval
from isaseg.config.initial import describe_network as describe_network
from isaseg.config.initial import initial_file as initial_file
from isaseg.config.initial import initialised as initialised
from isaseg.config.targets import build as build
from isaseg.config.values import check_value as check_value
from isaseg.config.values import suggest as suggest
