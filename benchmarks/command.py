"""Measure speed and memory, on one machine and in one run.

Results are printed and written to OUTPUT/benchmark, as JSON and as Markdown. All but `modules` measure beside
mmsegmentation where `make peers` has installed it. Processes take turns: run nothing else on the machine. Two measure no
time: `operators` computes the tables and the picture of docs/operators.md, `cards` reads what trained networks answer.

Examples:
  isaseg benchmark attention --rounds 3
  isaseg benchmark attention --device cuda --sizes 97 128 256
  isaseg benchmark step --rounds 3
  isaseg benchmark data cityscapes=/data/cityscapes ade20k=/data/ADEChallengeData2016
  isaseg benchmark evaluate --size 256 512
  isaseg benchmark modules --growth --memory 16000
  isaseg benchmark modules --device cuda --dtype bfloat16 --sizes 128 256
  isaseg benchmark gpu --dry
  isaseg benchmark operators
  isaseg benchmark cards outputs/cards_isa/operators-*.sweep
"""

import importlib
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

from isaseg import config
from isaseg.cli import command

_TYPES = ("float32", "bfloat16", "float16")
_PEER = Path(".venv-peers/bin/python")
# those that end in "-held" run by their definition, with all scores in memory
_MODULES = sorted(p.stem for p in (config.conf_dir() / "attention").glob("*.yaml")) + [
    "dense-held",
    "isa-held",
]


def main() -> int:
    """Run the benchmark that is asked for; return the exit code: 0 done, 2 bad input, others as in `command.run`."""
    options = _parser().parse_args()
    return command.run(partial(_measure, options), "nothing is written")


def _measure(options: Namespace) -> int:
    options.folder = options.output / "benchmark"
    if "peer" in options and not options.peer.is_file():
        missing = f"no mmsegmentation at '{options.peer}' (`make peers` installs it): ours alone"
        print(missing, file=sys.stderr)
        options.peer = None
    importlib.import_module(f"benchmarks.{options.command}").benchmark(options)  # imports torch
    return 0


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise ArgumentTypeError(f"expected an integer of at least {least}, got '{text}'")
        return int(text)

    return number


def _parser() -> ArgumentParser:
    parser = command.parser("benchmark", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="BENCHMARK")
    some, channels, side = _at_least(1), _at_least(16), _at_least(32)

    def start(name: str, text: str) -> Callable[..., object]:
        add = commands.add_parser(name, help=text, description=text).add_argument
        if name not in ("gpu", "operators", "cards"):
            add(
                "--rounds", type=some, default=7, metavar="N", help="rounds in which processes take turns (7)"
            )
        folder = "docs" if name == "operators" else "outputs"
        add("--output", type=Path, default=folder, metavar="DIR", help=f"folder of results ({folder})")
        if name not in ("modules", "operators", "cards"):
            add("--peer", type=Path, default=_PEER, metavar="PYTHON", help=f"Python with mmseg ({_PEER})")
        if name not in ("data", "evaluate", "gpu", "operators", "cards"):
            add("--device", choices=("cpu", "cuda"), default="cpu", help="where everything runs (cpu)")
            add("--threads", type=some, default=1, metavar="N", help="threads of the CPU (1)")
        if name in ("attention", "step"):
            text = "float32, or others under autocast (float32 bfloat16)"
            add("--types", nargs="+", choices=_TYPES, default=_TYPES[:2], help=text)
        return add

    add = start("attention", "the ISA block, beside its peers and the ceilings of the machine")
    add("--sizes", nargs="+", type=some, default=[64, 97, 128], metavar="S", help="of the map (64 97 128)")
    add("--channels", type=channels, default=512, metavar="C", help="channels of the map (512)")

    add = start("step", "a training step of ISANet R-50")
    add("--size", type=side, default=512, metavar="S", help="side of the images (512)")
    add("--batch", type=some, default=2, metavar="B", help="images in a step (2)")

    add = start("data", "training samples a second, with and without the cache")
    add("sets", nargs="+", metavar="NAME=ROOT", help="data sets and their folders")
    add("--workers", nargs="+", type=_at_least(0), default=[0, 2], metavar="N", help="loader processes (0 2)")
    add("--samples", type=_at_least(8), default=60, metavar="N", help="samples in a round (60)")
    add("--split", choices=("train", "val"), default="train", help="whose images are loaded (train)")

    add = start("evaluate", "time and memory from logits to scores, and of the network")
    default = [512, 1024]
    add("--size", nargs=2, type=side, default=default, metavar=("H", "W"), help="of the image (512 1024)")

    add = start("modules", "parameters, multiply-adds, memory and time of every context module")
    add("--sizes", nargs="+", type=some, default=[128], metavar="S", help="sides of the map (128)")
    text = f"some of {', '.join(_MODULES)}"
    add("--modules", nargs="+", choices=_MODULES, default=_MODULES, metavar="NAME", help=text)
    both = {"nargs": 2, "type": channels, "default": [2048, 512], "metavar": ("IN", "C")}
    add("--channels", **both, help="of input and module (2048 512)")
    add("--dtype", choices=_TYPES, default="float32", help="of everything (float32)")
    add("--growth", nargs="*", type=some, metavar="S", help="fit growth too, at these sizes (32 to 512)")
    add("--memory", type=some, metavar="MIB", help="what a process may take (half of all memory)")
    add("--seconds", type=some, default=20, metavar="S", help="what a size of a growth curve may take (20)")

    add = start(
        "gpu", "all that matters on a GPU, within eight minutes: blocks, networks, waits, a run, losses"
    )
    add("--dry", action="store_true", help="tiny sizes on a CPU, to see that every part runs: no measurement")
    start("operators", "pictures, costs and names of all attention, in operators.md: nothing is measured")
    add = start("cards", "whether networks look up the card of an object on Cards, or count all cards")
    add("runs", nargs="+", type=Path, metavar="RUNS", help="run folders, folders above some, .sweep files")
    return parser
