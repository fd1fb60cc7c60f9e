"""Measure speed: `python src/benchmark.py data cityscapes=/data/cityscapes ade20k=/data/ADEChallengeData2016`."""

import argparse
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from isaseg import config
from isaseg.errors import ConfigError, IsasegError

PEER = Path(".venv-peers/bin/python")


def main() -> int:
    """Run the measurement that is asked for; return the exit code: 0 done, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Our pipeline is timed with and without the cache, beside mmsegmentation's where "
        "`make bench-peers` has installed it; the processes take turns. Let nothing else run on the machine.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="data")
    data = commands.add_parser("data", help="samples a second of the training pipeline")
    data.add_argument("sets", nargs="+", metavar="NAME=ROOT", help="data sets and their folders")
    data.add_argument(
        "--workers", nargs="+", type=int, default=[0, 2], metavar="N", help="loader processes (0 2)"
    )
    data.add_argument("--samples", type=int, default=60, metavar="N", help="samples in a round (60)")
    data.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds (7)")
    data.add_argument(
        "--split",
        choices=("train", "val"),
        default="train",
        help="whose pictures are cropped as for training (train)",
    )
    data.add_argument("--peer", type=Path, default=PEER, metavar="PYTHON", help=f"Python with mmseg ({PEER})")
    data.add_argument(
        "--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder of results (outputs)"
    )
    arguments = parser.parse_args()
    try:
        return _data(arguments)
    except IsasegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {config.explain(error, command='src/benchmark.py data')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _data(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from isaseg.benchmark import data

    if min(arguments.rounds, arguments.samples) < 1 or min(arguments.workers) < 0:
        raise ConfigError("expected rounds and samples of at least 1 and workers of at least 0")
    if max(arguments.workers) > 0 and arguments.samples < 8:
        raise ConfigError(
            f"expected at least 8 samples where workers load them, got --samples {arguments.samples}"
        )
    peer = arguments.peer if arguments.peer.is_file() else None
    if peer is None:
        print(
            f"no mmsegmentation at '{arguments.peer}' (`make bench-peers` installs it): ours alone",
            file=sys.stderr,
        )
    rows = []
    for pair in arguments.sets:
        name, _, root = pair.partition("=")
        if not root:
            raise ConfigError(f"expected NAME=ROOT, such as cityscapes=/data/cityscapes, got '{pair}'")
        rows += data.measure(
            name,
            root,
            arguments.split,
            peer,
            arguments.workers,
            arguments.samples,
            arguments.rounds,
            arguments.output,
        )
    Console(width=140).print(data.table(rows, arguments.workers))
    path = arguments.output / "benchmark" / "data.json"
    data.save(rows, arguments.workers, path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
