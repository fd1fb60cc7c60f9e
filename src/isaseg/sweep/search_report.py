"""What a search has found: its trials, the command of the best one, and a picture."""

import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from optuna import Study
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_slice

from isaseg.files import replace_file
from isaseg.sweep.space import overrides


def report_trials(study: Study, picture: Path, metric: str, flags: Sequence[str]) -> None:
    """Print the trials and the command that trains the best one again; draw them."""
    print(f"study {study.study_name}")
    for trial in study.trials:
        score = "" if trial.value is None else f"mIoU {trial.value:.4f}"
        values = " ".join(overrides(trial.params))
        print(f"trial {trial.number:<3} {trial.state.name.lower():8} {score:11} {values}")
    if study.get_trials(states=(TrialState.COMPLETE,)):
        best = study.best_trial
        print(f"best: trial {best.number}, mIoU {best.value:.4f}, {best.user_attrs['folder']}")
        print(f"python src/train.py {shlex.join([*flags, *best.user_attrs['overrides']])}")
        draw(study, picture, metric)
        print(f"picture: {picture}")


def draw(study: Study, path: Path, metric: str) -> None:
    """Draw the score of every complete trial against each searched value, by Optuna's own plot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all plots by matplotlib are experimental to Optuna
        plot_slice(study, target_name=metric)
    figure = plt.gcf()
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=150, bbox_inches="tight")
    plt.close(figure)
