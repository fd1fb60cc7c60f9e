"""Rows of a comparison: runs that differ in the seed alone, named by what differs between the rows."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from isaseg import config
from isaseg.errors import ConfigError
from isaseg.report.intervals import Difference, Spread, difference, spread
from isaseg.report.labels import Values, differing, identity
from isaseg.report.labels import labels as make_labels
from isaseg.report.runs import At, Run, number

log = logging.getLogger(__name__)

SORTS = ("label", "score", "parameters", "mult_adds", "score_memory", "ms")
Sort = Literal["label", "score", "parameters", "mult_adds", "score_memory", "ms"]


@dataclass(frozen=True, eq=False)
class Row:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: Context module, and what else tells this row from the others.
        attention: `config.attention_label`.
        values: What defines the runs: dotted keys and their values as text, without the seed.
        runs: All of them, one a seed.
        scores: Of the finished runs that have one, by seed.
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

    def count(self, state: str) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)

    def fact(self, key: str) -> float | None:
        """Return a number of facts.json, None if no run has it."""
        return next((n for run in self.runs if (n := number(run.facts.get(key))) is not None), None)

    def measured(self, key: str) -> list[float]:
        """Return a number of metrics.json of all finished runs that have it."""
        return [n for run in self.runs if (n := number(run.metrics.get(key))) is not None]

    @property
    def steps(self) -> int | None:
        """Steps that the runs are to take."""
        return self.runs[0].max_steps

    @property
    def devices(self) -> list[str]:
        """What the finished runs were trained on."""
        held = (run.facts.get("device") for run in self.runs if run.state == "finished")
        return sorted({str(device) for device in held if device})

    def mean_curve(self, metric: str) -> dict[int, float]:
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
    """Rows with the baseline among them.

    Attributes:
        rows: In the order of the table.
        baseline: One of them, None if there is no row at all.
        loose: Runs without a configuration that can be read: they belong to no row.
        differing: Keys that differ between the rows.
        metric, at, confidence: What was asked for.
    """

    rows: Sequence[Row]
    baseline: Row | None
    loose: Sequence[Run]
    differing: Sequence[str]
    metric: str
    at: At
    confidence: float


def compare(
    runs: Sequence[Run],
    metric: str = "val/mIoU",
    at: At = "last",
    baseline: str | None = None,
    confidence: float = 0.95,
    sort: Sort = "label",
) -> Comparison:
    """Group runs into rows and compare each with the baseline.

    Raises:
        ConfigError: If no finished run has `metric`, or no row is `baseline`.
    """
    _check_metric(runs, metric, at)
    groups: dict[str, list[Run]] = {}
    values: dict[str, dict[str, str]] = {}
    for run, held in _without_data_seed(
        [(run, identity(run.config)) for run in runs if run.config is not None]
    ):
        key = config.digest(held)
        values[key] = held
        groups.setdefault(key, []).append(run)
    members = [_one_a_seed(group) for group in groups.values()]
    attention = [_attention(group[0]) for group in members]
    keys = differing(attention, list(values.values()))
    labels = make_labels(attention, list(values.values()), keys)
    rows = [
        _row(*cells, metric, at) for cells in zip(labels, attention, values.values(), members, strict=True)
    ]
    rows.sort(key=_order(sort))
    chosen = _baseline(rows, baseline)
    rows = [_with_gap(row, chosen, confidence) for row in rows]
    loose = [run for run in runs if run.config is None]
    return Comparison(rows, chosen, loose, keys, metric, at, confidence)


def finite(curve: Mapping[int, float]) -> dict[int, float]:
    """Return a curve without what is not a number, in the order of its steps."""
    return {step: curve[step] for step in sorted(curve) if math.isfinite(curve[step])}


def is_share(metric: str) -> bool:
    """Tell whether a metric is a fraction that people read in per cent."""
    return re.search(r"iou|acc", metric, re.IGNORECASE) is not None


def _check_metric(runs: Sequence[Run], metric: str, at: At) -> None:
    finished = [run for run in runs if run.state == "finished"]
    known = Counter(
        key
        for run in finished
        for key in (run.history if at == "last" else run.metrics)
        if run.score(key, at) is not None
    )
    if finished and metric not in known:
        elsewhere = any(run.score(metric, "best" if at == "last" else "last") is not None for run in finished)
        hint = f"; it is known with --at {'best' if at == 'last' else 'last'}" if elsewhere else ""
        raise ConfigError(
            f"expected a metric of the finished runs ({', '.join(sorted(known)) or 'there is none'}), "
            f"got --metric {metric}{hint}"
        )


def _attention(run: Run) -> str:
    assert run.config is not None
    try:
        return config.attention_label(run.config)
    except Exception:  # of another version of the project: whatever its configuration has not
        return str(run.facts.get("attention_label") or run.folder.name)


def _without_data_seed(runs: Sequence[tuple[Run, dict[str, str]]]) -> list[tuple[Run, dict[str, str]]]:
    """Return the runs without data.seed where it is that of the run, as a data set of files has it.

    Of generated scenes it is another key, even if the two agree in some of the runs.
    """

    def others(held: Mapping[str, str]) -> str:
        return config.digest({key: value for key, value in held.items() if key != "data.seed"})

    apart = {others(held) for run, held in runs if held.get("data.seed", str(run.seed)) != str(run.seed)}
    for _, held in runs:
        if others(held) not in apart:
            held.pop("data.seed", None)
    return list(runs)


def _one_a_seed(runs: Sequence[Run]) -> list[Run]:
    """Keep one run of each seed: a finished one if there is, and the one that was found last."""
    kept: dict[int, Run] = {}
    for run in runs:
        held = kept.get(run.seed)
        if held is not None:
            run, dropped = (held, run) if held.state == "finished" != run.state else (run, held)
            log.warning(
                "warning: %s and %s are the same run; the first counts, which is %s",
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


def _order(sort: Sort) -> Callable[[Row], Any]:
    def natural(row: Row) -> list[Any]:
        parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)", row.label)  # text and numbers take turns
        return [float(part) if place % 2 else part for place, part in enumerate(parts)]

    def by(row: Row) -> float | None:
        if sort == "score":
            return None if math.isnan(row.score.mean) else -row.score.mean
        if sort == "ms":
            return spread(row.measured("seconds_per_step")).mean if row.measured("seconds_per_step") else None
        return row.fact("attention_score_mib" if sort == "score_memory" else sort)

    def key(row: Row) -> Any:
        value = None if sort == "label" else by(row)
        return (value is None, value or 0.0, natural(row))

    return key


def _baseline(rows: Sequence[Row], label: str | None) -> Row | None:
    if label is None:
        return next((row for row in rows if row.attention == "dense"), rows[0] if rows else None)
    matching = [row for row in rows if row.label == label] or [row for row in rows if row.attention == label]
    if len(matching) != 1:
        what = "more than one" if matching else "none"
        raise ConfigError(
            f"expected --baseline to be one of {'; '.join(row.label for row in rows)}, got {label!r}, which is {what}"
        )
    return matching[0]


def _with_gap(row: Row, baseline: Row | None, confidence: float) -> Row:
    if baseline is None or row is baseline or not row.scores or not baseline.scores:
        return row
    if row.values.get("data.name") != baseline.values.get("data.name"):
        return row
    return replace(row, gap=difference(row.scores, baseline.scores, confidence))
