"""Rows of a comparison: runs that differ in the seed alone, labelled by what differs between the rows."""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.report.intervals import Difference, Spread, difference, spread
from isaseg.report.labels import Values, differing, identity, labels
from isaseg.report.runs import At, Run, State, number
from isaseg.runs.history import Curve

log = logging.getLogger(__name__)

Sort = Literal["label", "score", "parameters", "mult_adds", "score_memory", "ms"]
SORTS: tuple[Sort, ...] = get_args(Sort)

_TAIL, _TOLERANCE = 0.8, 0.01  # of `is_converged`


@dataclass(frozen=True, eq=False)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: The context module, and what else distinguishes this row from the others.
        attention: `config.attention_label`.
        values: What defines the runs: dotted keys and their values as text, without the seed.
        runs: All of them, one per seed.
        scores: Scores of the finished runs, by seed.
        score: Their mean and spread.
        gap: Difference to the baseline; None for the baseline itself, without scores, or on other data.
    """

    label: str
    attention: str
    values: Values
    runs: Sequence[Run]
    scores: Mapping[int, float]
    score: Spread
    gap: Difference | None = None

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)

    def fact(self, key: str) -> float | None:
        """Return a number of facts.json, None if no run has it."""
        return next((n for run in self.runs if (n := number(run.facts.get(key))) is not None), None)

    def measured(self, key: str) -> list[float]:
        """Return a number of metrics.json of all finished runs that have it."""
        return [n for run in self.runs if (n := number(run.metrics.get(key))) is not None]

    def cost(self, key: str) -> float | None:
        """Return a cost: a number of facts.json, or "ms" per step; None if it is not known."""
        if key != "ms":
            return self.fact(key)
        times = self.measured("seconds_per_step")
        return 1000 * spread(times).mean if times else None

    @property
    def steps(self) -> int | None:
        """The number of steps the runs are to take."""
        return self.runs[0].max_steps

    @property
    def devices(self) -> list[str]:
        """The devices on which the finished runs were trained."""
        held = (run.facts.get("device") for run in self.runs if run.state == "finished")
        return sorted({str(device) for device in held if device})

    def converged(self, metric: str) -> int | None:
        """Return how many finished runs have converged; None without any, or if `metric` is no fraction."""
        curves = [finite(run.history.get(metric, {})) for run in self.runs if run.state == "finished"]
        if not is_share(metric) or not any(curves):
            return None
        return sum(is_converged(curve, self.steps or 0) for curve in curves)

    def mean_curve(self, metric: str) -> Curve:
        """Return the mean over the finished runs at the steps that all of them have."""
        curves = [finite(run.history.get(metric, {})) for run in self.runs if run.state == "finished"]
        curves = [curve for curve in curves if curve]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        return {step: math.fsum(curve[step] for curve in curves) / len(curves) for step in steps}

    def classes(self) -> dict[str, float]:
        """Return the IoU of each class at the best checkpoints, the mean over the finished runs."""
        held = [run.metrics.get("val/IoU") for run in self.runs]
        tables = [table for table in held if isinstance(table, dict)]
        names = dict.fromkeys(name for table in tables for name in table)
        found = {name: [n for t in tables if (n := number(t.get(name))) is not None] for name in names}
        return {name: spread(values).mean for name, values in found.items() if values}


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
        confidence: Of the intervals.
        bounds: By label, the group accuracy that geometry allows, over all object pixels and over the far ones.
    """

    rows: Sequence[Row]
    baseline: Row | None
    loose: Sequence[Run]
    differing: Sequence[str]
    metric: str
    also: Sequence[str]
    at: At
    confidence: float
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def compare(
    runs: Sequence[Run],
    metric: str = "val/mIoU",
    at: At = "last",
    baseline: str | None = None,
    confidence: float = 0.95,
    sort: Sort = "label",
    also: Sequence[str] = (),
) -> Comparison:
    """Group runs into rows and compare each with the baseline.

    Raises:
        ConfigError: If no finished run has `metric`, or no row or more than one is `baseline`.
    """
    _check_metric(runs, metric, at)
    groups: dict[str, tuple[dict[str, str], list[Run]]] = {}
    for run, held in _without_data_seed([(r, identity(r.config)) for r in runs if r.config is not None]):
        groups.setdefault(config.digest(held), (held, []))[1].append(run)
    values, members = [held for held, _ in groups.values()], [_one_per_seed(m) for _, m in groups.values()]
    attention = [_attention(group[0]) for group in members]
    keys = differing(attention, values)
    cells = zip(labels(attention, values, keys), attention, values, members, strict=True)
    rows = [_row(*cell, metric, at) for cell in cells]
    rows.sort(key=lambda row: _order(row, sort))
    chosen = _baseline(rows, baseline)
    rows = [_with_gap(row, chosen, confidence) for row in rows]
    loose = [run for run in runs if run.config is None]
    return Comparison(rows, chosen, loose, keys, metric, also, at, confidence)


