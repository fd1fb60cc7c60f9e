"""Measure speed and memory: `python src/benchmark.py {attention,step,data,evaluate,modules} ...`."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from isaseg.cli import command
from isaseg.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.speed import Plan

PEER = Path(".venv-peers/bin/python")


def main() -> int:
    """Run the measurement that is asked for; return the exit code: 0 done, 2 bad input, others as in `command.run`."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="All but modules measure beside mmsegmentation where `make peers` has installed it. Processes take "
        "turns: let nothing else run on the machine. Examples: attention --growth; step --rounds 3; attention --device "
        "cuda --sizes 97 128 256; data cityscapes=/data/cityscapes ade20k=/data/ADEChallengeData2016; modules --growth",
    )
    names = "{attention,step,data,evaluate,modules}"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    attention = commands.add_parser(
        "attention", help="the ISA block beside its peers and the machine's ceilings"
    )
    attention.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[64, 97, 128],
        metavar="S",
        help="sides of the map (64 97 128)",
    )
    attention.add_argument(
        "--channels", type=int, default=512, metavar="C", help="of the map, a multiple of 16 (512)"
    )
    attention.add_argument(
        "--growth", nargs="*", type=int, metavar="S", help="fit growth too, at these sides (64 128 256 512)"
    )
    attention.add_argument(
        "--no-dense", action="store_true", help="leave dense attention out, which takes longest"
    )
    step = commands.add_parser("step", help="a training step of ISANet R-50")
    step.add_argument("--size", type=int, default=512, metavar="S", help="side of the pictures (512)")
    step.add_argument("--batch", type=int, default=2, metavar="B", help="pictures in a step (2)")
    for parsed in (attention, step):
        parsed.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
        parsed.add_argument(
            "--types",
            nargs="+",
            choices=("float32", "bfloat16", "float16"),
            default=["float32", "bfloat16"],
            help="float32, or another under autocast (float32 bfloat16)",
        )
        parsed.add_argument("--threads", type=int, default=1, metavar="N", help="threads of the CPU (1)")
    modules = commands.add_parser(
        "modules", help="parameters, multiply-adds, memory and time of every context module"
    )
    _modules_options(modules)
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
    for parsed in (attention, step, data, evaluate):
        parsed.add_argument(
            "--peer", type=Path, default=PEER, metavar="PYTHON", help=f"Python with mmseg ({PEER})"
        )
    for parsed in (attention, step, data, evaluate, modules):
        parsed.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds (7)")
        parsed.add_argument(
            "--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder of results (outputs)"
        )
    arguments = parser.parse_args()
    work = {
        "attention": _attention,
        "step": _step,
        "data": _data,
        "evaluate": _evaluate,
        "modules": _modules,
    }[arguments.command]
    return command.run(partial(work, arguments), "nothing is written")


def _attention(arguments: argparse.Namespace) -> int:
    if min(*arguments.sizes, *(arguments.growth or []), arguments.rounds, arguments.threads) < 1:
        raise ConfigError("expected sides, rounds and threads of at least 1")
    if arguments.channels < 16 or arguments.channels % 16:
        raise ConfigError(f"expected channels in 16s, got --channels {arguments.channels}")
    plan = _plan(arguments, arguments.sizes, arguments.channels, not arguments.no_dense)
    from benchmarks import speed

    title = f"ISA block of {plan.channels} channels, groups of 8 x 8, {plan.threads} thread(s)"
    folder = arguments.output / "benchmark"
    facts, rows = speed.attention(plan)
    speed.show(title, rows)
    speed.save(title, facts, rows, [], folder, "attention")  # growth takes longer, and may be cut
    if arguments.growth is not None:
        sides = sorted(set(arguments.growth)) or speed.GROWN
        grown = speed.growth(plan, sides)
        lines = [
            f"{name} grows as N^{power:.2f} with the number of pixels N, from {sides[0]}² to {sides[-1]}²"
            for name, power in speed.exponents(grown).items()
        ]
        lines += [
            f"{r.work.replace('growing', 'side')}: {r.milliseconds / 1e3:.2f} s, {(r.bytes or 0) / 2**30:.2f} GiB"
            for r in grown
        ]
        print("\n".join(lines))
        speed.save(title, facts, [*rows, *grown], lines, folder, "attention")
    print(f"written: {folder / 'attention.json'}, attention.md")
    return 0


def _step(arguments: argparse.Namespace) -> int:
    if min(arguments.rounds, arguments.threads, arguments.batch) < 1 or arguments.size < 32:
        raise ConfigError("expected rounds, threads and batch of at least 1 and pictures of at least 32 x 32")
    plan = _plan(arguments, [], 512, False)
    from benchmarks import speed

    title = (
        f"training step, ISANet R-50, {arguments.batch} x {arguments.size} x {arguments.size}, 150 classes"
    )
    facts, rows = speed.step(plan, arguments.batch, arguments.size)
    speed.show(title, rows)
    folder = arguments.output / "benchmark"
    lines = speed.across(rows)
    print("\n".join(lines))
    speed.save(title, facts, rows, lines, folder, "step")
    print(f"written: {folder / 'step.json'}, step.md")
    return 0


def _plan(arguments: argparse.Namespace, sides: list[int], channels: int, dense: bool) -> "Plan":
    from benchmarks.modules import check_device
    from benchmarks.speed import Plan

    check_device(arguments.device)
    return Plan(
        sides,
        list(dict.fromkeys(arguments.types)),
        channels,
        arguments.threads,
        arguments.device,
        arguments.rounds,
        _peer(arguments),
        dense,
    )


def _modules_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Writes benchmark/modules.json and modules.md in the folder of results, with --growth modules.png too. "
        "Example: modules --growth --memory 16; modules --device cuda --dtype bfloat16 --sizes 64 97 128 256"
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


def _modules(arguments: argparse.Namespace) -> int:
    _check_modules(arguments)
    from benchmarks import modules, modules_figure, modules_report
    from benchmarks.modules_rows import ROWS, Setting

    names = arguments.modules or list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise ConfigError(f"expected --modules among {', '.join(ROWS)}, got '{unknown[0]}'")
    modules.check_device(arguments.device)
    channels = (arguments.channels[0], arguments.channels[1])
    setting = Setting(channels, 1 + arguments.train, arguments.train, arguments.device, arguments.dtype)
    limit = modules.free_memory(arguments.device) if arguments.memory is None else int(1e9 * arguments.memory)
    plan = modules.Plan(
        [name for name in ROWS if name in names],
        arguments.sizes,
        setting,
        arguments.threads,
        arguments.rounds,
        limit,
    )
    facts, entries = modules.measure(plan)
    curves = []
    folder = arguments.output / "benchmark"
    modules_report.show(plan, facts, entries)
    modules_report.save(plan, facts, entries, [], folder)  # growth takes longer, and may be cut
    if arguments.growth is not None:
        grown = replace(plan, sides=sorted(set(arguments.growth)) or modules.SIDES)
        curves = modules.grow(grown, arguments.seconds)
        modules_figure.plot_growth(curves, limit, folder / "modules.png")
        modules_report.show_growth(plan, curves)
        modules_report.save(plan, facts, entries, curves, folder)
    print(f"written: {folder / 'modules.json'}, modules.md" + (", modules.png" if curves else ""))
    return 0


def _check_modules(arguments: argparse.Namespace) -> None:
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

    from benchmarks import data

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
    from benchmarks import evaluate

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
