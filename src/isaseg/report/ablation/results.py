"""What is known of each row before training, and what its runs gave.

Scores are those of the last step: no checkpoint is picked by the scenes on which it is scored. A run counts
as converged if val/mIoU moves by less than one point (largest minus smallest) over the validations of the last
fifth of its steps, of which there must be two, and if it has no fewer steps than its row has by default. The
schedule ends at learning rate 0, so this is necessary and not sufficient: a run that has learned nothing yet may
look converged, the shorter the easier.
"""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from isaseg import config
from isaseg.errors import DataError
from isaseg.files import replace_file, sha256
from isaseg.models.block import Cost, conv_norm_act
from isaseg.report import reach
from isaseg.report.ablation.jobs import ROWS, STEPS, Job, Row, compose_job, is_finished, select_rows

LARGE = 128  # side of the second map for which the cost is quoted
_THIN = 4  # channels are enough to see who hears whom
_TAIL, _TOLERANCE = 0.8, 0.01
Curve = dict[int, float]


class Facts(NamedTuple):
    """What is known of a row before training.

    Attributes:
        side: Height and width of the map.
        cost: Cost at that size.
        cost_large: Cost at 128 x 128.
        bound: Group accuracy that geometry allows; None where no bound is known.
        field_of_view: Pixels that one feature sees without context.
        key: Differs where the bound may differ; "" where there is none.
    """

    side: tuple[int, int]
    cost: Cost
    cost_large: Cost
    bound: reach.Bound | None
    field_of_view: int
    key: str = ""


class Run(NamedTuple):
    """One finished run: scores of the last step (fractions), curve of val/mIoU, whether it had converged."""

    seed: int
    scores: dict[str, float]
    curve: Curve
    converged: bool
    steps: int


class Result(NamedTuple):
    """A row with what is known of it and its runs."""

    row: Row
    facts: Facts
    runs: list[Run]

    @property
    def converged(self) -> bool:
        """Whether all the runs had converged."""
        return all(run.converged for run in self.runs)

    def percent(self, key: str) -> tuple[float, float]:
        """Return mean and standard deviation over the seeds in per cent; NaN if there is nothing to average."""
        values = [100 * run.scores[key] for run in self.runs if key in run.scores]
        mean = statistics.fmean(values) if values else math.nan
        return mean, statistics.stdev(values) if len(values) > 1 else math.nan

    def milliseconds(self) -> float:
        """Return the time of a step, the mean over the seeds."""
        return statistics.fmean(1000 * run.scores["seconds_per_step"] for run in self.runs)


def measure(jobs: Sequence[Job], output: Path) -> dict[str, Facts]:
    """Compute reach and cost of every row from the modules themselves, before anything is trained.

    Bounds that `write_bounds` has left in `output` are taken from there, unless the row or the code has changed since.
    """
    first = {job.row.name: job for job in reversed(jobs)}
    known = _held(output).get("known", {})
    return {
        name: _facts(compose_job(first[name]), known) for name in dict.fromkeys(job.row.name for job in jobs)
    }