def finite(curve: Curve) -> Curve:
    """Return a curve without NaN and infinity, in the order of its steps."""
    return {step: curve[step] for step in sorted(curve) if math.isfinite(curve[step])}


def is_converged(curve: Curve, steps: int) -> bool:
    """Return whether a score moves by less than a point (largest minus smallest) over the last fifth of `steps`.

    There must be two validations in it. The learning rate ends at 0, so this is necessary and not sufficient.
    """
    tail = [value for step, value in curve.items() if step >= _TAIL * steps]
    return len(tail) > 1 and max(curve) >= steps and max(tail) - min(tail) < _TOLERANCE


def is_share(metric: str) -> bool:
    """Return whether a metric is a fraction that people read in per cent."""
    return re.search(r"iou|acc", metric, re.IGNORECASE) is not None


def scale_of(metric: str) -> int:
    """Return 100 for a fraction, which people read in per cent, else 1."""
    return 100 if is_share(metric) else 1


def _check_metric(runs: Sequence[Run], metric: str, at: At) -> None:
    finished = [run for run in runs if run.state == "finished"]
    known = Counter(
        key
        for run in finished
        for key in (run.history if at == "last" else run.metrics)
        if run.score(key, at) is not None
    )
    if finished and metric not in known:
        other: At = "best" if at == "last" else "last"
        hint = (
            f"; it is known with --at {other}"
            if any(run.score(metric, other) is not None for run in finished)
            else ""
        )
        raise ConfigError(
            f"expected a metric of the finished runs ({', '.join(sorted(known)) or 'there is none'}), "
            f"got --metric {metric}{hint}"
        )


def _attention(run: Run) -> str:
    assert run.config is not None
    try:
        return config.attention_label(run.config)
    except Exception:  # a configuration of another version of the project
        return str(run.facts.get("attention_label") or run.folder.name)


def _without_data_seed(runs: Sequence[tuple[Run, dict[str, str]]]) -> Sequence[tuple[Run, dict[str, str]]]:
    """Drop data.seed where it follows the seed of the run, as for a data set of files.

    For generated scenes it is a key of its own, even if the two seeds agree in some of the runs.
    """

    def others(held: Mapping[str, str]) -> str:
        return config.digest({key: value for key, value in held.items() if key != "data.seed"})

    apart = {others(held) for run, held in runs if held.get("data.seed", str(run.seed)) != str(run.seed)}
    for _, held in runs:
        if others(held) not in apart:
            held.pop("data.seed", None)
    return runs


def _one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """Keep one run per seed: a finished one if there is, else the last one."""
    kept: dict[int, Run] = {}
    for run in runs:
        held = kept.get(run.seed)
        if held is not None:
            run, dropped = (held, run) if held.state == "finished" != run.state else (run, held)
            log.warning(
                "warning: %s and %s are the same run; the first is counted, which is %s",
                run.folder,
                dropped.folder,
                run.state,
            )
        kept[run.seed] = run
    return [kept[seed] for seed in sorted(kept)]


def _row(label: str, attention: str, values: Values, runs: Sequence[Run], metric: str, at: At) -> Row:
    found = {run.seed: run.score(metric, at) for run in runs}
    scores = {seed: score for seed, score in found.items() if score is not None}
    for run in runs:
        if run.state == "finished" and run.seed not in scores:
            log.warning("warning: %s is finished and has no %s (%s)", run.folder, metric, at)
    return Row(label, attention, values, runs, scores, spread(list(scores.values())))


def _order(row: Row, sort: Sort) -> Any:
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", row.label)  # text and numbers take turns
    natural = [float(part) if place % 2 else part for place, part in enumerate(parts)]
    if sort == "label":
        return natural
    if sort == "score":
        value = None if math.isnan(row.score.mean) else -row.score.mean
    else:
        value = row.cost("attention_score_mib" if sort == "score_memory" else sort)
    return value is None, value or 0.0, natural


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


def _with_gap(row: Row, baseline: Row | None, confidence: float) -> Row:
    if baseline is None or row is baseline or not row.scores or not baseline.scores:
        return row
    if row.values.get("data.name") != baseline.values.get("data.name"):
        return row
    return replace(row, gap=difference(row.scores, baseline.scores, confidence))
