"""Every combination of the swept values."""

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from isaseg.console import as_typed
from isaseg.errors import ConfigError, SweepError
from isaseg.sweep.launch import Launch, check_one_sweep, members_file


def combinations(
    params: Mapping[str, str], arguments: Sequence[str], rows: Sequence[str] = ()
) -> list[list[str]]:
    """Return the overrides of each job; rows change slowest, then the first swept key.

    Args:
        params: What a file of conf/sweep sweeps: key to values, as on the command line.
        arguments: Overrides of the command line; they replace a param of the same key, in rows too.
        rows: Overrides that belong together, separated by blanks; each row is combined with everything else.

    Raises:
        ConfigError: For a sweep without values, or that is no list of them, such as interval(0, 1).
    """
    parser = OverridesParser.create()
    parsed = parser.parse_overrides([*(f"{k}={v}" for k, v in params.items()), *arguments])
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        check_one_sweep(override)
        if not override.is_sweep_override():
            choices[key] = [str(override.input_line)]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
            if not choices[key]:
                raise ConfigError(f"expected values to sweep, got {override.input_line}, which has none")
        else:
            raise ConfigError(
                f"expected values to sweep, got {override.input_line}; hydra/sweeper=optuna searches an interval"
            )
    together = [
        [word for word in row.split() if parser.parse_override(word).get_key_element() not in choices]
        for row in rows
    ]
    return [[*row, *words] for row in together or [[]] for words in itertools.product(*choices.values())]


def sweep(
    launch: Launch,
    master: DictConfig,
    params: Mapping[str, str],
    arguments: Sequence[str],
    rows: Sequence[str] = (),
) -> None:
    """Run every combination; a failed job does not stop the others.

    Raises:
        SweepError: At the end, if a job did not finish.
    """
    # several combinations may be one job
    outcomes = dict(launch(combinations(params, arguments, rows), None))
    members = members_file([job.folder for job in outcomes], master)
    print(f"compare them: {as_typed('isaseg compare')} {shlex.quote(str(members))}", file=sys.stderr)
    failed = [(job, outcome.state) for job, outcome in outcomes.items() if outcome.state != "finished"]
    if failed:
        raise SweepError([f"{job.name}: {state}, see {job.folder}" for job, state in failed], len(outcomes))
