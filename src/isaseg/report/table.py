"""The table in Markdown, CSV and LaTeX, and runs.csv with a line for each run."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from isaseg.report.intervals import spread
from isaseg.report.rows import Comparison, Row, is_share
from isaseg.report.runs import Run

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


def record(comparison: Comparison, row: Row) -> dict[str, Any]:
    """Return what is known of a row as plain numbers: fractions, counts, MiB, milliseconds; None where nothing is."""
    gap, times, peaks = row.gap, row.measured("seconds_per_step"), row.measured("peak_memory_mib")
    return {
        "row": row.label,
        "baseline": int(row is comparison.baseline),
        "finished": row.count("finished"),
        "failed": row.count("failed"),
        "unfinished": row.count("unfinished"),
        "seeds": " ".join(map(str, row.scores)),
        "metric": comparison.metric,
        "at": comparison.at,
        "mean": _known(row.score.mean),
        "sd": _known(row.score.sd),
        "difference": None if gap is None else _known(gap.value),
        "low": None if gap is None else _known(gap.low),
        "high": None if gap is None else _known(gap.high),
        "confidence": comparison.confidence,
        "interval": "" if gap is None else gap.how,
        "parameters": row.fact("parameters"),
        "mult_adds": row.fact("mult_adds"),
        "context_mult_adds": row.fact("context_mult_adds"),
        "attention_mult_adds": row.fact("attention_mult_adds"),
        "attention_score_mib": row.fact("attention_score_mib"),
        "peak_memory_mib": max(peaks, default=None),
        "ms_per_step": 1000 * spread(times).mean if times else None,
        "steps": row.steps,
        "devices": " or ".join(row.devices),
    }


def cells(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of the table for people."""
    per_cent = is_share(comparison.metric)
    name = metric_name(comparison)
    baseline = comparison.baseline.label if comparison.baseline is not None else NOTHING
    records = [record(comparison, row) for row in comparison.rows]
    header = ["row", "runs", name, f"difference to {baseline} [{100 * comparison.confidence:g} % interval]"]
    header += ["parameters", "multiply-adds, network / attention", "score memory"]
    with_peak = any(held["peak_memory_mib"] is not None for held in records)
    header += ["peak memory"] * with_peak + ["ms a step", "steps"]
    lines = []
    for row, held in zip(comparison.rows, records, strict=True):
        line = [row.label, _runs(row), score(row, per_cent), gap(comparison, row)]
        line += [amount(held["parameters"])]
        line += [f"{amount(held['mult_adds'])} / {amount(held['attention_mult_adds'])}"]
        line += [memory(held["attention_score_mib"])]
        line += [memory(held["peak_memory_mib"])] * with_peak
        line += [_format(held["ms_per_step"], "{:.0f}"), _format(held["steps"], "{:.0f}")]
        lines.append(line)
    return header, lines


def metric_name(comparison: Comparison) -> str:
    """Return the name of the metric with its unit and where it was taken."""
    where = "last step" if comparison.at == "last" else "best checkpoint"
    return f"{comparison.metric}{' %' if is_share(comparison.metric) else ''}, {where}"


def notes(comparison: Comparison) -> list[str]:
    """Return how to read the table: what is averaged, what was paired, what a cost is of."""
    rows = comparison.rows
    found = [
        "Mean ± sample standard deviation over the seeds of finished runs; one seed has no deviation and no interval.",
        (
            "Scores of the last validation: no checkpoint is picked by the scenes on which it is scored (--at last)."
            if comparison.at == "last"
            else "Scores of the checkpoint with the best validation mIoU, picked by the scenes on which it is scored: "
            "too high rather than too low (--at best)."
        ),
    ]
    for how, meaning in (
        ("paired", "Difference of each seed (paired t)"),
        ("Welch", "Difference of the means, for the seeds are not the same (Welch's t)"),
        ("none", "No interval, for one side has a single seed"),
    ):
        members = [row.label for row in rows if row.gap is not None and row.gap.how == how]
        if members:
            found.append(f"{meaning}: {'; '.join(members)}.")
    if sum(row.gap is not None and row.gap.how != "none" for row in rows) > 1:
        found.append("Each interval stands for itself: none is widened for there being several.")
    other = [row.label for row in rows if row.scores and row.gap is None and row is not comparison.baseline]
    if other and comparison.baseline is not None and comparison.baseline.scores:
        found.append(f"No difference to a baseline on other data: {'; '.join(other)}.")
    found.append(
        "Cost: one image, one forward pass, multiply and add counted as one; score memory in float32 if all scores "
        "are held. ms a step: the mean of the runs' medians; peak memory: the largest of the runs."
    )
    devices = sorted({device for row in rows for device in row.devices})
    if devices:
        found.append(
            f"Trained on: {', '.join(devices)}." + (" Times do not compare." if len(devices) > 1 else "")
        )
    if comparison.differing:
        found.append(f"Keys that differ between the rows: {', '.join(comparison.differing)}.")
    return found


