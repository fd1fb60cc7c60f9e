"""Compare runs: tables, figures and one page, from run folders alone; no account, no network, no training.

RUNS are run folders, folders above some, or the .sweep file of a sweep. The runs may be finished, failed or unfinished,
and of an older version. Runs that differ in the seed alone are one row. † marks results of other code than is
installed, ‡ of other files than most runs on these data.

Examples:
  isaseg compare outputs/lamps_isa                          all the runs of an experiment
  isaseg compare outputs/lamps_isa/group_size.sweep         those of one sweep
  isaseg compare outputs/lamps_isa --baseline isa-8x8 --metric val/group_acc
  isaseg compare outputs/lamps_isa/context.sweep --also val/group_acc val/group_acc_far --bounds
Markdown is printed; --output has it too, and CSV, LaTeX, figures and the page. Open index.html in a browser: it is a
single file, requests nothing, and needs pip install 'isaseg[report]'.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from isaseg.cli import command
from isaseg.report.marks import with_stale
from isaseg.report.rows import compare
from isaseg.report.runs import read_runs
from isaseg.report.table import markdown


def main(words: Sequence[str] | None = None) -> int:
    """Return 0 if everything is written, 2 for bad input, 130 if interrupted."""
    args = _parser().parse_args(words)
    return command.run(lambda: _compare(args), "the same command starts over")


def _compare(args: argparse.Namespace) -> int:
    from isaseg.report.write import write  # imports matplotlib: a second that --help need not wait for

    runs = read_runs(args.runs)
    split = args.metric.partition("/")[0]
    also = [
        metric
        for metric in args.also or (f"{split}/boundary_mIoU", f"{split}/image_mIoU")
        if metric != args.metric
    ]
    comparison = with_stale(compare(runs, args.metric, args.at, args.baseline, also))
    if args.bounds:
        from isaseg.report.reach import with_bounds  # imports torch

        comparison = with_bounds(comparison)
    write(comparison, args.output)
    sys.stdout.write(markdown(comparison))
    print(f"{len(runs)} runs; everything is in {args.output}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("compare", __doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, folders above some, .sweep files")
    output = Path("outputs", "compare")
    add("--output", type=Path, default=output, metavar="DIR", help="default: outputs/compare")
    add("--metric", default="val/mIoU", help="what is compared (default: val/mIoU)")
    help_also = "further metrics, a column each (default: boundary_mIoU and image_mIoU of the metric's split)"
    add("--also", nargs="+", metavar="METRIC", help=help_also)
    add(
        "--bounds",
        action="store_true",
        help="columns with the group accuracy that geometry allows on Lamps and Cards",
    )
    add("--baseline", metavar="LABEL", help="row to subtract (default: dense if there, else the first)")
    at = (
        "score of the last validation (default), or of the best checkpoint, which the same scenes have picked"
    )
    add("--at", choices=("last", "best"), default="last", help=at)
    return parser
