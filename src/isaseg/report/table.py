"""The table in Markdown, CSV and LaTeX, and runs.csv with one line per run."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from isaseg.report.intervals import Spread, spread
from isaseg.report.rows import Comparison, Row, is_share, scale_of
from isaseg.report.runs import Run, number

NOTHING = "–"
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
}
_FACTS = ("parameters", "mult_adds", "context_mult_adds", "attention_mult_adds", "attention_score_mib")


def amount(value: float) -> str:
    """Return three digits with a prefix, e.g. 6.29 M."""
    power = min(int(math.log10(abs(value)) // 3), 4) if abs(value) >= 1000 else 0
    return f"{float(f'{value / 1000**power:.3g}'):g} {' kMGT'[power]}".rstrip()


def memory(mib: float) -> str:
    """Return MiB or GiB in three digits."""
    return f"{mib / 1024:.3g} GiB" if mib >= 1000 else f"{mib:.3g} MiB" if mib else "0"


_PLAIN: dict[str, tuple[str, Callable[[float], str]]] = {  # columns that show a number of `record`
    "bound": ("bound %", lambda share: f"{100 * share:.1f}"),
    "bound_far": ("far bound %", lambda share: f"{100 * share:.1f}"),
    "parameters": ("parameters", amount),
    "mult_adds": ("multiply-adds", amount),
    "attention_mult_adds": ("of attention", amount),
    "attention_score_mib": ("score memory", memory),
    "peak_memory_mib": ("peak memory", memory),
    "ms_per_step": ("ms a step", "{:.0f}".format),
    "steps": ("steps", str),
    "converged": ("converged", str),
}


def record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return a row as plain numbers: fractions, counts, MiB, milliseconds; None for what is not known."""
    gap, bound = row.gap, comparison.bounds.get(row.label, (None, None))
    others = {key: _also(comparison, row, key) for key in comparison.also}
    return {
        "row": row.label,
        "baseline": int(row is comparison.baseline),
        **{state: row.count(state) for state in ("finished", "failed", "unfinished")},
        "seeds": " ".join(map(str, row.scores)),
        "metric": comparison.metric,
        "at": comparison.at,
        "mean": number(row.score.mean),
        "sd": number(row.score.sd),
        "difference": gap and number(gap.value),
        "low": gap and number(gap.low),
        "high": gap and number(gap.high),
        "confidence": comparison.confidence,
        "interval": "" if gap is None else gap.how,
        **{key: number(held.mean) for key, held in others.items()},
        **{f"{key} sd": number(held.sd) for key, held in others.items()},
        "bound": bound[0],
        "bound_far": bound[1],
        **{key: row.fact(key) for key in _FACTS},
        "peak_memory_mib": max(row.measured("peak_memory_mib"), default=None),
        "ms_per_step": row.cost("ms"),
        "steps": row.steps,
        "converged": row.converged(comparison.metric),
        "devices": " or ".join(row.devices),
    }


def columns(comparison: Comparison) -> dict[str, tuple[str, list[str]]]:
    """Return the table for people: for each key of `record` that it shows, the title and the cells of a column."""
    rows, metric = comparison.rows, comparison.metric
    records = [record(comparison, row) for row in rows]
    baseline = comparison.baseline.label if comparison.baseline is not None else NOTHING
    difference = f"difference to {baseline} [{100 * comparison.confidence:g} % interval]"
    found = {
        "row": ("row", [row.label for row in rows]),
        "finished": ("runs", [_runs(row) for row in rows]),
        "mean": (metric_name(comparison), [score(row.score, metric) for row in rows]),
        "difference": (difference, [gap(comparison, row) for row in rows]),
    }
    for key in comparison.also:
        found[key] = key + " %" * is_share(key), [score(_also(comparison, row, key), key) for row in rows]
    for key, (title, show) in _PLAIN.items():
        values = [held[key] for held in records]
        if any(value is not None for value in values):  # a column that says nothing is left out
            found[key] = title, [NOTHING if value is None else show(value) for value in values]
    return found


def metric_name(comparison: Comparison) -> str:
    """Return the name of the metric with its unit and where it was taken."""
    where = "last step" if comparison.at == "last" else "best checkpoint"
    return f"{comparison.metric}{' %' * is_share(comparison.metric)}, {where}"


def notes(comparison: Comparison) -> list[str]:
    """Return how to read the table: what is averaged and paired, and what the costs are of."""
    rows = comparison.rows
    found = [
        "Mean ± sample standard deviation over the seeds of finished runs; one seed has no deviation and no interval.",
        "Scores of the last validation: no checkpoint is picked by the scenes on which it is scored (--at last)."
        if comparison.at == "last"
        else "Scores of the checkpoint with the best validation mIoU, picked by the scenes on which it is scored: too "
        "high rather than too low (--at best).",
    ]
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
            "Bound: group accuracy if the lamp's colour is known wherever a pixel of the lamp is in reach, and guessed "
            "among three elsewhere. Computed from the configuration alone: the field of view of the backbone and the "
            "support of each context module. Far: object pixels more than 40 pixels from the lamp."
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
    devices = sorted({device for row in rows for device in row.devices})
    if devices:
        several = " Times are not comparable." if len(devices) > 1 else ""
        found.append(f"Trained on: {', '.join(devices)}.{several}")
    if comparison.differing:
        found.append(f"Keys that differ between the rows: {', '.join(comparison.differing)}.")
    return found


