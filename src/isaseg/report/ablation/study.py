"""The ablation from beginning to end: bounds, then training, then table and figures."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from isaseg.errors import ConfigError
from isaseg.report.ablation import figures, jobs, results, table


@dataclass(frozen=True)
class Study:
    """What to compare.

    Attributes:
        data: lamps or cards.
        rows: Names of the rows; empty: the usual ones, or with `report_only` those on disk.
        seeds: Seeds of each row.
        steps: Optimizer steps of a run; some rows have a multiple of it.
        parallel: Runs at a time.
        output: Folder of runs, table and figures.
        dry: Few rows, scenes and steps.
        report_only: Train nothing.
        overrides: Further overrides for every run.
    """

    data: str
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    parallel: int
    output: Path
    dry: bool = False
    report_only: bool = False
    overrides: tuple[str, ...] = ()


def conduct(study: Study, train: Path, console: Console) -> tuple[str, int]:
    """Compute bounds and costs, train what is missing, write table and figures.

    Args:
        study: What to compare.
        train: The script `train.py`.
        console: Where progress is told.

    Returns:
        The table as Markdown, empty if there is no finished run, and the number of runs that failed.

    Raises:
        ConfigError: If a number is below 1 or a row unknown.
        DataError: If there is nothing to report, or a run folder is damaged.
    """
    if min(study.parallel, study.steps) < 1:
        raise ConfigError(
            f"expected --jobs and --steps of at least 1, got {study.parallel} and {study.steps}"
        )
    on_disk = results.rows_on_disk(study.output) if study.report_only else []
    rows = jobs.select_rows(study.rows or on_disk or jobs.default_rows(study.data, study.dry))
    overrides = [*(jobs.DRY_OVERRIDES if study.dry else ()), *study.overrides]
    runs = jobs.make_jobs(study.data, rows, study.seeds, study.steps, study.output, overrides)
    with console.status("computing reach and cost of every row"):
        facts = results.measure(runs, study.output)
    console.print(results.write_bounds(facts, study.output), highlight=False, end="")
    failed = [] if study.report_only else jobs.run_jobs(runs, train, study.parallel, console)
    if failed:
        names = ", ".join(job.name for job in failed)
        console.print(f"{len(failed)} of {len(runs)} runs failed: {names}", style="red", soft_wrap=True)
        if len(failed) == len(runs):
            return "", len(failed)
    found = results.read_results(runs, facts)
    left_out = results.count_on_disk(study.output) - sum(len(result.runs) for result in found)
    if left_out > 0:
        console.print(f"{left_out} runs of other rows, seeds, steps or settings are left out of the table")
    text = table.write_table(found, study.data, study.output)
    figures.plot_curves(found, study.output / "curves.png")
    figures.plot_cost(found, study.output / "cost.png")
    console.print(f"table.md, table.csv, table.json, curves.png, cost.png: in {study.output}", soft_wrap=True)
    return text, len(failed)
