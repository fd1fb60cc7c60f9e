"""The table in Markdown, CSV and LaTeX; the runs as CSV."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from isaseg.console import is_share, percent
from isaseg.report.intervals import Difference, Spread, spread
from isaseg.report.marks import code_of, label_of, stale_notes
from isaseg.report.rows import Comparison, Row, scale_of, scored, scores_of
from isaseg.report.runs import At, Run, number

NOTHING = "–"
_FEW = 5  # seeds whose scores have room in a table
_LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "−": "$-$", "–": "--"}
    | {"†": r"$^\dagger$", "‡": r"$^\ddagger$"}
)


class Column(NamedTuple):
    """A column of the table.

    Attributes:
        key: Its name in the CSV file.
        value: A row's plain value: a fraction, count, MiB, milliseconds or text; None if it is not known.
        title: Its title for people, "" if it is in the CSV file alone.
        show: A row's cell for people.
    """

    key: str
    value: Callable[[Row], Any]
    title: str = ""
    show: Callable[[Row], str] = str


def columns(comparison: Comparison) -> list[Column]:
    """Return all columns of the table."""
    metric, at, baseline, bounds = comparison.metric, comparison.at, comparison.baseline, comparison.bounds
    difference = f"difference to {baseline.label if baseline else NOTHING} [95 % interval]"
    share = partial(percent, digits=1)
    also = [column for key in comparison.also for column in _score_columns(key, key, with_unit(key), at)]
    return [
        Column("row", lambda row: row.label, "row", label_of),
        Column("stale", lambda row: " ".join(row.stale)),
        Column("finished", lambda row: row.count("finished"), "runs", _count),
        Column("failed", lambda row: row.count("failed")),
        Column("unfinished", lambda row: row.count("unfinished")),
        Column("seeds", lambda row: " ".join(map(str, row.scores))),
        Column("metric", lambda row: metric),
        Column("at", lambda row: at),
        *_score_columns("mean", metric, metric_name(comparison), at),
        _plain("scores", "each seed", partial(_each_seed, metric), str),
        Column("baseline", lambda row: int(row is baseline)),
        Column("difference", lambda row: row.gap and row.gap.value, difference, partial(_gap, comparison)),
        Column("low", lambda row: row.gap and number(row.gap.low)),
        Column("high", lambda row: row.gap and number(row.gap.high)),
        Column("interval", lambda row: row.gap and row.gap.how),
        *also,
        _plain("bound", "bound %", lambda row: bounds.get(row.label, (None, None))[0], share),
        _plain("far_bound", "far bound %", lambda row: bounds.get(row.label, (None, None))[1], share),
        _plain("parameters", "parameters", lambda row: row.cost("parameters"), amount),
        _plain("mult_adds", "multiply-adds", lambda row: row.cost("mult_adds"), amount),
        _plain("attention_mult_adds", "of attention", lambda row: row.cost("attention_mult_adds"), amount),
        _plain("attention_score_mib", "score memory", lambda row: row.cost("attention_score_mib"), _memory),
        _plain("peak_memory_mib", "peak memory", lambda row: row.cost("peak_memory_mib"), _memory),
        _plain("ms_per_step", "ms a step", lambda row: row.cost("ms_per_step"), "{:.0f}".format),
        _plain("steps", "steps", lambda row: row.steps, str),
        _plain("converged", "converged", lambda row: row.converged(metric), str),
    ]


def shown_columns(comparison: Comparison) -> list[Column]:
    """Return the columns for people: those that have a title and a known value."""
    found = [column for column in columns(comparison) if column.title]
    return [column for column in found if any(column.value(row) is not None for row in comparison.rows)]


def _score_columns(key: str, metric: str, title: str, at: At) -> list[Column]:
    def held(row: Row) -> Spread:
        return spread(list(scores_of(row.runs, metric, at).values()))

    return [
        Column(key, lambda row: number(held(row).mean), title, lambda row: _score(held(row), metric)),
        Column("sd" if key == "mean" else f"{key} sd", lambda row: number(held(row).sd)),
    ]


def _each_seed(metric: str, row: Row) -> str | None:
    """Return the scores of two to five seeds: a mean and a deviation describe no row whose seeds end far apart."""
    scores = [f"{scale_of(metric) * score:.{2 if is_share(metric) else 4}f}" for score in row.scores.values()]
    return " ".join(scores) if 1 < len(scores) <= _FEW else None


def _plain(key: str, title: str, value: Callable[[Row], Any], show: Callable[[Any], str]) -> Column:
    return Column(key, value, title, lambda row: NOTHING if value(row) is None else show(value(row)))


def amount(value: float) -> str:
    """Return three digits with a prefix, e.g. 6.29 M."""
    power = min(int(math.log10(abs(value)) // 3), 4) if abs(value) >= 1000 else 0
    return f"{float(f'{value / 1000**power:.3g}'):g} {' kMGT'[power]}".rstrip()


def _memory(mib: float) -> str:
    return f"{mib / 1024:.3g} GiB" if mib >= 1000 else f"{mib:.3g} MiB" if mib else "0"


def _count(row: Row) -> str:
    others = [f"{count} {state}" for state in ("failed", "unfinished") if (count := row.count(state))]
    return f"{row.count('finished')}" + (f" ({', '.join(others)})" if others else "")


def _score(held: Spread, metric: str) -> str:
    """Return mean ± standard deviation, a fraction in per cent."""
    digits = 2 if is_share(metric) else 4
    mean, sd = (f"{scale_of(metric) * value:.{digits}f}" for value in (held.mean, held.sd))
    return NOTHING if math.isnan(held.mean) else mean if math.isnan(held.sd) else f"{mean} ± {sd}"


def _gap(comparison: Comparison, row: Row) -> str:
    """Return the difference to the baseline with its interval."""
    if row.gap is None:
        return "baseline" if row is comparison.baseline else NOTHING
    return gap_text(row.gap, scale_of(comparison.metric), 2 if is_share(comparison.metric) else 4)


def gap_text(gap: Difference, scale: int = 100, digits: int = 2) -> str:
    """Return a difference with its interval, if it has one, times `scale`."""
    value, low, high = (f"{scale * number:+.{digits}f}".replace("-", "−") for number in gap[:3])
    return value if gap.how == "none" else f"{value} [{low}, {high}]"


def with_unit(metric: str) -> str:
    """Return a metric's name, with % if it is a fraction."""
    return f"{metric} %" if is_share(metric) else metric