def _facts(cfg: DictConfig, known: Mapping[str, Sequence[float]]) -> Facts:
    make_attention = config.build(cfg.attention, "attention")
    backbone = config.build(cfg.backbone, "backbone")
    reduce = conv_norm_act(backbone.channels[-1], cfg.head.channels, 3)  # what ContextHead begins with
    fov = reach.field_of_view([backbone, reduce])
    height, width = (-(-side // fov.stride) for side in cfg.data.crop_size)
    cost = make_attention(cfg.head.channels).cost
    bound, key = None, ""
    if cfg.data.name == "lamps":
        key = _bound_key(cfg)
        if key in known:
            bound = reach.Bound(*known[key])
        else:
            support = reach.attention_support(make_attention(_THIN), height, width)
            source = config.build(cfg.data, "data").source("val")
            bound = reach.group_accuracy_bound(support, fov, source)
    return Facts((height, width), cost(height, width), cost(LARGE, LARGE), bound, fov.size[0], key)


def _bound_key(cfg: DictConfig) -> str:
    """Return a digest of all that a bound depends on, the code included."""
    package = Path(reach.__file__).parent
    code = {str(path): sha256(path) for path in sorted([*package.glob("*.py"), *package.glob("data/*.py")])}
    parts = {
        key: OmegaConf.to_container(cfg[key], resolve=True)
        for key in ("attention", "backbone", "head", "data")
    }
    return config.digest({**parts, "code": list(code.values())})


def _held(output: Path) -> dict[str, Any]:
    path = output / "bounds.json"
    held = json.loads(path.read_text()) if path.is_file() else {}
    return held if isinstance(held, dict) else {}


def write_bounds(facts: Mapping[str, Facts], output: Path) -> str:
    """Write bounds.json, before the training that it predicts, and return the same as text, "" if none."""
    bounds = {name: fact.bound._asdict() for name, fact in facts.items() if fact.bound is not None}
    if not bounds:
        return ""
    held = _held(output)  # of rows not asked for this time too
    pixels = next(iter(facts.values())).field_of_view
    known = {fact.key: list(fact.bound) for fact in facts.values() if fact.bound is not None}
    content = {
        "field_of_view": pixels,
        "bounds": {**held.get("bounds", {}), **bounds},
        "known": {**held.get("known", {}), **known},
    }
    with replace_file(output / "bounds.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    lines = [f"group accuracy that geometry allows (a feature sees {pixels} pixels):"]
    for name, bound in bounds.items():
        every, far = (100 * bound[key] for key in ("group_acc", "group_acc_far"))
        lines.append(f"  {name:14} {every:5.1f} %   far {far:5.1f} %")
    return "\n".join(lines) + "\n"


def read_results(jobs: Sequence[Job], facts: Mapping[str, Facts]) -> list[Result]:
    """Return the rows of which at least one of `jobs` is finished; a folder that holds another run does not count.

    Raises:
        DataError: If none is.
    """
    results = []
    for row in select_rows(list(facts)):
        runs = [read_run(job.folder, row) for job in jobs if job.row == row and is_finished(job)]
        if runs:
            results.append(Result(row, facts[row.name], runs))
    if not results:
        raise DataError(
            f"expected finished runs in {jobs[0].folder.parents[1]}/<row>/seed<n>, got none with these --steps, "
            "--seeds and --set; give those of the training, or run without --report-only"
        )
    return results


def rows_on_disk(output: Path) -> list[str]:
    """Return the names of the rows that have a finished run in `output`."""
    return [row.name for row in ROWS if list((output / row.name).glob("seed*/metrics.json"))]


def count_on_disk(output: Path) -> int:
    """Return the number of finished runs in `output`, whatever they are."""
    return len(list(output.glob("*/seed*/metrics.json")))


def read_run(folder: Path, row: Row) -> Run:
    """Read one finished run folder of a row.

    Raises:
        DataError: If its metrics.csv holds no validation.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    saved: Any = OmegaConf.load(folder / "config.yaml")
    steps = int(saved.trainer.max_steps)
    by_step: dict[int, dict[str, float]] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line.get("val/mIoU"):
                values = {k: float(v) for k, v in line.items() if k.startswith("val/") and v}
                # the first: at the end the best checkpoint is scored again under the last step's number
                by_step.setdefault(int(line["step"]), values)
    if not by_step:
        raise DataError(
            f"expected val/mIoU in {folder / 'metrics.csv'}, got none; delete the folder and train it again"
        )
    curve = {step: by_step[step]["val/mIoU"] for step in sorted(by_step)}
    last = max(by_step)
    scores = {**by_step[last], "seconds_per_step": float(metrics.get("seconds_per_step") or math.nan)}
    enough = steps >= STEPS.get(str(OmegaConf.select(saved, "data.name")), 0) * row.times
    return Run(
        int(folder.name.removeprefix("seed")), scores, curve, enough and is_converged(curve, steps), steps
    )


def is_converged(curve: Curve, steps: int) -> bool:
    """Tell whether mIoU moves by less than a point over the validations of the last fifth of `steps`."""
    tail = [value for step, value in curve.items() if step >= _TAIL * steps]
    return max(curve) >= steps and len(tail) > 1 and max(tail) - min(tail) < _TOLERANCE
