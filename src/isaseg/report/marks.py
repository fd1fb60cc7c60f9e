"""Rows whose results are of other code or other files, by the facts of their runs: what marks them, and the footnotes."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from isaseg.report.rows import Comparison, Row, data_of
from isaseg.report.runs import Run
from isaseg.runs.stale import code_digests

MARKS = {"code": "†", "files": "‡"}


def with_stale(comparison: Comparison) -> Comparison:
    """Return the comparison with `stale` of each row.

    It has "code" if a finished run is of other code than is installed now, "files" if one is of other files than most
    runs on these data. Runs of older versions, without these facts, are not marked.
    """
    names = {name for row in comparison.rows for run in row.runs for name in code_of(run)}
    now = code_digests(sorted(names - {"isaseg"}))
    listed = Counter(
        (data_of(row), _files(run)) for row in comparison.rows for run in _finished(row) if _files(run)
    )
    usual = {data: files for (data, files), _ in reversed(listed.most_common())}

    def marked(row: Row) -> Row:
        runs = _finished(row)
        code = any(now.get(name, held) != held for run in runs for name, held in code_of(run).items())
        files = any(_files(run) not in ("", usual.get(data_of(row))) for run in runs)
        return replace(row, stale=tuple(key for key, is_so in (("code", code), ("files", files)) if is_so))

    new = {row: marked(row) for row in comparison.rows}
    baseline = None if comparison.baseline is None else new[comparison.baseline]
    return replace(comparison, rows=list(new.values()), baseline=baseline)


def stale_notes(comparison: Comparison) -> list[str]:
    """Return a footnote for each mark in use."""
    rows = {key: [row for row in comparison.rows if key in row.stale] for key in MARKS}
    found = []
    if rows["code"]:
        codes = {
            json.dumps(code_of(run)) for row in comparison.rows for run in _finished(row) if code_of(run)
        }
        count = "all runs are of the same code" if len(codes) == 1 else f"the runs are of {len(codes)} codes"
        found.append(
            f"† Computed by code other than what is installed now ({count}): {_labels(rows['code'])}."
        )
    if rows["files"]:
        found.append(
            f"‡ Computed from different files than most runs on these data: {_labels(rows['files'])}."
        )
    return found


def label_of(row: Row) -> str:
    """Return the label of a row with its marks."""
    return " ".join([row.label, *(MARKS[key] for key in row.stale)])


def code_of(run: Run) -> dict[str, str]:
    """Return the digests of the code that computed a run, by package; none for a run of an older version."""
    code = run.facts.get("code")
    return {str(name): str(held) for name, held in code.items()} if isinstance(code, dict) else {}


def _finished(row: Row) -> Sequence[Run]:
    return [run for run in row.runs if run.state == "finished"]


def _files(run: Run) -> str:
    files = run.facts.get("files")
    splits = (
        {key: files[key] for key in ("train", "val", "test") if key in files}
        if isinstance(files, dict)
        else {}
    )
    return json.dumps(splits, sort_keys=True) if splits else ""


def _labels(rows: Sequence[Row]) -> str:
    return "; ".join(row.label for row in rows)
