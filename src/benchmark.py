"""Measure speed beside mmsegmentation: `python src/benchmark.py {data|evaluate} ...`."""

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
        epilog="Beside mmsegmentation where `make peers` has installed it; the processes take turns. Let nothing else "
        "run on the machine. Example: data cityscapes=/data/cityscapes ade20k=/data/ADEChallengeData2016",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{data,evaluate}")
    data = commands.add_parser(
        "data", help="samples a second of the training pipeline, with and without the cache"
    )
    data.add_argument("sets", nargs="+", metavar="NAME=ROOT", help="data sets and their folders")
    data.add_argument(
        "--workers", nargs="+", type=int, default=[0, 2], metavar="N", help="loader processes (0 2)"
    )
    data.add_argument("--samples", type=int, default=60, metavar="N", help="samples in a round (60)")
    data.add_argument(
        "--split",
        choices=("train", "val"),
        default="train",
        help="whose pictures are cropped as for training (train)",
    )
    evaluate = commands.add_parser(
        "evaluate", help="time and memory from logits to scores, and of the network"
    )
    evaluate.add_argument(
        "--size", nargs=2, type=int, default=[512, 1024], metavar=("H", "W"), help="of the picture (512 1024)"
    )
    for command in (data, evaluate):
        command.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds (7)")
        command.add_argument(
            "--peer", type=Path, default=PEER, metavar="PYTHON", help=f"Python with mmseg ({PEER})"
        )
        command.add_argument(
            "--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder of results (outputs)"
        )
    arguments = parser.parse_args()
    try:
        return {"data": _data, "evaluate": _evaluate}[arguments.command](arguments)
    except IsasegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {config.explain(error, command='src/benchmark.py')}", file=sys.stderr)
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
    peer = _peer(arguments)
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


def _evaluate(arguments: argparse.Namespace) -> int:
    from isaseg.benchmark import evaluate

    if min(arguments.rounds, *arguments.size) < 1 or min(arguments.size) < 32:
        raise ConfigError("expected rounds of at least 1 and a picture of at least 32 x 32 pixels")
    rows = evaluate.measure(_peer(arguments), arguments.size, arguments.rounds)
    evaluate.show(rows)
    path = arguments.output / "benchmark" / "evaluate.json"
    evaluate.save(rows, path)
    print(f"written: {path}")
    return 0


def _peer(arguments: argparse.Namespace) -> Path | None:
    if arguments.peer.is_file():
        return Path(arguments.peer)
    print(f"no mmsegmentation at '{arguments.peer}' (`make peers` installs it): ours alone", file=sys.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
