"""What a search has found: a table, the command of the best trial, and a picture."""

import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_slice
from rich.console import Console
from rich.table import Table

from isaseg.console import say
from isaseg.files import replace_file


def report_trials(study: Study, store: Path, metric: str, flags: Sequence[str]) -> None:
    """Print the trials and the command that trains the best one again; draw them beside the store."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table(study))
    if study.get_trials(states=(TrialState.COMPLETE,)):
        best = study.best_trial
        say(console, f"best: trial {best.number}, mIoU {best.value:.4f}, {best.user_attrs['folder']}")
        say(console, f"python src/train.py {shlex.join([*flags, *best.user_attrs['overrides']])}")
        picture = store.with_suffix(".png")
        draw(study, picture, metric)
        say(console, f"picture: {picture}")


def table(study: Study) -> Table:
    """Return the trials in order, the best one in bold."""
    keys = list(dict.fromkeys(key for trial in study.trials for key in trial.params))
    done = study.get_trials(states=(TrialState.COMPLETE,))
    best = study.best_trial.number if done else None
    found = Table("trial", "state", "mIoU %", "steps", *keys, "run", title=f"study {study.study_name}")
    for trial in study.trials:
        score = "" if trial.value is None else f"{100 * trial.value:.2f}"
        found.add_row(
            str(trial.number),
            trial.state.name.lower(),
            score,
            str(trial.last_step or ""),
            *(_short(trial.params.get(key, "")) for key in keys),
            str(trial.user_attrs.get("message") or Path(trial.user_attrs.get("folder", "")).name),
            style="bold" if trial.number == best else None,
        )
    return found


def draw(study: Study, path: Path, metric: str) -> None:
    """Draw the score of every complete trial against each searched value, by Optuna's own plot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # Optuna's word for all its matplotlib plots
        plot_slice(study, target_name=metric)
    figure = plt.gcf()
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
