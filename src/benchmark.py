"""Measure speed and memory: see `--help`."""

import sys
from pathlib import Path

import isaseg.cli  # noqa: F401  # says which Python has the packages

sys.path.append(str(Path(__file__).resolve().parents[1]))  # benchmarks is no part of the package

from benchmarks.command import main

if __name__ == "__main__":
    sys.exit(main())
