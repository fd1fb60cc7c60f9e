"""Rows of a comparison: runs that differ in the seed alone, labelled by what differs between the rows."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from isaseg import config
from isaseg.console import is_share
from isaseg.errors import ConfigError
from isaseg.report.intervals import Difference, Spread, difference, spread
from isaseg.report.labels import Values, differing, identity_as_text, labels
from isaseg.report.runs import At, Run, State, finite, number
from isaseg.runs.history import Curve

log = logging.getLogger(__name__)

_TAIL, _TOLERANCE = 0.8, 0.01  # of `is_converged`


@dataclass(frozen=True, eq=False)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: The context module, and what else distinguishes this row from the others.
        attention: `config.attention_label`.
        values: What defines the runs: dotted keys and their values as text, without the seed.
        runs: All of them, one per seed.
        scores: Scores of the finished runs in the metric that is compared, by seed.
        gap: Difference to the baseline; None for the baseline itself, without scores, or on other data.
        stale: What is not as it is now, see `marks.with_stale`: "code", "files".
    """

    label: str
    attention: str
    values: Values
    runs: Sequence[Run]
    scores: Mapping[int, float]
    gap: Difference | None = None
    stale: Sequence[str] = ()

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)

    @property
    def score(self) -> Spread:
        """Mean and spread of the scores."""
        return spread(list(self.scores.values()))

    def cost(self, key: str) -> float | None:
        """Return a number of facts.json, `ms_per_step` or `peak_memory_mib`; None if no run knows it."""
        if key == "ms_per_step":
            times = self._numbers("seconds_per_step")
            return 1000 * spread(times).mean if times else None
        return max(self._numbers(key), default=None)

    def _numbers(self, key: str) -> list[float]:
        """Return a number of metrics.json or facts.json of all runs that have it."""
        found = (number(run.metrics.get(key, run.facts.get(key))) for run in self.runs)
        return [value for value in found if value is not None]

    @property
    def steps(self) -> int | None:
        """The number of steps the runs are to take."""
        return self.runs[0].max_steps

    def converged(self, metric: str) -> int | None:
        """Return how many finished runs have converged; None without any, or if `metric` is no fraction."""
        curves = self._curves(metric) if is_share(metric) else []
        return sum(is_converged(curve, self.steps or 0) for curve in curves) if curves else None

    def mean_curve(self, metric: str) -> Curve:
        """Return the mean over the finished runs at the steps that all of them have."""
        curves = self._curves(metric)
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        return {step: spread([curve[step] for curve in curves]).mean for step in steps}

    def _curves(self, metric: str) -> list[Curve]:
        """Return the curves of the finished runs, without empty ones."""
        curves = [finite(run.history.curves.get(metric, {})) for run in self.runs if run.state == "finished"]
        return [curve for curve in curves if curve]

    def classes(self, split: str) -> dict[str, dict[int, float]]:
        """Return the IoU of each class by seed, at the checkpoints that the finished runs have scored on a split."""
        found: dict[str, dict[int, float]] = {}
        for run in self.runs:
            held = run.metrics.get(f"{split}/IoU")
            for name, value in held.items() if isinstance(held, dict) else ():
                if (iou := number(value)) is not None:
                    found.setdefault(name, {})[run.seed] = iou
        return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """Rows, one of which is the baseline.

    Attributes:
        rows: In the order of the table.
        baseline: One of them, None if there is no row.
        loose: Runs without a readable configuration: they belong to no row.
        differing: Keys that differ between the rows.
        metric: The metric that is compared.
        also: Further metrics, each a column.
        at: Where the scores are taken.
        bounds: By label, the group accuracy that geometry allows, over all object pixels and over the far ones.
    """

    rows: Sequence[Row]
    baseline: Row | None
    loose: Sequence[Run]
    differing: Sequence[str]
    metric: str
    also: Sequence[str]
    at: At
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def compare(
    runs: Sequence[Run],
    metric: str = "val/mIoU",
    at: At = "last",
    baseline: str | None = None,
    also: Sequence[str] = (),
) -> Comparison:
    """Group runs into rows and compare each with the baseline.

    Raises:
        ConfigError: If no finished run has `metric`, or no row or more than one is `baseline`.
    """
    _check_metric(runs, metric, at)
    groups = _grouped(runs)
    values, members = [held for held, _ in groups], [_one_per_seed(group) for _, group in groups]
    attention = [_attention(group[0]) for group in members]
    keys = differing(attention, values)
    rows = [
        Row(label, module, held, group, scores_of(group, metric, at))
        for label, module, held, group in zip(
            labels(attention, values, keys), attention, values, members, strict=True
        )
    ]
    rows.sort(key=_natural)
    chosen = _baseline(rows, baseline)
    rows = [_with_gap(row, chosen) for row in rows]
    return Comparison(rows, chosen, [run for run in runs if run.config is None], keys, metric, also, at)