def metric_name(comparison: Comparison) -> str:
    """Return the name of the metric with its unit and where it was taken."""
    where = "last step" if comparison.at == "last" else "best checkpoint"
    return f"{with_unit(comparison.metric)}, {where}"


def notes(comparison: Comparison) -> list[str]:
    """Return notes on how to read the table: what is averaged, what is paired, and what the costs refer to."""
    rows = comparison.rows
    at_last = "Scores of the last validation: no checkpoint is picked by the scenes on which it is scored (--at last)."
    at_best = "Scores of the checkpoint that is best on the scenes on which it is scored, hence optimistic (--at best)."
    found = [
        "Mean ± sample standard deviation over the seeds of finished runs; one seed has no deviation and no interval.",
        at_last if comparison.at == "last" else at_best,
    ]
    if "," in scored(rows):  # of both kinds
        found.append(
            f"The runs do not score the same checkpoint in the end: classes and pictures are of {scored(rows)}."
        )
    if any(row.gap is not None for row in rows):
        found.append(
            "Difference: per seed where both rows have the same seeds (paired t), else of the means (Welch's t); no "
            "interval if one of them has a single seed. The intervals are not corrected for multiple comparisons."
        )
    other = [row.label for row in rows if row.scores and row.gap is None and row is not comparison.baseline]
    if other and comparison.baseline is not None and comparison.baseline.scores:
        found.append(f"No difference to a baseline on other data: {'; '.join(other)}.")
    if comparison.bounds:
        found.append(
            "Bound: group accuracy if an object's group is known where a pixel of its lamp, or of the card of its hue, "
            "is in reach, and guessed among three elsewhere. Computed from the configuration alone: the field of view of "
            "the backbone and the support of each context module. Far: object pixels more than 40 pixels from that cue."
        )
    if any(row.converged(comparison.metric) is not None for row in rows):
        found.append(
            "Converged: the score moved by less than 1 point over the validations of the last fifth of the steps. A run "
            "that has not begun to learn may look converged, for its learning rate ends at 0. The other rows (*) show "
            "speed of learning, not accuracy."
        )
    found.append(
        "Cost: one image, one forward pass, multiply and add counted as one; score memory in float32 if all scores "
        "are held. ms a step: the mean of the runs' medians; peak memory: the largest of the runs."
    )
    finished = [run for row in rows for run in row.runs if run.state == "finished"]
    if devices := sorted({str(run.facts["device"]) for run in finished if run.facts.get("device")}):
        several = " Times are not comparable." if len(devices) > 1 else ""
        found.append(f"Trained on: {', '.join(devices)}.{several}")
    if comparison.differing:
        found.append(f"Keys that differ between the rows: {', '.join(comparison.differing)}.")
    return found + stale_notes(comparison)


