"""Compare the context modules on embedded data, over several seeds; ends with a table and two figures."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from isaseg.cli import command
from isaseg.report.ablation.jobs import DEFAULT_ROWS, DRY_STEPS, ROWS, STEPS

if TYPE_CHECKING:
    from isaseg.report.ablation.study import Study

_EXAMPLES = """Examples:
  isaseg ablation                    the rows of Lamps over 3 seeds
  isaseg ablation --data cards       ISA 8 and dense on Cards
  isaseg ablation --rows isa-8 dense --seeds 0 1 2 3 4
  isaseg ablation --dry              the same path in a minute; its numbers mean nothing
  isaseg ablation --report-only      table and figures again, from those of these runs that are on disk
The same command again trains only what is missing. What a run said is in <output>/<row>/seed<n>/log.txt.
rows: """


def main(words: Sequence[str] | None = None) -> int:
    """Return 0 if all is done, 1 if a run failed, 2 for bad input, 130 or 143 if interrupted."""
    args = _arguments(words)
    with command.fast_imports():  # imports torch: seconds that --help need not wait for
        from isaseg.report.ablation.study import Study

    study = Study(
        data=args.data,
        rows=tuple(args.rows),
        seeds=tuple(dict.fromkeys(args.seeds or ([0] if args.dry else [0, 1, 2]))),
        steps=(DRY_STEPS if args.dry else STEPS[args.data]) if args.steps is None else args.steps,
        parallel=args.jobs,
        output=args.output or Path("outputs", "ablation", args.data + ("-dry" if args.dry else "")),
        dry=args.dry,
        report_only=args.report_only,
        overrides=tuple(args.set),
    )
    return command.run(partial(_conduct, study), "the same command continues")


def _conduct(study: "Study") -> int:
    from isaseg.report.ablation.study import conduct

    text, failed = conduct(study, Path(__file__).with_name("train.py"), Console(stderr=True))
    sys.stdout.write(text)
    return 1 if failed else 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    rows = ", ".join(row.name for row in ROWS)
    parser = command.parser("ablation", f"{__doc__}\n\n{_EXAMPLES}{rows}")
    add = parser.add_argument
    add("--data", choices=sorted(STEPS), default="lamps", help="data set (default: lamps)")
    lengths = ", ".join(f"{steps} on {data}" for data, steps in STEPS.items())
    usual = "; ".join(f"{data}: {' '.join(names)}" for data, names in DEFAULT_ROWS.items())
    add("--rows", nargs="+", default=[], metavar="ROW", help=f"rows (default: {usual})")
    add("--seeds", nargs="+", type=int, metavar="N", help="seeds (default: 0 1 2)")
    add(
        "--steps",
        type=int,
        help=f"optimizer steps of a run (default: {lengths}); two or three times as many for slow rows",
    )
    add("--jobs", type=int, default=os.cpu_count(), help="runs at a time, a thread each (default: all cores)")
    add("--output", type=Path, help="folder (default: outputs/ablation/<data>; --dry appends -dry)")
    add("--dry", action="store_true", help="two rows, one seed, few steps and scenes: does it run at all?")
    add(
        "--report-only",
        action="store_true",
        help="no training; table and figures of those runs that are on disk",
    )
    add(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides for all runs, e.g. optim.lr=2e-3"
    )
    return parser.parse_args(words)
