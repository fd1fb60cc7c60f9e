"""Measure context modules, and speed beside mmsegmentation: `python src/benchmark.py {attention,data,evaluate} ...`."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from isaseg import command
from isaseg.errors import ConfigError

PEER = Path(".venv-peers/bin/python")


def main() -> int:
    """Run the measurement that is asked for; return the exit code: 0 done, 2 bad input, others as in `command.run`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="data and evaluate measure beside mmsegmentation where `make peers` has installed it. Processes take "
        "turns: let nothing else run on the machine. Examples: attention --growth; attention --device cuda --sizes 97 "
        "128; data cityscapes=/data/cityscapes ade20k=/data/ADEChallengeData2016",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{attention,data,evaluate}")
    attention = commands.add_parser(
        "attention", help="parameters, multiply-adds, memory and time of every context module"
    )
    _attention_options(attention)
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
    for parsed in (data, evaluate):
        parsed.add_argument(
            "--peer", type=Path, default=PEER, metavar="PYTHON", help=f"Python with mmseg ({PEER})"
        )
    for parsed in (attention, data, evaluate):
        parsed.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds (7)")
        parsed.add_argument(
            "--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder of results (outputs)"
        )
    arguments = parser.parse_args()
    work = {"attention": _attention, "data": _data, "evaluate": _evaluate}[arguments.command]
    return command.run(partial(work, arguments), "train", "src/benchmark.py", "nothing is written")


def _attention_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Writes benchmark/attention.json and attention.md in the folder of results, with --growth attention.png too. "
        "Example: attention --growth --memory 16; attention --device cuda --dtype bfloat16 --sizes 64 97 128 256"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[128], metavar="S", help="sides of the map (128)"
    )
    parser.add_argument("--modules", nargs="+", metavar="NAME", help="rows of the table (all of them)")
    parser.add_argument(
        "--channels",
        nargs=2,
        type=int,
        default=[2048, 512],
        metavar=("IN", "C"),
        help="of the input and of the context module (2048 512)",
    )
    parser.add_argument("--train", action="store_true", help="forward and backward, two maps at a time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of everything (float32)",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the CPU (1)")
    parser.add_argument(
        "--growth", nargs="*", type=int, metavar="S", help="growth curves too, at these sides (32 to 512)"
    )
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="how much a process may take (nine tenths of what is free)"
    )
    parser.add_argument(
        "--seconds", type=int, default=20, metavar="S", help="that one size of a growth curve may take (20)"
    )


def _attention(arguments: argparse.Namespace) -> int:
    _check_attention(arguments)
    from isaseg.benchmark import attention, attention_figure, attention_report
    from isaseg.benchmark.attention_rows import ROWS, Setting

    names = arguments.modules or list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise ConfigError(f"expected --modules among {', '.join(ROWS)}, got '{unknown[0]}'")
    attention.check_device(arguments.device)
    channels = (arguments.channels[0], arguments.channels[1])
    setting = Setting(channels, 1 + arguments.train, arguments.train, arguments.device, arguments.dtype)
    limit = (
        attention.free_memory(arguments.device) if arguments.memory is None else int(1e9 * arguments.memory)
    )
    plan = attention.Plan(
        [name for name in ROWS if name in names],
        arguments.sizes,
        setting,
        arguments.threads,
        arguments.rounds,
        limit,
    )
    facts, entries = attention.measure(plan)
    curves = []
    folder = arguments.output / "benchmark"
    attention_report.show(plan, facts, entries)
    attention_report.save(plan, facts, entries, [], folder)  # growth takes longer, and may be cut
    if arguments.growth is not None:
        grown = replace(plan, sides=sorted(set(arguments.growth)) or attention.SIDES)
        curves = attention.grow(grown, arguments.seconds)
        attention_figure.plot_growth(curves, limit, folder / "attention.png")
        attention_report.show_growth(plan, curves)
        attention_report.save(plan, facts, entries, curves, folder)
    print(f"written: {folder / 'attention.json'}, attention.md" + (", attention.png" if curves else ""))
    return 0


def _check_attention(arguments: argparse.Namespace) -> None:
    sides = [*arguments.sizes, *(arguments.growth or [])]
    if min(sides) < 1 or min(arguments.rounds, arguments.threads, arguments.seconds, *arguments.channels) < 1:
        raise ConfigError("expected sides, rounds, threads, seconds and channels of at least 1")
    if arguments.channels[1] % 16:  # 8 groups of C / 2
        raise ConfigError(
            f"expected channels of the context module in 16s, got --channels {arguments.channels[1]}"
        )
    if arguments.memory is not None and arguments.memory <= 0:
        raise ConfigError(f"expected --memory above 0, got {arguments.memory}")


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