def not_counted(comparison: Comparison) -> list[tuple[Run, str]]:
    """Return the runs that are part of no mean, failed ones first, each with a sentence."""
    runs = [run for row in comparison.rows for run in row.runs if run.state != "finished"]
    found = [(run, _sentence(run)) for run in (*runs, *comparison.loose)]
    return sorted(found, key=lambda item: ("failed", "unfinished", "finished").index(item[0].state))


def _sentence(run: Run) -> str:
    if run.state == "failed":
        log, traceback = run.folder / "log.txt", run.folder / "failed.txt"
        where = f"log: {log}" if log.is_file() else f"traceback: {traceback}"
        return f"failed at step {run.last_step}: {run.error} ({where})"
    if run.state == "finished":
        return "finished, but in no row without a readable configuration"
    of = "" if run.max_steps is None else f" of {run.max_steps}"
    return f"unfinished, at step {run.last_step}{of}" if run.last_step else "unfinished, no step yet"


def markdown(comparison: Comparison) -> str:
    """Return the table, its notes and the runs that are not counted."""
    titles, lines = _grid(comparison)
    table = [titles, ["---", *["---:"] * (len(titles) - 1)], *([_piped(c) for c in line] for line in lines)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in table)
    parts = [text if lines else "No run can be tabulated."]
    left_out = [f"- {_piped(str(run.folder))}: {_piped(text)}" for run, text in not_counted(comparison)]
    if left_out:
        parts.append("Not counted:\n\n" + "\n".join(left_out))
    parts.append("\n".join(f"- {_piped(note)}" for note in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return the table with raw numbers."""
    return _csv([record(comparison, row) for row in comparison.rows])


def runs_csv(comparison: Comparison) -> str:
    """Return one line per run, raw numbers."""
    return _csv(run_records(comparison))


def latex(comparison: Comparison) -> str:
    r"""Return a booktabs `tabular`, the notes as comments."""
    titles, lines = _grid(comparison)
    comments = [f"% {' '.join(note.split())}" for note in notes(comparison)]
    head, *body = (" & ".join(map(_latex, line)) + r" \\" for line in (titles, *lines))
    begin = f"\\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}"
    end = ["\\bottomrule", "\\end{tabular}"]
    text = ["% needs \\usepackage{booktabs}", *comments, begin, "\\toprule", head, "\\midrule", *body, *end]
    return "\n".join(text) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {"markdown": markdown, "csv": as_csv, "latex": latex}


def run_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return each run as plain numbers and texts: its scores, then the numbers of metrics.json and facts.json."""
    labelled = [(row.label, run) for row in comparison.rows for run in row.runs]
    records = []
    for label, run in [*labelled, *(("", run) for run in comparison.loose)]:
        record = {"row": label, "folder": str(run.folder), "seed": run.seed, "state": run.state}
        record |= {at: run.score(comparison.metric, at) for at in ("last", "best")}
        record |= {"last_step": run.last_step, "best_step": run.metrics.get("step")}
        record |= {key: run.metrics.get(key) for key in ("seconds_per_step", "peak_memory_mib")}
        record |= {key: run.facts.get(key) for key in (*_FACTS, "git_commit", "torch", "device", "started")}
        records.append({**record, "metric": comparison.metric, "error": run.error})
    return records


def score(held: Spread, metric: str) -> str:
    """Return mean ± standard deviation, a fraction in per cent."""
    digits = 2 if is_share(metric) else 4
    mean, sd = (f"{scale_of(metric) * value:.{digits}f}" for value in (held.mean, held.sd))
    return NOTHING if math.isnan(held.mean) else mean if math.isnan(held.sd) else f"{mean} ± {sd}"


def gap(comparison: Comparison, row: Row) -> str:
    """Return the difference to the baseline with its interval."""
    if row.gap is None:
        return "baseline" if row is comparison.baseline else NOTHING
    scale, digits = scale_of(comparison.metric), 2 if is_share(comparison.metric) else 4
    value, low, high = (f"{scale * v:+.{digits}f}".replace("-", "−") for v in row.gap[:3])
    return value if row.gap.how == "none" else f"{value} [{low}, {high}]"


def _grid(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    titles, cells = zip(*columns(comparison).values(), strict=True)
    return list(titles), [list(line) for line in zip(*cells, strict=True)]


def _also(comparison: Comparison, row: Row, metric: str) -> Spread:
    found = (run.score(metric, comparison.at) for run in row.runs)
    return spread([value for value in found if value is not None])


def _runs(row: Row) -> str:
    others = [f"{count} {state}" for state in ("failed", "unfinished") if (count := row.count(state))]
    return f"{row.count('finished')}" + (f" ({', '.join(others)})" if others else "")


def _csv(records: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in line.items()} for line in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _piped(text: str) -> str:
    return re.sub(r"([|`<\\])", r"\\\1", " ".join(text.split()))
