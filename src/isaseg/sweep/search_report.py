"""What a search has found: a table, the command of the best trial, and a picture."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from optuna import Study
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from isaseg.files import replace_file

_COLOURS = {TrialState.COMPLETE: "#0072B2", TrialState.PRUNED: "#D55E00"}  # Okabe and Ito


def tell(study: Study, store: Path, metric: str, flags: Sequence[str]) -> None:
    """Print the trials and how to train the best one again; draw them beside the store."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table(study))
    done = study.get_trials(states=(TrialState.COMPLETE,))
    if done:
        best = study.best_trial
        words = shlex.join([*flags, *best.user_attrs["overrides"]])
        _say(console, f"best: trial {best.number}, mIoU {best.value:.4f}, {best.user_attrs['folder']}")
        _say(console, f"python src/train.py {words}")
        picture = store.with_suffix(".png")
        draw(study, picture, metric)
        _say(console, f"picture: {picture}")


def table(study: Study) -> Table:
    """Return the trials in their order, the best marked."""
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
    """Draw the value of every trial against its number, and against each value that was searched."""
    trials = [trial for trial in study.trials if trial.state in _COLOURS and trial.value is not None]
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    columns = min(len(keys) + 1, 3)
    lines = math.ceil((len(keys) + 1) / columns)
    figure = Figure(
        figsize=(3.4 * columns, 2.9 * lines + 0.3), dpi=120, facecolor="white", layout="constrained"
    )
    grid = figure.subplots(lines, columns, sharey=True, squeeze=False).flatten()
    _history(grid[0], [trial for trial in trials if trial.state is TrialState.COMPLETE])
    for axes, key in zip(grid, ["trial", *keys], strict=False):
        for state, colour in _COLOURS.items():
            chosen = [trial for trial in trials if trial.state is state]
            values = [_place(trial, key) for trial in chosen]
            scores = [trial.value for trial in chosen]
            axes.scatter(values, scores, s=14, color=colour, label=state.name.lower() if chosen else None)
        axes.set_xlabel(key, fontsize=9)
        axes.tick_params(labelsize=8)
        _scale(axes, trials, key)
    for axes in grid[len(keys) + 1 :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel(metric, fontsize=9)
    grid[0].legend(fontsize=7.5, frameon=False)
    with replace_file(path) as file:
        figure.savefig(file, format="png")


def _history(axes: Axes, done: Sequence[FrozenTrial]) -> None:
    best = [max(trial.value or 0.0 for trial in done[: i + 1]) for i in range(len(done))]
    axes.step(
        [trial.number for trial in done], best, where="post", color="#999999", lw=1, label="best so far"
    )


def _place(trial: FrozenTrial, key: str) -> float:
    """Return where a trial stands on the axis of a key: choices in their order."""
    if key == "trial":
        return trial.number
    one = trial.distributions[key]
    return float(one.to_internal_repr(trial.params[key]))


def _scale(axes: Axes, trials: Sequence[FrozenTrial], key: str) -> None:
    one = next((trial.distributions[key] for trial in trials if key in trial.distributions), None)
    if isinstance(one, CategoricalDistribution):
        axes.set_xticks(range(len(one.choices)), [str(choice) for choice in one.choices])
        axes.set_xlim(-0.5, len(one.choices) - 0.5)
        if len(one.choices) > 3:
            axes.tick_params(axis="x", labelrotation=90)
    elif isinstance(one, (FloatDistribution, IntDistribution)) and one.log:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * one.low, 1.25 * one.high)
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.locator_params(axis="x", integer=not isinstance(one, FloatDistribution), nbins=5)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
