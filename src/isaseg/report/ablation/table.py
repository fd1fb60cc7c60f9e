"""The table of the ablation: table.md for people, table.csv and table.json for programs."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isaseg.report.ablation.jobs import STEPS
from isaseg.report.ablation.results import LARGE, Result

_MUCH = 10  # points between bound and outcome, or between seeds, that are worth a remark

_HEADER = (
    "context",
    "mIoU %",
    "group acc. %",
    "far %",
    "bound, all / far %",
    "attention multiply-adds {map} / 128²",
    "score memory {map} / 128²",
    "ms a step",
    "steps",
    "converged",
)


def write_table(results: Sequence[Result], data: str, output: Path) -> str:
    """Write table.md, table.csv and table.json; return the Markdown."""
    records = [_record(result) for result in results]
    (output / "table.json").write_text(json.dumps(records, indent=2) + "\n")
    with (output / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    text = _markdown(results, data)
    (output / "table.md").write_text(text)
    return text


def _record(result: Result) -> dict[str, Any]:
    facts, bound = result.facts, result.facts.bound
    record: dict[str, Any] = {"row": result.row.name, "seeds": " ".join(str(run.seed) for run in result.runs)}
    for key in ("mIoU", "group_acc", "group_acc_far"):
        record[key], record[f"{key}_sd"] = (_rounded(value) for value in result.percent(f"val/{key}"))
    record["bound"], record["bound_far"] = (
        (None, None)
        if bound is None
        else (_rounded(100 * bound.group_acc), _rounded(100 * bound.group_acc_far))
    )
    for name, cost in (
        (f"{facts.side[0]}x{facts.side[1]}", facts.cost),
        (f"{LARGE}x{LARGE}", facts.cost_large),
    ):
        record[f"attention_mult_adds_{name}"] = cost.attention_mult_adds
        record[f"module_mult_adds_{name}"] = cost.mult_adds
        record[f"score_bytes_{name}"] = 4 * cost.score_entries
    record["ms_per_step"] = _rounded(result.milliseconds())
    record["steps"] = max(run.steps for run in result.runs)
    record["converged"], record["runs"] = sum(run.converged for run in result.runs), len(result.runs)
    return record


def _markdown(results: Sequence[Result], data: str) -> str:
    steps = " or ".join(str(s) for s in sorted({run.steps for result in results for run in result.runs}))
    seeds = " or ".join(str(n) for n in sorted({len(result.runs) for result in results}))
    parts = [f"# Context modules on {data.capitalize()}: {steps} steps, {seeds} seed{'s' * (seeds != '1')}\n"]
    settled = [result for result in results if result.converged]
    moving = [result for result in results if not result.converged]
    for title, group in (
        ("Accuracy", settled),
        ("Speed of learning, not accuracy: not all runs had converged", moving),
    ):
        if group:
            parts.append(f"## {title}\n\n{_rows(group)}\n")
    findings = _findings(results)
    if findings:
        parts.append(
            "## Against what was computed beforehand\n\n" + "\n".join(f"- {line}" for line in findings) + "\n"
        )
    parts.append("## How to read it\n\n" + "\n".join(f"- {line}" for line in _notes(results, data)) + "\n")
    return "\n".join(parts)


def _rows(results: Sequence[Result]) -> str:
    height, width = results[0].facts.side
    header = [title.format(map=f"{height}²" if height == width else f"{height}×{width}") for title in _HEADER]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for result in results:
        facts, bound = result.facts, result.facts.bound
        costs = (facts.cost, facts.cost_large)
        lines.append(
            [
                result.row.label,
                *(_spread(*result.percent(f"val/{key}")) for key in ("mIoU", "group_acc", "group_acc_far")),
                "–" if bound is None else f"{100 * bound.group_acc:.1f} / {100 * bound.group_acc_far:.1f}",
                " / ".join(_amount(cost.attention_mult_adds, 1000, "") for cost in costs),
                " / ".join(_amount(4 * cost.score_entries, 1024, "iB") for cost in costs),
                f"{result.milliseconds():.0f}",
                " or ".join(str(steps) for steps in sorted({run.steps for run in result.runs})),
                f"{sum(run.converged for run in result.runs)}/{len(result.runs)}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _findings(results: Sequence[Result]) -> list[str]:
    """Compare outcome and prediction, whichever way it falls."""
    lines = []
    by_name = {result.row.name: result for result in results}
    for result in results:
        if result.row.name.startswith("isa") and "dense" in by_name:
            gap = result.percent("val/mIoU")[0] - by_name["dense"].percent("val/mIoU")[0]
            verdict = "within" if abs(gap) <= 1 else "NOT within"
            lines.append(f"{result.row.label} minus dense: {gap:+.1f} points of mIoU, {verdict} 1 point.")
    for result in results:
        ends = sorted(100 * run.scores["val/mIoU"] for run in result.runs)
        if ends[-1] - ends[0] > _MUCH:
            lines.append(
                f"{result.row.label}: the seeds end far apart, at {', '.join(f'{end:.1f}' for end in ends)} mIoU; their "
                "mean stands for none of them."
            )
    for result in results:
        bound = result.facts.bound
        if bound is not None and bound.group_acc < 0.995:
            mean, limit = result.percent("val/group_acc")[0], 100 * bound.group_acc
            verdict = (
                f"below its bound of {limit:.1f} %" if mean <= limit else f"ABOVE its bound of {limit:.1f} %"
            )
            more = "; geometry would have allowed more" if limit - mean > _MUCH else ""
            lines.append(
                f"{result.row.label}: group accuracy {mean:.1f} %, {verdict}{more}. Chance is 33.3 %."
            )
    return lines


def _notes(results: Sequence[Result], data: str) -> list[str]:
    notes = [
        "Mean ± standard deviation over seeds (initialisation and order; same scenes), at the last step.",
        (
            f"Converged: at least {STEPS[data]} steps"
            + (
                ", twice or three times that for rows that learn Lamps more slowly,"
                if _has_longer(results)
                else ","
            )
            + " and mIoU moved by less than 1 point over the validations of the last fifth of them. The learning "
            "rate ends at 0, so a run that has not begun to learn may look converged: only a bound shows that a row "
            "cannot do better."
        ),
        (
            "Cost: one map, one forward pass, multiply and add counted as one; score memory in fp32 if all "
            "scores are held. The time is that of one core while the other cores train other rows."
        ),
        "The table shows what these modules do on this generated task; it ranks none of them in general.",
    ]
    if any(result.facts.bound is not None for result in results):
        pixels = results[0].facts.field_of_view
        notes.insert(
            2,
            "Bound: group accuracy if the lamp's colour is known wherever a pixel of the lamp is in reach, and "
            f"guessed among three elsewhere; from the field of view ({pixels} pixels) and the support of each "
            "module, both measured on the code. Far: object pixels more than 40 pixels from the lamp.",
        )
    if data == "lamps":
        notes.append(
            "Lamps was chosen after Cards, which ISA learned more slowly than dense attention, and its lamp was "
            "enlarged until ISA learned it: that ISA equals dense here is partly a choice of task."
        )
    return notes


def _has_longer(results: Sequence[Result]) -> bool:
    return any(result.row.times > 1 for result in results)


def _spread(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.1f}" if math.isnan(deviation) else f"{mean:.1f} ± {deviation:.1f}"


def _amount(value: float, base: int, unit: str) -> str:
    """Return three digits with a prefix, e.g. 6.29 M or 20 MiB."""
    if not value:
        return "0"
    power = 2 if value < base**3 else 3
    return f"{float(f'{value / base**power:.3g}'):g} {'MG'[power - 2]}{unit}"


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 2)
