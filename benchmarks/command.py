"""The command line of the benchmarks: `python src/benchmark.py {attention,step,data,evaluate,modules} ...`.

It imports no torch, so that --help answers at once.
"""

import importlib
import sys
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, ArgumentTypeError, Namespace
from argparse import RawDescriptionHelpFormatter as Raw
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from isaseg.cli import command

_TYPES = ("float32", "bfloat16", "float16")
_EPILOG = """\
Results are printed and written to OUTPUT/benchmark, as JSON and as Markdown. All but `modules` measure beside
mmsegmentation where `make peers` has installed it. Processes take turns: run nothing else on the machine.

examples:
  python src/benchmark.py attention --growth
  python src/benchmark.py attention --device cuda --sizes 97 128 256
  python src/benchmark.py step --rounds 3
  python src/benchmark.py data cityscapes=/data/cityscapes ade20k=/data/ADEChallengeData2016
  python src/benchmark.py evaluate --size 256 512
  python src/benchmark.py modules --growth --memory 16
  python src/benchmark.py modules --device cuda --dtype bfloat16 --sizes 128 256
"""


def main() -> int:
    """Run the benchmark that is asked for; return the exit code: 0 done, 2 bad input, others as in `command.run`."""
    options = _parser().parse_args()
    return command.run(partial(_measure, options), "nothing is written")


def _measure(options: Namespace) -> int:
    options.folder = options.output / "benchmark"
    if "peer" in options and not options.peer.is_file():
        print(
            f"no mmsegmentation at '{options.peer}' (`make peers` installs it): ours alone", file=sys.stderr
        )
        options.peer = None
    importlib.import_module(f"benchmarks.{options.command}").benchmark(options)
    return 0


class _Help(Raw, ArgumentDefaultsHelpFormatter):
    pass


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def _at_least(least: int, multiple: int = 1) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text) if text.removeprefix("-").isdigit() else least - 1
        if value < least or value % multiple:
            of = f"a multiple of {multiple}" if multiple > 1 else f"an integer of at least {least}"
            raise ArgumentTypeError(f"expected {of}, got '{text}'")
        return value

    return number


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise ArgumentTypeError(f"expected a number above 0, got '{text}'")


def _parser() -> ArgumentParser:
    parser = _Parser(description="Measure speed and memory.", epilog=_EPILOG, formatter_class=_Help)
    commands = parser.add_subparsers(dest="command", required=True, metavar="BENCHMARK")
    some, channels = _at_least(1), _at_least(16, 16)

    def start(name: str, text: str) -> Callable[..., object]:
        made = commands.add_parser(name, help=text, description=text, epilog=_EPILOG, formatter_class=_Help)
        add = made.add_argument
        add("--rounds", type=some, default=7, metavar="N", help="rounds in which the processes take turns")
        add("--output", type=Path, default=Path("outputs"), metavar="DIR", help="folder of results")
        if name != "modules":
            peer = Path(".venv-peers/bin/python")
            add("--peer", type=Path, default=peer, metavar="PYTHON", help="Python that has mmsegmentation")
        if name not in ("data", "evaluate"):
            add("--device", choices=("cpu", "cuda"), default="cpu", help="where everything runs")
            add("--threads", type=some, default=1, metavar="N", help="threads of the CPU")
        if name in ("attention", "step"):
            types = ["float32", "bfloat16"]
            add("--types", nargs="+", choices=_TYPES, default=types, help="all but float32 under autocast")
        return add

    add = start("attention", "the ISA block, beside its peers and the ceilings of the machine")
    add("--sizes", nargs="+", type=some, default=[64, 97, 128], metavar="S", help="sides of the map")
    add("--channels", type=channels, default=512, metavar="C", help="channels of the map")
    add(
        "--growth",
        nargs="*",
        type=some,
        metavar="S",
        help="also fit growth, at 64 128 256 512 or these sides",
    )
    add("--no-dense", action="store_true", help="leave out dense attention, which takes longest")

    add = start("step", "a training step of ISANet R-50")
    add("--size", type=_at_least(32), default=512, metavar="S", help="side of the images")
    add("--batch", type=some, default=2, metavar="B", help="images in a step")

    add = start("data", "training samples a second, with and without the cache")
    add("sets", nargs="+", metavar="NAME=ROOT", help="data sets and their folders")
    add("--workers", nargs="+", type=_at_least(0), default=[0, 2], metavar="N", help="loader processes")
    add("--samples", type=some, default=60, metavar="N", help="samples in a round")
    add("--split", choices=("train", "val"), default="train", help="whose images are cropped as for training")

    add = start("evaluate", "time and memory from logits to scores, and of the network")
    size = [512, 1024]
    add("--size", nargs=2, type=_at_least(32), default=size, metavar=("H", "W"), help="size of the image")

    add = start("modules", "parameters, multiply-adds, memory and time of every context module")
    add("--sizes", nargs="+", type=some, default=[128], metavar="S", help="sides of the map")
    add("--modules", nargs="+", metavar="NAME", help="some modules of the table, instead of all")
    both = [2048, 512]
    add(
        "--channels",
        nargs=2,
        type=channels,
        default=both,
        metavar=("IN", "C"),
        help="of the input and the module",
    )
    add("--dtype", choices=_TYPES, default="float32", help="floating-point type of everything")
    add("--growth", nargs="*", type=some, metavar="S", help="also draw growth, at 32 to 512 or these sides")
    add(
        "--memory", type=_positive, metavar="GB", help="what a process may take (nine tenths of what is free)"
    )
    add("--seconds", type=some, default=20, metavar="S", help="what one size of a growth curve may take")
    return parser