def unlucky(comparison: Comparison) -> list[tuple[Run, str]]:
    """Return the runs that count in no mean, the failed ones first, each with a sentence."""
    runs = [run for row in comparison.rows for run in row.runs] + list(comparison.loose)
    failed = [
        (run, f"failed at step {run.last_step}: {run.error}{_log(run)}")
        for run in runs
        if run.state == "failed"
    ]
    others = [
        (
            run,
            f"unfinished, at step {run.last_step}{_of(run)}" if run.last_step else "unfinished, no step yet",
        )
        for run in runs
        if run.state == "unfinished"
    ]
    loose = [
        (run, "finished, and in no row without its configuration") for run in comparison.loose if run.metrics
    ]
    return failed + others + loose


def markdown(comparison: Comparison) -> str:
    """Return the table, its notes and the runs that are not finished."""
    header, lines = cells(comparison)
    table = [header, ["---", *["---:"] * (len(header) - 1)], *([_piped(c) for c in line] for line in lines)]
    parts = (
        ["\n".join(f"| {' | '.join(line)} |" for line in table)] if lines else ["No run can be tabulated."]
    )
    if unlucky(comparison):
        listed = (f"- {_piped(str(run.folder))}: {_piped(sentence)}" for run, sentence in unlucky(comparison))
        parts.append("Not counted:\n\n" + "\n".join(listed))
    parts.append("\n".join(f"- {_piped(note)}" for note in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
    """Return the table with raw numbers."""
    return _csv([record(comparison, row) for row in comparison.rows])


def runs_csv(comparison: Comparison) -> str:
    """Return a line for each run, raw numbers."""
    labelled = [(row.label, run) for row in comparison.rows for run in row.runs]
    labelled += [("", run) for run in comparison.loose]
    return _csv([_run_record(label, run, comparison.metric) for label, run in labelled])


def latex(comparison: Comparison) -> str:
    r"""Return a booktabs `tabular`, the notes as comments."""
    header, lines = cells(comparison)
    comments = [f"% {' '.join(note.split())}" for note in notes(comparison)]
    body = [" & ".join(_latex(cell) for cell in line) + r" \\" for line in (header, *lines)]
    rows = [
        "% needs \\usepackage{booktabs}",
        *comments,
        f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        "\\toprule",
        body[0],
        "\\midrule",
        *body[1:],
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(rows) + "\n"


FORMATS: dict[str, Callable[[Comparison], str]] = {"markdown": markdown, "csv": as_csv, "latex": latex}


def score(row: Row, per_cent: bool) -> str:
    """Return mean ± standard deviation."""
    scale, digits = (100, 2) if per_cent else (1, 4)
    if math.isnan(row.score.mean):
        return NOTHING
    mean = f"{scale * row.score.mean:.{digits}f}"
    return mean if math.isnan(row.score.sd) else f"{mean} ± {scale * row.score.sd:.{digits}f}"


def gap(comparison: Comparison, row: Row) -> str:
    """Return the difference to the baseline with its interval."""
    if row.gap is None:
        return "baseline" if row is comparison.baseline else NOTHING
    scale, digits = (100, 2) if is_share(comparison.metric) else (1, 4)
    value, low, high = (f"{scale * v:+.{digits}f}".replace("-", "−") for v in row.gap[:3])
    return value if row.gap.how == "none" else f"{value} [{low}, {high}]"


def amount(value: float | None) -> str:
    """Return three digits with a prefix, e.g. 6.29 M."""
    if value is None:
        return NOTHING
    power = min(int(math.log10(abs(value)) // 3), 4) if abs(value) >= 1000 else 0
    return f"{float(f'{value / 1000**power:.3g}'):g} {' kMGT'[power]}".rstrip()


def memory(mib: float | None) -> str:
    """Return MiB or GiB in three digits."""
    if mib is None:
        return NOTHING
    if not mib:
        return "0"
    return f"{mib / 1024:.3g} GiB" if mib >= 1000 else f"{mib:.3g} MiB"


def _runs(row: Row) -> str:
    others = [f"{row.count(state)} {state}" for state in ("failed", "unfinished") if row.count(state)]
    return f"{row.count('finished')}" + (f" ({', '.join(others)})" if others else "")


def _run_record(label: str, run: Run, metric: str) -> dict[str, Any]:
    held = {key: run.facts.get(key) for key in ("parameters", "mult_adds", "attention_mult_adds")}
    about = {key: run.facts.get(key) for key in ("git_commit", "torch", "device", "started")}
    return {
        "row": label,
        "folder": str(run.folder),
        "seed": run.seed,
        "state": run.state,
        "metric": metric,
        "last": run.score(metric, "last"),
        "best": run.score(metric, "best"),
        "last_step": run.last_step,
        "best_step": run.metrics.get("step"),
        "seconds_per_step": run.metrics.get("seconds_per_step"),
        "peak_memory_mib": run.metrics.get("peak_memory_mib"),
        **held,
        **about,
        "error": run.error,
    }


def _log(run: Run) -> str:
    path = run.folder / "log.txt"
    return f" (log: {path})" if path.is_file() else f" (all of it: {run.folder / 'failed.txt'})"


def _of(run: Run) -> str:
    return "" if run.max_steps is None else f" of {run.max_steps}"


def _csv(records: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in record.items()} for record in records)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _piped(text: str) -> str:
    return re.sub(r"([|`<\\])", r"\\\1", " ".join(text.split()))


def _format(value: float | None, pattern: str) -> str:
    return NOTHING if value is None else pattern.format(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
