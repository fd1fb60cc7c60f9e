"""Compare runs: tables, figures and one page, from run folders alone; no account, no network, no training.

RUNS are run folders, folders above some, or the .sweep file of a sweep. The runs may be finished, failed or unfinished,
and of an older version. Runs that differ in the seed alone are one row.

Examples:
  isaseg compare outputs/lamps_isa                          all the runs of an experiment
  isaseg compare outputs/lamps_isa/group_size.sweep         those of one sweep
  isaseg compare outputs/lamps_isa --baseline isa-8x8 --metric val/group_acc --sort score
  isaseg compare outputs/lamps_isa/context.sweep --also val/group_acc val/group_acc_far --bounds
  isaseg compare outputs/lamps_isa --format latex > table.tex
Open index.html in a browser: it is a single file and requests nothing. It needs pip install 'isaseg[report]'.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from isaseg.cli import command
from isaseg.report.rows import SORTS, compare
from isaseg.report.runs import read_runs
from isaseg.report.table import FORMATS


def main(words: Sequence[str] | None = None) -> int:
    """Return 0 if everything is written, 2 for bad input, 130 if interrupted."""
    args = _parser().parse_args(words)
    return command.run(lambda: _compare(args), "the same command starts over")


def _compare(args: argparse.Namespace) -> int:
    from isaseg.report.write import write  # imports matplotlib: a second that --help need not wait for

    runs = read_runs(args.runs)
    comparison = compare(runs, args.metric, args.at, args.baseline, args.confidence, args.sort, args.also)
    if args.bounds:
        from isaseg.report.bounds import with_bounds  # imports torch

        comparison = with_bounds(comparison)
    write(comparison, args.output)
    sys.stdout.write(FORMATS[args.format](comparison))
    print(f"{len(runs)} runs; tables, figures and the page are in {args.output}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("compare", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, folders above some, .sweep files")
    output = Path("outputs", "compare")
    add("--output", type=Path, default=output, metavar="DIR", help="default: outputs/compare")
    add("--metric", default="val/mIoU", help="what is compared (default: val/mIoU)")
    add("--also", nargs="+", default=[], metavar="METRIC", help="further metrics, a column each")
    add(
        "--bounds", action="store_true", help="a column with the group accuracy that geometry allows on Lamps"
    )
    add("--baseline", metavar="LABEL", help="row to subtract (default: dense if there, else the first)")
    at = (
        "score of the last validation (default), or of the best checkpoint, which the same scenes have picked"
    )
    add("--at", choices=("last", "best"), default="last", help=at)
    add("--confidence", type=_fraction, default=0.95, metavar="P", help="of the intervals (default: 0.95)")
    add("--sort", choices=SORTS, default="label", help="order of the rows (default: label)")
    add("--format", choices=FORMATS, default="markdown", help="of what is printed")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text}")
    return value