def not_counted(comparison: Comparison) -> list[tuple[Run, str]]:
    """Return the runs that are part of no mean, failed ones first, each with a sentence."""
    runs = [run for row in comparison.rows for run in row.runs if run.state != "finished"]
    found = [(run, _sentence(run)) for run in (*runs, *comparison.loose)]
    return sorted(found, key=lambda item: ("failed", "unfinished", "finished").index(item[0].state))


def _sentence(run: Run) -> str:
    step = run.history.last_step
    if run.state == "failed":
        log, traceback = run.folder / "log.txt", run.folder / "failed.txt"
        where = f"log: {log}" if log.is_file() else f"traceback: {traceback}"
        return f"failed at step {step}: {run.error} ({where})"
    if run.state == "finished":
        return "finished, but in no row without a readable configuration"
    of = "" if run.max_steps is None else f" of {run.max_steps}"
    return f"unfinished, at step {step}{of}" if step else "unfinished, no step yet"


def markdown(comparison: Comparison) -> str:
    """Return the table, its notes and the runs that are not counted."""
    titles, lines = _grid(comparison)
    parts = [markdown_table(titles, lines) if lines else "No run can be tabulated."]
    left_out = [f"- {_piped(f'{run.folder}: {reason}')}" for run, reason in not_counted(comparison)]
    if left_out:
        parts.append("Not counted:\n\n" + "\n".join(left_out))
    parts.append("\n".join(f"- {_piped(note)}" for note in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    table = [titles, ["---", *["---:"] * (len(titles) - 1)], *lines]
    return "\n".join(f"| {' | '.join(map(_piped, line))} |" for line in table)


def latex(comparison: Comparison) -> str:
    r"""Return a booktabs `tabular`, the notes as comments."""
    titles, lines = _grid(comparison)
    comments = [f"% {' '.join(note.split())}" for note in notes(comparison)]
    head, *body = (" & ".join(map(_escaped, line)) + r" \\" for line in (titles, *lines))
    begin = f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}"
    end = ["\\bottomrule", "\\end{tabular}"]
    text = ["% needs \\usepackage{booktabs}", *comments, begin, "\\toprule", head, "\\midrule", *body, *end]
    return "\n".join(text) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return the table with plain numbers."""
    return csv_text([{c.key: c.value(row) for c in columns(comparison)} for row in comparison.rows])


def runs_csv(comparison: Comparison) -> str:
    """Return one line per run: its scores, and what is needed to find and judge it."""
    labelled = [(row.label, run) for row in comparison.rows for run in row.runs]
    records = []
    for label, run in [*labelled, *(("", run) for run in comparison.loose)]:
        record = {"row": label, "folder": str(run.folder), "seed": run.seed, "state": run.state}
        record |= {
            "metric": comparison.metric,
            **{at: run.score(comparison.metric, at) for at in ("last", "best")},
        }
        record |= {"last_step": run.history.last_step, "best_step": run.best_step}
        record["scored"] = run.scored if run.metrics else ""
        record |= {key: run.facts.get(key) for key in ("git_commit", "torch", "device", "started")}
        record["code"] = " ".join(f"{name}:{held}" for name, held in code_of(run).items())
        records.append({**record, "error": run.error})
    return csv_text(records)


def _grid(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    shown = shown_columns(comparison)
    return [c.title for c in shown], [[c.show(row) for c in shown] for row in comparison.rows]


def csv_text(records: Sequence[dict[str, Any]]) -> str:
    """Return records of the same keys as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([map(_cell, record) for record in records[:1]])
    writer.writerows([map(_cell, record.values()) for record in records])
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    text = _printable(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_LATEX)


def _piped(text: str) -> str:
    return re.sub(r"([|`<\\])", r"\\\1", _printable(" ".join(text.split())))


def _printable(text: str) -> str:
    """Return the text without characters that move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