def is_converged(curve: Curve, steps: int) -> bool:
    """Return whether a score moves by less than a point (largest minus smallest) over the last fifth of `steps`.

    There must be two validations in it. The learning rate ends at 0, so this is necessary and not sufficient.
    """
    tail = [value for step, value in curve.items() if step >= _TAIL * steps]
    return len(tail) > 1 and max(curve) >= steps and max(tail) - min(tail) < _TOLERANCE


def scored(rows: Sequence[Row]) -> str:
    """Return which checkpoints the finished runs have scored in the end, as classes and pictures are of these."""
    last = [row.label for row in rows if any(run.scored == "last" for run in row.runs)]
    kinds = {run.scored for row in rows for run in row.runs if run.state == "finished"}
    if len(kinds) < 2:
        return f"the {''.join(kinds) or 'best'} checkpoints"
    return f"the best checkpoints, but the last ones of {'; '.join(last)}"


def scale_of(metric: str) -> int:
    """Return 100 for a fraction, which people read in per cent, else 1."""
    return 100 if is_share(metric) else 1


def _check_metric(runs: Sequence[Run], metric: str, at: At) -> None:
    finished = [run for run in runs if run.state == "finished"]
    known = {
        key
        for run in finished
        for key in (*run.history.curves, *run.metrics)
        if run.score(key, at) is not None
    }
    if finished and metric not in known:
        raise ConfigError(
            f"expected --metric to be one that a finished run has with --at {at} "
            f"({', '.join(sorted(known)) or 'there is none'}), got {metric}"
        )


def scores_of(runs: Sequence[Run], metric: str, at: At) -> dict[int, float]:
    """Return the scores of the finished runs by seed."""
    found = {run.seed: run.score(metric, at) for run in runs}
    return {seed: score for seed, score in found.items() if score is not None}


def _attention(run: Run) -> str:
    assert run.config is not None
    try:
        return config.attention_label(run.config)
    except Exception:  # a configuration of another version of the project
        return str(run.facts.get("attention_label") or run.folder.name)


def _grouped(runs: Sequence[Run]) -> list[tuple[Values, list[Run]]]:
    """Return the runs that differ in the seed alone, with what defines them.

    data.seed counts too, unless it follows the seed in all runs that are otherwise alike, as it does by default.
    """
    held = [(run, identity_as_text(run.config)) for run in runs if run.config is not None]
    pinned = {_without_data_seed(v) for run, v in held if v.get("data.seed") not in (None, str(run.seed))}
    groups: dict[frozenset[tuple[str, str]], list[Run]] = {}
    for run, values in held:
        alike = _without_data_seed(values)
        groups.setdefault(frozenset(values.items()) if alike in pinned else alike, []).append(run)
    return [(dict(key), group) for key, group in groups.items()]


def _without_data_seed(values: Values) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in values.items() if item[0] != "data.seed")


def _one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """Keep one run per seed: the last finished one, else the last one."""
    kept: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: run.state == "finished"):
        if run.seed in kept:
            message = "warning: %s and %s are the same run; the second is counted, which is %s"
            log.warning(message, kept[run.seed].folder, run.folder, run.state)
        kept[run.seed] = run
    return [kept[seed] for seed in sorted(kept)]


def data_of(row: Row) -> tuple[str | None, str | None]:
    """Return the name of the data set, and the root of a folder of the user's own."""
    return row.values.get("data.name"), row.values.get("data.root")


def _natural(row: Row) -> list[str | float]:
    """Return the label as text and numbers in turns, so that lr=5e-05 comes before lr=0.01."""
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", row.label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _baseline(rows: Sequence[Row], label: str | None) -> Row | None:
    if label is None:
        return next((row for row in rows if row.attention == "dense"), rows[0] if rows else None)
    matching = [row for row in rows if row.label == label] or [row for row in rows if row.attention == label]
    if len(matching) != 1:
        raise ConfigError(
            f"expected --baseline to be one of {'; '.join(row.label for row in rows)}, got {label!r}, which is "
            f"{'more than one' if matching else 'none'}"
        )
    return matching[0]


def _with_gap(row: Row, baseline: Row | None) -> Row:
    if baseline is None or row is baseline or not row.scores or not baseline.scores:
        return row
    if data_of(row) != data_of(baseline):
        return row
    return replace(row, gap=difference(row.scores, baseline.scores))
